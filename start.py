"""How a training run starts: its settings, its data, and the checkpoint it goes on from.

`--init_from` names that checkpoint. A run that goes on (`resume`) must be the same run in all that
decides what it computes. A run that fine-tunes another (`--init_from=out/fixed32`) takes the
architecture, input layer included, from its checkpoint, and must read data of its tokenizer; what
the command says otherwise is an error.
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inputcodes.checkpoint import read_checkpoint
from inputcodes.configurator import UserError, build, given_values, names_where, setting
from inputcodes.data import DataSet
from inputcodes.distributed import Processes
from inputcodes.shards import file_sha256
from model import GPTConfig
from prepare_data import PrepareConfig, prepare

DOCSTRINGS = "docstrings"
EMBEDDED = re.compile(rf"{PrepareConfig().dataset}(-(?P<vocab_size>\d+))?|{DOCSTRINGS}")


@dataclass(frozen=True)
class TrainConfig(GPTConfig):
    """A training run. Batch sizes are global: the number of processes divides them."""

    dataset: str = setting("stdlib", "directory under data_dir made by prepare_data.py")
    data_dir: str = setting("data", "where data sets are", free_on_resume=True)
    out_dir: str = setting(
        "", "where the run is written; empty: out/NAME for config/NAME.py", free_on_resume=True
    )
    init_from: str = setting(
        "scratch",
        "scratch; the directory of a run, to fine-tune its best checkpoint; or resume: go on from "
        "the last checkpoint in out_dir if there is one, else from what follows a comma "
        "(resume,out/fixed32) or from scratch",
        free_on_resume=True,
    )
    seed: int = setting(1, "initial weights and batch order; at least 0", least=0, most=2**63 - 1)
    batch_size: int = setting(4, "sequences a micro-step, over all processes", least=1)
    gradient_accumulation_steps: int = setting(1, "micro-steps a step", least=1)
    max_steps: int = setting(5600, "steps (weight updates) of the run", least=1)
    learning_rate: float = setting(2.5e-3, "peak learning rate of AdamW", least=0)
    min_lr: float = setting(0.0, "learning rate at the end of the cosine", least=0)
    warmup_steps: int = setting(200, "steps of linear warm-up", least=0)
    weight_decay: float = setting(0.1, "on matrices only", least=0)
    beta1: float = setting(0.9, "AdamW: decay of the mean of gradients", least=0, below=1)
    beta2: float = setting(0.95, "AdamW: decay of the mean of squared gradients", least=0, below=1)
    grad_clip: float = setting(1.0, "largest norm of the gradient; 0 clips nothing", least=0)
    eval_interval: int = setting(
        1400,
        "steps between evaluations, each followed by a checkpoint",
        least=1,
        free_on_resume=True,
    )
    eval_tokens: int = setting(
        0, "validation tokens an evaluation; 0: all", least=0, free_on_resume=True
    )
    log_interval: int = setting(
        50, "steps between lines of metrics.jsonl", least=1, free_on_resume=True
    )
    device: str = setting(
        "auto", "cuda, mps or cpu; auto: the first of these there is", free_on_resume=True
    )
    dtype: str = setting(
        "float32",
        "float32, or bfloat16: autocast with float32 weights",
        choices=("float32", "bfloat16"),
    )
    tf32: bool = setting(False, "CUDA: let float32 products round to TF32")
    compile: bool = setting(
        False, "torch.compile the model (needs a C++ compiler on a CPU)", free_on_resume=True
    )

    def problems(self) -> list[str]:
        """One sentence for every impossible value or combination."""
        found = super().problems()
        if self.warmup_steps >= self.max_steps:
            found.append(f"warmup_steps={self.warmup_steps}: max_steps={self.max_steps} is over")
        if self.min_lr > self.learning_rate:
            found.append(f"min_lr={self.min_lr} is above learning_rate={self.learning_rate}")
        return found

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.block_size * self.gradient_accumulation_steps


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


def configure_run(argv: Sequence[str]) -> tuple[TrainConfig, Start | None]:
    """The configuration that `argv` says, and the checkpoint to start from, if any.

    What a checkpoint decides is filled in from it. Raises UserError with what is impossible.
    """
    given = given_values(TrainConfig, argv)
    if not given.get("out_dir"):
        files = [word for word in argv if word.endswith(".py") and not word.startswith("-")]
        given["out_dir"] = f"out/{Path(files[-1]).stem}" if files else "out"
    start = find_start(given.get("init_from", "scratch"), Path(given["out_dir"]))
    inherited = {}
    if start:
        names = {field.name for field in dataclasses.fields(GPTConfig)}
        inherited = {name: start.record["config"][name] for name in names}
        if not start.resuming:
            check_architecture(start.path, inherited, given)
    config = build(TrainConfig, inherited | given)
    refuse_to_overwrite(config)
    return config, start


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
        elif not path.is_file():
            raise UserError(
                f"init_from={choice!r}: expected scratch, resume or the directory of a run, and"
                f" there is no {path}"
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


def check_base(config: TrainConfig, data: DataSet, start: Start | None) -> None:
    """Raise UserError if the checkpoint to start from does not fit the data or the command."""
    choice = config.init_from.split(",")[-1]
    if start is None:
        if data.chat and choice == "resume":
            raise UserError(
                f"{config.out_dir} holds no checkpoint to resume yet: say what to fine-tune"
                " (--init_from=resume,out/RUN), or train new weights (--init_from=scratch)"
            )
        return
    if data.tokenizer.sha256 != start.record["tokenizer_sha256"]:
        source = Path(config.data_dir) / start.record["config"]["dataset"] / "tokenizer.json"
        raise UserError(
            f"{data.path} has another tokenizer than {start.path}: prepare it under another name,"
            f" with --tokenizer={source}"
        )
    was = start.base["out_dir"] if start.base else "scratch"
    if start.resuming and choice != "resume" and was != str(Path(choice)):
        raise UserError(f"cannot resume {start.path}: it started from {was}, not from {choice}")


def check_same_run(path: Path, was: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise UserError, naming all that differs, unless `path` is a checkpoint of this very run."""
    found = [
        f"{name}: {was['config'].get(name)!r} there, {value!r} now"
        for name, value in now["config"].items()
        if name not in names_where(TrainConfig, "free_on_resume")
        and was["config"].get(name) != value
    ]
    found += [
        f"{name}: another {what} than the checkpoint's"
        for name, what in (("tokenizer_sha256", "tokenizer"), ("data_sha256", "data set"))
        if was[name] != now[name]
    ]
    if found:
        raise UserError(f"cannot resume {path} with another recipe: " + "; ".join(found))


