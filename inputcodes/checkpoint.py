"""What a run leaves in its out_dir: checkpoints, metrics.jsonl and run.json.

A checkpoint is one file, written whole or not at all: a torch file of {"model": weights,
"optimizer": state (in `last` alone), "record": JSON text}, then a line with the SHA-256 of all
before it, so that no bit can change unnoticed. The record says what made it: step, best loss,
configuration, tokenizer, hashes of data and code.
"""

import contextlib
import functools
import hashlib
import json
import os
import pickle
import platform
import re
import sys
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inputcodes import files
from inputcodes.configurator import ROOT, UserError, command, from_record
from inputcodes.tokenizer import Tokenizer
from model import GPT, GPTConfig

FORMAT = 2  # 1 had no SHA-256 at the end, and is not read
SEAL = b"\nsha256 "  # begins the last line of a checkpoint
SEAL_BYTES = len(SEAL) + 64 + 1
UNFIT = "is damaged: weights and settings differ"
# What a record says; the last two are not in every one. run.json leaves out what changes while
# the run goes on, and the tokenizer, a long text.
CHANGING = {"step": int, "tokens": int, "best_val_loss": float, "elapsed_s": float}
LASTING = dict.fromkeys(("tokenizer_sha256", "data_sha256", "code_sha256"), str)
RECORD_PARTS: dict[str, Any] = {**CHANGING, "tokenizer": str, **LASTING, "config": dict}
RECORD_PARTS |= {"table_sha256": str | None, "changes": list | None}
NOT_IN_RUN_JSON = {*CHANGING, "tokenizer"}


# ---------------------------------------------------------------------------------------------
# Checkpoints


def write_checkpoint(path: Path, tensors: dict[str, Any], record: dict[str, Any]) -> None:
    """Replace the checkpoint `path` at once, or leave the old one."""
    text = json.dumps({"format": FORMAT, "code_sha256": code_sha256(), **record})
    with files.atomic_write(path) as file:
        try:
            torch.save({**tensors, "record": text}, file)
        except RuntimeError as error:  # torch's, which does not say why a write failed
            raise error.__context__ or error from None
        file.flush()
        file.write(SEAL + files.file_sha256(Path(file.name)).encode() + b"\n")


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors ({"model": ..., "optimizer": ...}) and the JSON record of a checkpoint.

    Every byte is checked, and nothing but tensors is loaded. In the record `checkpoint` is the
    file's name, best or last, and `checkpoint_sha256` its hash.
    """
    if not path.is_file():
        advice = f"train one, as with `{command('train.py', f'--out_dir={path.parent}')}`"
        if (path.parent / "config.json").is_file():
            advice = f"{path.parent} is an export: name the run that it was made of"
        elif path.parent.is_file():
            advice = f"{path.parent} is a file: name the folder of a run"
        elif path.with_name("best.pt").is_file():
            advice = other_checkpoint(path)
        raise UserError(f"there is no checkpoint {path}: {advice}")
    try:
        checked, sha256 = path.stat(), check_bytes(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        record: dict[str, Any] = json.loads(state.pop("record"))
        check_record(record)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is refused: it holds other objects than tensors") from error
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is damaged ({reason}); {other_checkpoint(path)}") from error
    if not os.path.samestat(checked, path.stat()):  # a run has replaced what was checked
        return read_checkpoint(path)
    return state, record | {"checkpoint": path.stem, "checkpoint_sha256": sha256}


def check_record(record: dict[str, Any], elsewhere: Container[str] = ()) -> None:
    """Raise ValueError if the record lacks a part, those that are kept `elsewhere` aside."""
    parts = {name: kind for name, kind in RECORD_PARTS.items() if name not in elsewhere}
    wrong = [name for name, kind in parts.items() if not isinstance(record.get(name), kind)]
    base = record.get("base") or {"out_dir": "scratch", "sha256": ""}
    if not isinstance(base, dict) or {type(base.get(k)) for k in ("out_dir", "sha256")} != {str}:
        wrong.append("base")
    if wrong:
        raise ValueError(f"it lacks {', '.join(wrong)}")


def check_bytes(path: Path) -> str:
    """The SHA-256 of the file; ValueError unless it ends with that of all before its last line."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        body = max(0, path.stat().st_size - SEAL_BYTES)
        for start in range(0, body, 2**20):
            total.update(file.read(min(2**20, body - start)))
        seal = file.read()
    if not seal.startswith(SEAL):
        raise ValueError("no SHA-256 at its end: cut short, or made by another program")
    if seal != SEAL + total.hexdigest().encode() + b"\n":
        raise ValueError("wrong SHA-256")
    total.update(seal)
    return total.hexdigest()


