"""How a training run starts: its configuration, the checkpoint that it goes on from, and what is
refused before the first step, such as a model that memory cannot hold.

`--init_from` names the checkpoint that a run starts from. A run that is resumed keeps all that
decided the batches and weights already made; the rest of its recipe may change when the command
line says so, and `changes` in its record says what changed and when. A run that fine-tunes
another (`--init_from=out/fixed32`) takes the architecture, input layer included, from it.
"""

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inputcodes import checkpoint, configurator
from inputcodes.checkpoint import load_model, other_checkpoint, read_checkpoint
from inputcodes.configurator import S, UserError, build, given_values, refuse
from inputcodes.data import DataSet, TrainingData, validation_numbers
from inputcodes.files import file_sha256, read_json_lines
from inputcodes.hf import TOKENIZER, read_export
from inputcodes.loss import LOGITS_BYTES
from model import GPT, GPTConfig, count_parameters

# Settings of nanoGPT, and of this program before: what to use instead.
OTHER_NAMES = {
    "tf32": "it is matmul_precision now (--matmul_precision=high for TF32)",
    "max_iters": "it is called max_steps here",
    "warmup_iters": "it is called warmup_steps here",
    "lr_decay_iters": "the cosine always ends at max_steps",
    "decay_lr": "for a constant rate set min_lr to the value of learning_rate",
    "eval_iters": "set eval_tokens, the validation tokens per evaluation (0: all)",
    "eval_only": "evaluate.py evaluates a run",
    "always_save_checkpoint": "last.pt is always kept, and best.pt beside it",
    "wandb_log": "pass --log_to=wandb",
    "wandb_project": "it is always input-codes (--log_to=wandb)",
    "wandb_run_name": "it is the out_dir (--log_to=wandb)",
    "dropout": "there is none in this model",
    "bias": "no layer of this model has one",
    "start": "it is --prompt of sample.py",
    "out": "it is called out_dir here",
    "backend": "it is nccl on CUDA and gloo elsewhere",
}


# What a record says of where the run comes from.
ORIGIN: dict[str, Any] = {"base": None, "table_sha256": None, "changes": []}


