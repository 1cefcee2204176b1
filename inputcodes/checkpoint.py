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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inputcodes.configurator import UserError, from_record
from inputcodes.dashboard import Write
from inputcodes.data import DataSet
from inputcodes.files import file_sha256
from inputcodes.hf import read_export, weights_file
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
    if record["config"].pop("tf32", False):
        record["config"]["matmul_precision"] = "high"
    record["config"].setdefault("matmul_precision", "highest")
    if record["config"]["input_layer"] == "random":
        record["config"].setdefault("code_length", record["config"].get("random_width", 0))
    return state, record


def load_model(path: Path, device: torch.device | None = None) -> tuple[GPT, dict[str, Any]]:
    """The model of a checkpoint, ready to use, and the checkpoint's record."""
    state, record = read_checkpoint(path)
    model = GPT.from_weights(from_record(GPTConfig, record["config"]), state["model"])
    return model.to(device or "cpu").eval(), record


@dataclass(frozen=True)
class Start:
    """The checkpoint whose weights a run begins with, and whether it is that run's own."""

    path: Path
    resuming: bool
    tensors: dict[str, Any]
    record: dict[str, Any]

    @property
    def base(self) -> dict[str, Any] | None:
        """The checkpoint that the run fine-tunes, for its record; None if it fine-tunes none."""
        if self.resuming:
            return self.record.get("base")
        kept = ("step", "best_val_loss", "data_sha256", "code_sha256")
        return {
            "out_dir": str(self.path.parent),
            "sha256": file_sha256(self.path),
            **{name: self.record[name] for name in kept},
        }


def find_start(init_from: str, out_dir: Path) -> Start | None:
    """The checkpoint that `init_from` names; None if the weights are to be new."""
    for choice in init_from.split(","):
        if choice == "scratch":
            return None
        path = Path(choice) / "best.pt"
        if choice == "resume":
            path = out_dir / "last.pt"
            if not path.is_file():
                continue
        elif (Path(choice) / "config.json").is_file():
            return Start(weights_file(Path(choice)), False, *read_export(Path(choice)))
        elif not path.is_file():
            raise UserError(
                f"init_from={choice!r}: expected scratch, resume or the directory of a run or of"
                f" an export, and there is no {path}"
            )
        return Start(path, choice == "resume", *read_checkpoint(path))
    return None


def check_architecture(path: Path, there: dict[str, Any], given: dict[str, Any]) -> None:
    """Raise UserError, naming each, for settings that contradict the checkpoint to fine-tune."""
    found = [
        f"{name}={given[name]!r}, but {path} has {value!r}: leave it out, the checkpoint decides"
        for name, value in there.items()
        if name in given and given[name] != value and (name, given[name]) != ("vocab_size", 0)
    ]
    if found:
        raise UserError("\n".join(found))


def check_base(start: Start | None, data: DataSet, init_from: str, data_dir: Path) -> None:
    """Raise UserError if the checkpoint to start from does not fit the data or the command."""
    choice = init_from.split(",")[-1]
    if start is None:
        if data.chat and choice == "resume":
            raise UserError(
                "there is no checkpoint to resume yet: say what to fine-tune"
                " (--init_from=resume,out/RUN), or train new weights (--init_from=scratch)"
            )
        return
    if data.tokenizer.sha256 != start.record["tokenizer_sha256"]:
        source = data_dir / start.record["config"]["dataset"] / "tokenizer.json"
        raise UserError(
            f"{data.path} has another tokenizer than {start.path}: prepare it under another name,"
            f" with --tokenizer={source}"
        )
    was = start.base["out_dir"] if start.base else "scratch"
    if start.resuming and choice != "resume" and was != str(Path(choice)):
        raise UserError(f"cannot resume {start.path}: it started from {was}, not from {choice}")


def check_same_run(path: Path, was: dict[str, Any], now: dict[str, Any], free: set[str]) -> None:
    """Raise UserError, naming all that differs, unless `path` is a checkpoint of this very run."""
    found = [
        f"{name}: {was['config'].get(name)!r} there, {value!r} now"
        for name, value in now["config"].items()
        if name not in free and was["config"].get(name) != value
    ]
    found += [
        f"{name}: another {what} than the checkpoint's"
        for name, what in (("tokenizer_sha256", "tokenizer"), ("data_sha256", "data set"))
        if was[name] != now[name]
    ]
    if found:
        raise UserError(f"cannot resume {path} with another recipe: " + "; ".join(found))


def refuse_to_overwrite(out_dir: Path, init_from: str) -> None:
    """Raise UserError if a new run would write over one that is there."""
    there = [name for name in ("last.pt", "best.pt", "run.json") if (out_dir / name).is_file()]
    if "resume" not in init_from.split(",") and there:
        raise UserError(
            f"{out_dir} holds a run already ({', '.join(there)}): go on with it"
            " (--init_from=resume), write elsewhere (--out_dir=...), or delete it"
        )


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

    def __init__(self, path: Path, last_step: int, show: Write) -> None:
        """Keep the lines up to `last_step`, as a resumed run repeats the later ones.

        Each further line also goes to `show`.
        """
        kept = []
        for line in path.read_text().splitlines() if path.is_file() else []:
            with contextlib.suppress(json.JSONDecodeError):  # a line that a kill cut short
                if json.loads(line)["step"] <= last_step:
                    kept.append(line + "\n")
        path.write_text("".join(kept))
        self.path, self.show = path, show

    def write(self, line: dict[str, Any]) -> None:
        """Append one line."""
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
        self.show(line)


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
