"""Where a run is looked at: Weights & Biases or TensorBoard, and curve.png.

All here is made of run.json and the lines of metrics.jsonl, which stays the truth.
"""

import importlib.util
import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from inputcodes.files import read_json, write_text

CURVE_SECONDS = 10.0  # between two pictures: one takes about half a second

Write = Callable[[dict[str, Any]], None]


def missing_package(log_to: str) -> str:
    """What to install for `log_to`, as a problem of the configuration, or ""."""
    if log_to == "none" or importlib.util.find_spec(log_to):
        return ""
    return f"log_to={log_to!r} needs the package {log_to}: pip install {log_to}"


def open_dashboard(log_to: str, out_dir: Path, last_step: int) -> Write:
    """What takes the lines of metrics.jsonl after `last_step`, and draws curve.png now and then."""
    made_by = read_json(out_dir / "run.json") | {"tokenizer": "in the checkpoints"}
    opened = {"wandb": _wandb, "tensorboard": _tensorboard}.get(
        log_to, lambda *_: lambda line: None
    )
    send = opened(out_dir, made_by, last_step)
    drawn = time.perf_counter()

    def write(line: dict[str, Any]) -> None:
        nonlocal drawn
        send(line)
        if "val_loss" in line and time.perf_counter() - drawn >= CURVE_SECONDS:
            _draw(out_dir)
            drawn = time.perf_counter()

    return write


def _draw(out_dir: Path) -> None:
    try:
        figures = importlib.import_module("inputcodes.figures")  # needs matplotlib
        figures.draw_curve(out_dir)
    except Exception as error:  # a run does not end for its picture
        tqdm.write(f"no {out_dir / 'curve.png'}: {error}")


def _wandb(out_dir: Path, made_by: dict[str, Any], last_step: int) -> Write:
    import wandb

    file = out_dir / "wandb_id"
    if not (last_step and file.is_file()):
        write_text(file, uuid.uuid4().hex[:8])
    known = {"id": file.read_text(), "resume": "allow", "dir": out_dir, "config": made_by}
    run = wandb.init(project="input-codes", name=str(out_dir), **known)
    return lambda line: run.log(line, step=line["step"])


def _tensorboard(out_dir: Path, made_by: dict[str, Any], last_step: int) -> Write:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(out_dir / "tensorboard", purge_step=last_step + 1)
    if not last_step:
        writer.add_text("run.json", f"```\n{json.dumps(made_by, indent=1)}\n```")

    def write(line: dict[str, Any]) -> None:
        for name, value in line.items():
            if isinstance(value, int | float) and name != "step":
                writer.add_scalar(name, value, line["step"])
        writer.flush()

    return write