@dataclass(frozen=True)
class Start:
    """The checkpoint whose weights a run begins with, and whether it is that run's own."""

    path: Path
    resuming: bool
    tensors: dict[str, Any]
    record: dict[str, Any]
    changes: Sequence[dict[str, Any]] = ()  # of its recipe, from here on

    @property
    def origin(self) -> dict[str, Any]:
        """For the run's record: the checkpoint that it fine-tunes or whose table it took, if any,
        and the changes of its recipe since it began.
        """
        there = self.record
        if self.resuming:
            kept = {name: there.get(name) for name in ORIGIN}
            return kept | {"changes": [*(kept["changes"] or []), *self.changes]}
        base = {"out_dir": str(self.path.parent), "sha256": there["checkpoint_sha256"]}
        names = ("step", "best_val_loss", "data_sha256", "code_sha256")
        return ORIGIN | {"base": base | {name: there[name] for name in names}}

    def best_weights(self) -> dict[str, Tensor] | None:
        """The weights in best.pt beside it; None, so that the next evaluation makes one, if there
        is none, it is damaged, or it is of a later step, which may never come as it came then.
        """
        with contextlib.suppress(UserError):
            tensors, record = read_checkpoint(self.path.with_name("best.pt"))
            if record["step"] <= self.record["step"]:
                return dict(tensors["model"])
        return None

    def owed_evaluation(self, config: Any, best_lost: bool) -> dict[str, Any] | None:
        """The line of metrics of the last step, if it lacks the evaluation due by `config`.

        It was stopped, or the step was not to be evaluated before, as the run would have gone on;
        or it is due again, as its best checkpoint is lost.
        """
        step = self.record["step"]
        if not step or (step % config.eval_interval and step != config.max_steps):
            return None
        # In silence, as every process reads this: Metrics, of the first alone, warns.
        lines = read_json_lines(self.path.with_name("metrics.jsonl"), damaged="skip")
        new = {name: self.record[name] for name in ("step", "tokens", "elapsed_s")}
        line = next((line for line in lines if line["step"] == step), new)
        return None if "val_loss" in line and not best_lost else line

    def load_weights(self, model: torch.nn.Module) -> None:
        checkpoint.give_weights(model, self.tensors["model"], self.path)

    def settings(self, cls: type[S]) -> S:
        """The checkpoint's settings, or only its architecture, as `cls` says."""
        return configurator.from_record(cls, self.record["config"], self.path)

    def resumed(self, config: Any, command_line: Mapping[str, Any]) -> "Start":
        """This start with what `config` changes of the run, on the `command_line` or elsewhere."""
        cls, step, before = type(config), self.record["step"], self.settings(type(config))
        was, now = dataclasses.asdict(before), dataclasses.asdict(config)
        now["vocab_size"] = now["vocab_size"] or was["vocab_size"]
        changes, problems = [], []
        for name in sorted(now.keys() - configurator.names_where(cls, "free_on_resume")):
            if now[name] == was[name]:
                continue
            there = f"{name}={now[name]!r}, but {self.path} has {was[name]!r}"
            if name not in configurator.names_where(cls, "explicit_on_resume"):
                problems.append(f"{there}: resuming cannot change it")
            elif name not in command_line:
                problems.append(
                    f"{there}: add --{name}={was[name]} to keep that, or --{name}={now[name]}"
                    f" to change it from step {step:,} on"
                )
            changes.append({"step": step, "name": name, "from": was[name], "to": now[name]})
        refuse(problems)
        if config.tokens_per_step != before.tokens_per_step:
            raise UserError(
                f"batch_size={config.batch_size} x gradient_accumulation_steps="
                f"{config.gradient_accumulation_steps}: their product must stay"
                f" {before.batch_size * before.gradient_accumulation_steps}, as in {self.path}"
            )
        if config.max_steps < step:
            raise UserError(f"max_steps={config.max_steps}: {self.path} is at step {step} already")
        return dataclasses.replace(self, changes=changes)


def start_of(init_from: str) -> tuple[bool, str]:
    """Whether `init_from` resumes, and what it names to start from, commas and all, or ""."""
    first, _, base = init_from.partition(",")
    return (True, base) if first == "resume" else (False, init_from)


def find_start(init_from: str, out_dir: Path) -> Start | None:
    """The checkpoint that `init_from` names; None if the weights are to be new."""
    resumes, base = start_of(init_from)
    if resumes:
        path = out_dir / "last.pt"
        if path.is_file():
            start = Start(path, True, *read_checkpoint(path))
            if "optimizer" not in start.tensors:
                advice = other_checkpoint(path)
                raise UserError(f"{path} lacks the state of the optimizer; {advice}")
            return start
        if path.with_name("best.pt").is_file():
            raise UserError(f"there is no {path} to resume; {other_checkpoint(path)}")
    if base == "scratch" or (resumes and not base):
        return None
    path = checkpoint.or_last(Path(configurator.local_path(base)) / "best.pt")
    if path.is_file():
        return Start(path, False, *read_checkpoint(path))
    if path.with_name("config.json").is_file():
        return Start(path.with_name("model.safetensors"), False, *read_export(path.parent))
    raise UserError(
        f"init_from={base!r}: expected scratch, resume or the directory of a run or of"
        f" an export, and there is no {path}"
    )


def check_architecture(path: Path, there: dict[str, Any], given: dict[str, Any]) -> None:
    """Raise UserError, naming each, for settings that contradict the checkpoint to fine-tune."""
    problems = [
        f"{name}={given[name]!r}, but {path} has {value!r}: leave it out, the checkpoint decides"
        for name, value in there.items()
        if given.get(name, value) != value and (name, given[name]) != ("vocab_size", 0)
    ]
    refuse(problems)


