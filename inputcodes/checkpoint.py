"""What a run leaves in its out_dir: checkpoints, metrics.jsonl and run.json.

A checkpoint is one file, written whole or not at all, every byte checked when read: a torch
file of {"model": weights, "optimizer": state (in `last` alone), "record": JSON text}. The
record says what made it: step, best loss, configuration, tokenizer, hashes of data and code.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inputcodes.configurator import UserError, from_record
from model import GPT, GPTConfig

ROOT = Path(__file__).resolve().parent.parent  # of the program


def write_checkpoint(path: Path, tensors: dict[str, Any], record: dict[str, Any]) -> None:
    """Write to a temporary name, flush to the disk, then rename over `path`."""
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        torch.save({**tensors, "record": json.dumps(record)}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors ({"model": ..., "optimizer": ...}) and the JSON record of a checkpoint.

    Every byte is checked against the checksums of the file. Raises UserError if there is no
    checkpoint or it is damaged.
    """
    if not path.is_file():
        raise UserError(
            f"no checkpoint {path}: `python train.py --out_dir={path.parent}` makes one"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"wrong checksum in {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        record = json.loads(state.pop("record"))
    except Exception as error:
        raise UserError(
            f"{path} is not a whole checkpoint ({error}): delete it, or use the other one there"
        ) from error
    if record["config"]["input_layer"] == "random":
        record["config"].setdefault("code_length", record["config"].get("random_width", 0))
    return state, record


def load_model(path: Path, device: torch.device | None = None) -> tuple[GPT, dict[str, Any]]:
    """The model of a checkpoint, ready to use, and the checkpoint's record."""
    state, record = read_checkpoint(path)
    model = GPT.from_weights(from_record(GPTConfig, record["config"]), state["model"])
    return model.to(device or "cpu").eval(), record


@contextlib.contextmanager
def sole_writer(out_dir: Path) -> Iterator[None]:
    """Hold `out_dir` for this process; UserError if another one writes to it."""
    out_dir.mkdir(parents=True, exist_ok=True)
    with open(out_dir / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however
        except BlockingIOError as error:
            raise UserError(
                f"another process is writing to {out_dir}: wait for its end, or choose another"
                " --out_dir"
            ) from error
        yield


class Metrics:
    """metrics.jsonl: a line of numbers an interval, those of steps not kept cut off."""

    def __init__(self, path: Path, last_step: int) -> None:
        """Keep the lines up to `last_step`, as a resumed run repeats the later ones."""
        kept = []
        for line in path.read_text().splitlines() if path.is_file() else []:
            with contextlib.suppress(json.JSONDecodeError):  # a line that a kill cut short
                if json.loads(line)["step"] <= last_step:
                    kept.append(line + "\n")
        path.write_text("".join(kept))
        self.path = path

    def write(self, line: dict[str, Any]) -> None:
        """Append one line."""
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")


def write_run_json(out_dir: Path, record: dict[str, Any], device: torch.device) -> None:
    """What made the run: its record, and the versions, commit and hardware of this start."""
    made_by = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "commit": git_commit(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
    out_dir.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**record, **made_by}, indent=2)
    temporary = out_dir / "run.tmp"
    temporary.write_text(text + "\n")
    os.replace(temporary, out_dir / "run.json")


def git_commit() -> str | None:
    """The commit of this checkout, with "-dirty" if files differ; None outside git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def code_sha256() -> str:
    """One hash over the program's files that are loaded, in the order of their names."""
    loaded = {Path(getattr(module, "__file__", None) or ".") for module in sys.modules.values()}
    total = hashlib.sha256()
    program = {*ROOT.glob("*.py"), *ROOT.glob("inputcodes/*.py")}
    for path in sorted({path.resolve() for path in loaded} & program):
        total.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()