def or_last(path: Path) -> Path:
    """The checkpoint `path`, or last.pt for want of a best.pt, which a note on stderr says."""
    last = path.with_name("last.pt")
    if path.name != "best.pt" or path.is_file() or not last.is_file():
        return path
    if os.environ.get("RANK", "0") == "0":  # once, of several processes
        print(f"note: there is no {path}: taking {last}", file=sys.stderr)
    return last


def other_checkpoint(path: Path) -> str:
    other = path.with_name("last.pt" if path.name == "best.pt" else "best.pt")
    if not other.is_file():
        return f"there is no other one: delete {path.parent} and train again"
    if other.name == "last.pt":
        go_on = command("train.py", f"--out_dir={path.parent}", "--init_from=resume")
        return f"read {other} instead (--checkpoint=last), or go on training from it: `{go_on}`"
    again = command("train.py", f"--init_from={path.parent}", f"--out_dir={path.parent}-again")
    return f"start another run from its best weights, `{again}`, or read them (--checkpoint=best)"


def give_weights(
    model: torch.nn.Module, weights: dict[str, torch.Tensor], path: Path, assign: bool = False
) -> None:
    """Give `model` the weights of `path`, if they fit and are finite."""
    with files.damage_named(path, "", UNFIT):
        model.load_state_dict(weights, assign=assign)
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise UserError(f"{path}: {name} has numbers that are not finite: use other weights")


def load_model(
    path: Path, device: torch.device | None = None
) -> tuple[GPT, dict[str, Any], Tokenizer]:
    """The model of a checkpoint, or of last.pt for want of a best.pt; its record and tokenizer."""
    path = or_last(path)
    tensors, record = read_checkpoint(path)
    tokenizer = Tokenizer.from_json(record["tokenizer"])
    with files.damage_named(path, "", UNFIT):
        config = from_record(GPTConfig, record["config"], path)
        model = GPT(config, texts=tokenizer.texts())
    give_weights(model, tensors["model"], path, assign=True)  # mapped from the file, not copied
    return model.to(device or "cpu").eval(), record, tokenizer


# ---------------------------------------------------------------------------------------------
# metrics.jsonl and run.json


class Metrics:
    """metrics.jsonl: a line of numbers per interval."""

    def __init__(self, path: Path, last_step: int, show: Callable[[dict[str, Any]], None]) -> None:
        """Keep the lines up to `last_step`; each further one also goes to `show`."""
        self.path, self.last_step, self.show = path, last_step, show
        self._keep(last_step)

    def _keep(self, last_step: int, *more: dict[str, Any]) -> None:
        lines = files.read_json_lines(self.path, damaged="warn")
        kept = [*(line for line in lines if line["step"] <= last_step), *more]
        files.write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, line: dict[str, Any], shown: bool = True) -> None:
        """Append one line, or put it in place of one that was kept without its evaluation.

        A line that still lacks it is not to be `shown`: a dashboard takes each step once.
        """
        if line["step"] <= self.last_step:
            self._keep(line["step"] - 1, line)
        else:
            with files.system_errors("write", self.path), open(self.path, "ab") as file:
                file.write(json.dumps(line).encode() + b"\n")
        if shown:
            self.show(line)


def write_run_json(
    out_dir: Path, record: dict[str, Any], device: torch.device, mend: bool = False
) -> None:
    """Write what made the run and this start; with `mend`, only if there is no whole run.json."""
    with contextlib.suppress(UserError):
        if mend and files.read_json(out_dir / "run.json"):
            return
    shown = {name: value for name, value in record.items() if name not in NOT_IN_RUN_JSON}
    started = {"started_at_step": record["step"]}
    files.write_json(out_dir / "run.json", started | shown | made_by(device))


def made_by(device: torch.device) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "commit": files.git_commit(),
        "code_sha256": code_sha256(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def processor() -> str:
    """The name of the CPU, and on Linux whether it multiplies bfloat16 in tiles (AMX)."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8", errors="replace") if info.is_file() else ""
    name = re.search(r"model name\s*: (.*)", text)
    if not name:
        return platform.processor()
    return f"{name[1]}, {'with' if 'amx_bf16' in text else 'without'} AMX"


@functools.cache
def code_sha256() -> str:
    """One hash over the program's files that are loaded, in the order of their names."""
    loaded = {Path(getattr(module, "__file__", None) or ".") for module in sys.modules.values()}
    total = hashlib.sha256()
    program = {*ROOT.glob("*.py"), *ROOT.glob("inputcodes/*.py")}
    for path in sorted({path.resolve() for path in loaded} & program):
        total.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()