def open_data(config: TrainConfig, processes: Processes) -> DataSet:
    """The data set of the run.

    Those made of the standard library are prepared on first use: stdlib, stdlib-4096 (and other
    vocabularies) and docstrings.
    """
    path = Path(config.data_dir) / config.dataset
    embedded = EMBEDDED.fullmatch(config.dataset)
    if embedded and not (path / "meta.json").is_file():
        settings: dict[str, Any] = {"data_dir": config.data_dir, "dataset": config.dataset}
        settings["chat"] = config.dataset == DOCSTRINGS
        if embedded["vocab_size"]:
            settings["vocab_size"] = int(embedded["vocab_size"])
        if processes.first:
            prepare(build(PrepareConfig, settings))
        processes.wait()
    return DataSet(path, verify=processes.first)


def refuse_to_overwrite(config: TrainConfig) -> None:
    """Raise UserError if a new run would write over one that is there."""
    out_dir = Path(config.out_dir)
    there = [name for name in ("last.pt", "best.pt", "run.json") if (out_dir / name).is_file()]
    if "resume" not in config.init_from.split(",") and there:
        raise UserError(
            f"{out_dir} holds a run already ({', '.join(there)}): go on with it"
            " (--init_from=resume), write elsewhere (--out_dir=...), or delete it"
        )


def resolve(config: TrainConfig, data: DataSet, world: int) -> TrainConfig:
    """The configuration with the data set's vocabulary; UserError for what only now can clash."""
    found = []
    if config.vocab_size not in (0, data.vocab_size):
        found.append(f"vocab_size={config.vocab_size}, but {data.path} has {data.vocab_size}")
    if config.batch_size % world:
        found.append(
            f"batch_size={config.batch_size} cannot be shared by {world} processes:"
            f" make it a multiple of {world}"
        )
    config = dataclasses.replace(config, vocab_size=data.vocab_size)
    if found := found or config.problems():
        raise UserError("\n".join(found))
    return config
