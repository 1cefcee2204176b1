"""Where a run is looked at: Weights & Biases or TensorBoard.

metrics.jsonl stays the truth: all here is made of its lines, and of run.json. The packages are
optional and imported when asked for.
"""

import importlib.util
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inputcodes.files import read_json, write_text

Write = Callable[[dict[str, Any]], None]


def missing_package(log_to: str) -> str:
    """What to install for `log_to`, as a problem of the configuration, or ""."""
    if log_to == "none" or importlib.util.find_spec(log_to):
        return ""
    return f"log_to={log_to!r} needs the package {log_to}: pip install {log_to}"


def open_dashboard(log_to: str, out_dir: Path, last_step: int) -> Write:
    """What takes the lines of metrics.jsonl after `last_step`; a resumed run goes on in its own."""
    if log_to == "none":
        return lambda line: None
    made_by = read_json(out_dir / "run.json")
    del made_by["tokenizer"]
    return {"wandb": _wandb, "tensorboard": _tensorboard}[log_to](out_dir, made_by, last_step)


def _wandb(out_dir: Path, made_by: dict[str, Any], last_step: int) -> Write:
    import wandb

    file = out_dir / "wandb_id"
    if not (last_step and file.is_file()):
        write_text(file, uuid.uuid4().hex[:8])
    settings = {"project": "input-codes", "name": str(out_dir), "config": made_by}
    run = wandb.init(id=file.read_text(), resume="allow", dir=out_dir, **settings)
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