def check_base(start: Start | None, data: DataSet, init_from: str) -> None:
    """Raise UserError if the checkpoint to start from does not fit the data or the command."""
    base = start_of(init_from)[1]
    if start is None:
        if data.chat and not base:
            raise UserError(
                "there is no checkpoint to resume yet: say what to fine-tune"
                " (--init_from=resume,out/RUN), or train new weights (--init_from=scratch)"
            )
        return
    if start.resuming and data.sha256 != start.record["data_sha256"]:
        raise UserError(
            f"cannot resume {start.path}: {data.path} is another data set than it had; prepare that"
            f" one again, or fine-tune on this one (--init_from={start.path.parent} --out_dir=...)"
        )
    if data.tokenizer.sha256 != start.record["tokenizer_sha256"]:
        there, own = start.record["config"], start.path.with_name(TOKENIZER)  # an export's
        if start.path.suffix == ".pt":
            own = Path(there["data_dir"]) / there["dataset"] / "tokenizer.json"
        raise UserError(
            f"{data.path} has another tokenizer than {start.path}: prepare it under another name"
            f" with --tokenizer={own}, and pass that name as --dataset"
        )
    if start.resuming and base:
        was = (start.record.get("base") or {"out_dir": "scratch"})["out_dir"]
        if os.path.realpath(was) != os.path.realpath(configurator.local_path(base)):
            raise UserError(
                f"cannot resume {start.path}: it started from {was}, not from {base};"
                " --init_from=resume goes on with it"
            )


def refuse_to_overwrite(out_dir: Path, init_from: str) -> None:
    """Raise UserError if a new run would write over the checkpoints of one that is there."""
    there = [name for name in ("last.pt", "best.pt") if (out_dir / name).is_file()]
    if there and not start_of(init_from)[0]:
        raise UserError(
            f"{out_dir} holds a run already ({', '.join(there)}): go on with it"
            " (--init_from=resume), write elsewhere (--out_dir=...), or delete it"
        )


def check_unchanged(out_dir: Path, start: Start | None) -> None:
    """Raise UserError if a run has written to `out_dir`, locked by now, since `start` was read."""
    last = out_dir / "last.pt"  # which no run is without once it has written
    seen = start.record["checkpoint_sha256"] if start and start.resuming else None
    if seen != (file_sha256(last) if last.is_file() else None):
        raise UserError(f"another run has written to {out_dir} meanwhile: run the command again")


def configure_run(cls: Any, argv: Sequence[str]) -> tuple[Any, Start | None]:
    """What `argv` and the checkpoint that it names say, as a `cls`, and where the run starts."""
    given = given_values(cls, argv)
    files = configurator.config_files(cls, argv)
    if not given.get("out_dir"):
        given["out_dir"] = f"out/{Path(files[-1]).stem}" if files else "out"
    for path in (Path(given["out_dir"], name) for name in ("last.pt", "best.pt")):
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no file: a run writes its checkpoint there; move it away")
    start = find_start(given.get("init_from", "scratch"), Path(given["out_dir"]))
    inherited: dict[str, Any] = {}
    if start:
        whole = start.resuming or not files
        inherited = dataclasses.asdict(start.settings(cls if whole else GPTConfig))
    if start and start.resuming:
        config = build(cls, inherited | given)
        command_line = given_values(cls, [word for word in argv if word not in files])
        return config, start.resumed(config, command_line)
    if start:
        check_architecture(start.path, dataclasses.asdict(start.settings(GPTConfig)), given)
    if "max_steps" in given:
        inherited.pop("warmup_steps", None)  # it may not fit
    config = build(cls, inherited | given)
    refuse_to_overwrite(Path(config.out_dir), config.init_from)
    return config, start


def for_data(config: Any, data: DataSet, processes: int = 1) -> Any:
    """A TrainConfig with the vocabulary of `data`; UserError for all that now clashes."""
    problems = []
    if config.vocab_size not in (0, data.vocab_size):
        problems.append(f"vocab_size={config.vocab_size}, but {data.path} has {data.vocab_size}")
    if config.batch_size % processes:
        problems.append(
            f"batch_size={config.batch_size} cannot be shared by {processes} processes:"
            f" make it a multiple of {processes}"
        )
    config = dataclasses.replace(config, vocab_size=data.vocab_size)
    refuse(problems or config.problems())
    check_memory(config)
    # Both raise UserError if there are too few tokens for one window.
    TrainingData(data.rows("train", config.block_size), config.batch_size, config.seed)
    validation_numbers(data.rows("val", config.block_size), config.eval_tokens)
    return config


def starting_table(config: GPTConfig, data: DataSet) -> tuple[Tensor, str]:
    """The table (V, n_embd / compression) that a new run starts with, from the run `table_of`.

    It holds the first principal components of the input vectors of that run's best checkpoint,
    whose SHA-256 comes with it, centred over the vocabulary and scaled together to the standard
    deviation `table_std`.
    """
    model, record, _ = load_model(Path(config.table_of) / "best.pt")
    width, there = config.n_embd // config.compression, model.config.n_embd
    if record["tokenizer_sha256"] != data.tokenizer.sha256:
        raise UserError(
            f"table_of={config.table_of!r}: that run has another tokenizer than {data.path};"
            " name a run that was trained on this data set"
        )
    if width > there:
        raise UserError(
            f"table_of={config.table_of!r}: vectors of width {there} do not have {width} principal"
            f" components; raise --compression, to {-(-config.n_embd // there)} or more"
        )
    vectors = model.input_vectors().double()
    vectors -= vectors.mean(dim=0)
    axes = torch.linalg.eigh(vectors.T @ vectors).eigenvectors  # by variance, the least first
    table = vectors @ axes[:, -width:].flip(1)
    return (table * (config.table_std / table.std())).float(), record["checkpoint_sha256"]


def memory_needed(config: Any, processes: int = 1) -> int:
    """Bytes that a step of `config`, a TrainConfig, holds at its peak in one of `processes`.

    An estimate for GPUs, within a tenth. With `recompute` a layer keeps its input alone.
    """
    with torch.device("meta"):
        model = GPT(config)
    tensors = [*model.parameters(), *model.buffers()]
    trained = sum(tensor.numel() for tensor in tensors if tensor.requires_grad)
    stored = sum(tensor.nbytes for tensor in tensors if not tensor.requires_grad)  # as by `frozen`
    half = config.dtype == "bfloat16"
    # weight, gradient and AdamW's two moments; what DDP adds; the copy that autocast makes
    weights = stored + trained * (16 + 4 * (processes > 1) + 2 * half)
    # In a layer, for each token and position of the width: the states before and after each norm,
    # queries, keys, values and their mix, and the four times wider states of the MLP.
    tokens = config.batch_size // processes * config.block_size
    of_layer = 38 if half else 64
    layers = 4 * config.n_layer + of_layer if config.recompute else of_layer * config.n_layer
    states = tokens * config.n_embd * layers
    # The loss: logits, their copy in bfloat16, and the gradients of the head and its input.
    logits = min(tokens * config.vocab_size * 4, LOGITS_BYTES)
    gradients = (config.vocab_size + tokens) * config.n_embd * 4
    return int(weights + states + logits * (1.5 if half else 1) + gradients)


def check_memory(config: Any) -> None:
    """Raise UserError if this machine is far from holding the weights, or its CPU a step."""
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not said, as on Windows
        return
    # GPUs have a memory of their own, but the weights are made here, and the numbers of a step's
    # sequences drawn.
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    on_cpu = config.device == "cpu" or not gpu
    needed = memory_needed(config) if on_cpu else 8 * count_parameters(config)[0]
    needed += 48 * config.batch_size * config.gradient_accumulation_steps
    if needed > 2 * there:
        raise UserError(
            f"a step needs about {needed / 1e9:,.0f} GB, and this machine has {there / 1e9:,.0f}:"
            " make n_layer, n_embd, batch_size, block_size or gradient_accumulation_steps smaller"
        )
