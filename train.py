"""Train a GPT: one process, or one a GPU under torchrun.

    python train.py                                             # 5 minutes on two CPU cores
    python train.py config/fixed32.py --seed=2 --out_dir=out/fixed32-s2
    torchrun --nproc_per_node=2 train.py config/fixed32.py      # the paper's run
    python train.py config/sft_default.py                       # fine-tune the first one

Everything a step computes follows from the configuration, the seed and the step's number: not
from the number of processes (up to rounding), nor from evaluations, nor from interruptions.
"""

import contextlib
import dataclasses
import math
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from inputcodes.checkpoint import (
    Metrics,
    Start,
    check_architecture,
    check_base,
    check_same_run,
    code_sha256,
    find_start,
    refuse_to_overwrite,
    sole_writer,
    write_checkpoint,
    write_run_json,
)
from inputcodes.configurator import UserError, build, given_values, names_where, run_main, setting
from inputcodes.dashboard import missing_package, open_dashboard
from inputcodes.data import Batch, DataSet, TrainingData
from inputcodes.distributed import Processes, Stop, Stopped, autocast, join_processes, one_cause
from inputcodes.memory import memory_report, peak_mb
from inputcodes.validation import Bigram, Evaluation, validate
from model import GPT, GPTConfig, count_parameters
from prepare_data import PrepareConfig, prepare
from sample import SampleConfig, write_on, write_sample

USAGE = "usage: python train.py [config/FILE.py ...] [--name=value ...]"
SAMPLE_TOKENS = 200  # of the sample that closes a run
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
        "scratch; the directory of a run, to fine-tune its best checkpoint, or of an export; or "
        "resume: go on from the last checkpoint in out_dir if there is one, else from what "
        "follows a comma (resume,out/fixed32) or from scratch",
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
    save_interval: float = setting(
        15.0,
        "minutes between checkpoints, besides those of evaluations",
        above=0,
        free_on_resume=True,
    )
    log_interval: int = setting(
        50, "steps between lines of metrics.jsonl", least=1, free_on_resume=True
    )
    log_to: str = setting(
        "none",
        "wandb or tensorboard: show the lines of metrics.jsonl there too",
        choices=("none", "wandb", "tensorboard"),
        free_on_resume=True,
    )
    device: str = setting(
        "auto", "cuda, mps or cpu; auto: the first of these there is", free_on_resume=True
    )
    dtype: str = setting(
        "float32",
        "float32, or bfloat16: autocast with float32 weights",
        choices=("float32", "bfloat16"),
    )
    matmul_precision: str = setting(
        "highest",
        "what products of float32 numbers may round to: highest, nothing; high, TF32 on CUDA; "
        "medium, bfloat16 on CPUs that have products for it (AMX), TF32 on CUDA",
        choices=("highest", "high", "medium"),
    )
    deterministic: bool = setting(
        False,
        "only algorithms that give the same bits every time, which CUDA needs for a resume bit for "
        "bit; slower there",
        free_on_resume=True,
    )
    compile: bool = setting(
        False, "torch.compile the model (needs a C++ compiler on a CPU)", free_on_resume=True
    )

    renamed: ClassVar[Mapping[str, str]] = {
        "tf32": "it is matmul_precision now (--matmul_precision=high for TF32)"
    }

    def problems(self) -> list[str]:
        """One sentence for every impossible value or combination."""
        found = super().problems()
        if self.warmup_steps >= self.max_steps:
            found.append(f"warmup_steps={self.warmup_steps}: max_steps={self.max_steps} is over")
        if self.min_lr > self.learning_rate:
            found.append(f"min_lr={self.min_lr} is above learning_rate={self.learning_rate}")
        if missing := missing_package(self.log_to):
            found.append(missing)
        return found

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.block_size * self.gradient_accumulation_steps

    def for_data(self, data: DataSet, processes: int = 1) -> "TrainConfig":
        """These settings with the vocabulary of `data`; UserError for all that now clashes."""
        found = []
        if self.vocab_size not in (0, data.vocab_size):
            found.append(f"vocab_size={self.vocab_size}, but {data.path} has {data.vocab_size:,}")
        if self.batch_size % processes:
            found.append(
                f"batch_size={self.batch_size} cannot be shared by {processes} processes:"
                f" make it a multiple of {processes}"
            )
        config = dataclasses.replace(self, vocab_size=data.vocab_size)
        if found := found or config.problems():
            raise UserError("\n".join(found))
        return config


def learning_rate(step: int, config: TrainConfig) -> float:
    """The learning rate of step 0, 1, ..., max_steps - 1."""
    # 1. linear warm-up
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    # 2. cosine from the peak down to min_lr, which the step after the last would have
    done = (step - config.warmup_steps) / (config.max_steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * done))
    return config.min_lr + cosine * (config.learning_rate - config.min_lr)


class Trainer:
    """A run: model, optimizer, data, and what has been done so far."""

    def __init__(
        self, config: TrainConfig, data: DataSet, processes: Processes, start: Start | None = None
    ) -> None:
        self.config, self.data, self.processes = config, data, processes
        self.out_dir = Path(config.out_dir)
        device = processes.device
        self.raw_model = GPT(config, config.seed, data.tokenizer.texts()).to(device)
        self.optimizer = make_optimizer(self.raw_model, config)
        self.rows = TrainingData(
            data.rows("train", config.block_size), config.batch_size, config.seed
        )
        self.bigram = Bigram(self.rows, config.vocab_size)
        self.step, self.best_loss, self.result = 0, math.inf, Evaluation(math.nan, math.nan)
        self.started = self.saved_at = time.perf_counter()
        self.interrupted: dict[str, Any] | None = None  # the line of a stopped evaluation
        self.base = start.base if start else None
        if start:
            self._load(start)
        self.model: Any = torch.compile(self.raw_model) if config.compile else self.raw_model
        if processes.world > 1:
            ids = [device.index] if device.type == "cuda" else None
            self.model = DistributedDataParallel(self.model, ids, gradient_as_bucket_view=True)
        self.stop = Stop(processes)

    def _load(self, start: Start) -> None:
        """Take the weights of a checkpoint, and what else it holds if it is this run's own."""
        tensors, record = start.tensors, start.record
        if start.resuming:
            check_same_run(
                start.path, record, self.record(), names_where(TrainConfig, "free_on_resume")
            )
        self.raw_model.load_state_dict(tensors["model"])
        if not start.resuming:
            return
        self.optimizer.load_state_dict(tensors["optimizer"])
        self.step, self.best_loss = record["step"], record["best_val_loss"]
        self.started -= record["elapsed_s"]
        self.interrupted = record.get("interrupted")

    @property
    def elapsed_s(self) -> float:
        """Seconds of this run, those before an interruption included."""
        return round(time.perf_counter() - self.started, 3)

    def record(self) -> dict[str, Any]:
        """What a checkpoint says of itself besides its tensors."""
        return {
            "step": self.step,
            "tokens": self.step * self.config.tokens_per_step,
            "best_val_loss": self.best_loss,
            "elapsed_s": self.elapsed_s,
            "interrupted": self.interrupted,
            "config": dataclasses.asdict(self.config),
            "base": self.base,
            "chat": self.data.chat,
            "tokenizer": self.data.tokenizer.to_json(),
            "tokenizer_sha256": self.data.tokenizer.sha256,
            "data_sha256": self.data.sha256,
            "code_sha256": code_sha256(),
        }

    def save(self, name: str) -> None:
        """Write `last` (all that resuming needs) or `best` (weights alone)."""
        self.saved_at = time.perf_counter()
        if not self.processes.first:
            return
        tensors: dict[str, Any] = {"model": self.raw_model.state_dict()}
        if name == "last":
            tensors["optimizer"] = self.optimizer.state_dict()
        write_checkpoint(self.out_dir / f"{name}.pt", tensors, self.record())

    def train_step(self, batches: Iterator[Batch]) -> tuple[float, float]:
        """One weight update; the mean loss over the step's targets and the gradient's norm.

        The mean is over all targets of the step that have a loss, in whichever micro-step or
        process they are. Raises on every process, before the update, UserError if either is not
        finite and Stopped if the run was asked to stop.
        """
        config, accumulate = self.config, self.config.gradient_accumulation_steps
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, config)
        # With several processes gradients are views of DDP's buckets, and None would make it hold
        # both.
        self.optimizer.zero_grad(set_to_none=self.processes.world == 1)
        targets = self.rows.targets(self.step * accumulate, accumulate)
        loss_sum = torch.zeros((), device=self.processes.device)
        for micro_step in range(accumulate):
            self.stop.check()
            last = micro_step == accumulate - 1
            no_sync = self.processes.world > 1 and not last  # one all-reduce a step
            with self.model.no_sync() if no_sync else contextlib.nullcontext():
                batch = next(batches)
                # Processes average their gradients, so the loss is of a share of 1 / parts.
                parts = targets / (max(batch.targets, 1) * self.processes.world)
                with autocast(config.dtype, self.processes.device):
                    loss = self.model(batch.x, batch.y, batch.layout) / parts
                loss.backward()
                loss_sum += loss.detach()
        limit = config.grad_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.raw_model.parameters(), limit)
        # The one wait for the device in a step.
        loss_total, grad_norm = torch.stack((self.processes.sum(loss_sum), norm)).tolist()
        mean_loss = loss_total / self.processes.world
        if not (math.isfinite(mean_loss) and math.isfinite(grad_norm)):
            raise UserError(self._not_finite(mean_loss, grad_norm))
        self.optimizer.step()
        self.step += 1
        return mean_loss, grad_norm

    def _not_finite(self, loss: float, grad_norm: float) -> str:
        last = self.out_dir / "last.pt"
        advice = (
            f"the last good checkpoint is {last} (a lower learning_rate may help)"
            if last.is_file()
            else "there is no checkpoint yet (try a lower learning_rate)"
        )
        return (
            f"step {self.step + 1}: loss {loss}, gradient norm {grad_norm}: stopped before the"
            f" update; {advice}"
        )

    def evaluate(self) -> Evaluation:
        """The validation result of the weights as they are."""
        config, processes = self.config, self.processes
        batch_size = config.batch_size // processes.world
        self.bigram.count(self.step * config.batch_size * config.gradient_accumulation_steps)
        return validate(
            self.raw_model,
            self.data,
            config.eval_tokens,
            batch_size,
            processes,
            config.dtype,
            self.bigram,
        )

    def run(self, metrics: Metrics | None, progress: tqdm) -> None:
        """Train to the end; log, evaluate and save on the way. Raises Stopped if asked to stop."""
        config = self.config
        first = self.step * config.gradient_accumulation_steps
        batches = self.rows.batches(first, self.processes)
        steps, seconds = 0, 0.0  # since the last log line, without evaluations
        if self.interrupted:
            self.log(self.interrupted, True, metrics, progress)
        while self.step < config.max_steps:
            started = time.perf_counter()
            loss, grad_norm = self.train_step(batches)
            progress.update()
            steps, seconds = steps + 1, seconds + time.perf_counter() - started
            evaluating = self.step % config.eval_interval == 0 or self.step == config.max_steps
            if evaluating or self.step % config.log_interval == 0:
                speed = steps * config.tokens_per_step / seconds
                steps, seconds = 0, 0.0
                progress.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s")
                self.log(self.log_line(loss, grad_norm, speed), evaluating, metrics, progress)
            if time.perf_counter() - self.saved_at > 60 * config.save_interval:
                self.save("last")

    def log(
        self, line: dict[str, Any], evaluating: bool, metrics: Metrics | None, progress: tqdm
    ) -> None:
        """Write a line of metrics; when `evaluating` add the validation result and save."""
        if evaluating:
            self.interrupted = line  # if Stopped is raised
            self.result = self.evaluate()
            self.interrupted = None
            progress.write(f"step {self.step:>6,}: {self.result}")
            line |= self.result.as_metrics()
            line["peak_mb"] = round(peak_mb(self.processes.device), 1)
        if metrics:
            metrics.write(line)
        if evaluating:
            self.keep()

    def log_line(self, loss: float, grad_norm: float, tokens_per_s: float) -> dict[str, Any]:
        """What metrics.jsonl says of the step just done; all but the times follow from the seed."""
        return {
            "step": self.step,
            "tokens": self.step * self.config.tokens_per_step,
            "elapsed_s": self.elapsed_s,
            "train_loss": loss,
            "lr": learning_rate(self.step - 1, self.config),
            "grad_norm": grad_norm,
            "tokens_per_s": round(tokens_per_s, 1),
        }

    def keep(self) -> None:
        """Save the weights as `last`, and as `best` if no evaluation was better."""
        if self.result.loss < self.best_loss:
            self.best_loss = self.result.loss
            self.save("best")
        self.save("last")


def make_optimizer(model: GPT, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves the scales of the norms alone."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in weights if w.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True
    )


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
    refuse_to_overwrite(Path(config.out_dir), config.init_from)
    return config, start


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
    data = DataSet(path, verify=processes.first)
    processes.wait()
    return data


def describe(trainer: Trainer) -> str:
    """The run in lines of at most 80 columns."""
    config, data = trainer.config, trainer.data
    total, inputs = count_parameters(config)
    tokens = config.max_steps * config.tokens_per_step
    epochs = tokens / config.block_size / trainer.rows.rows.count
    start = "writing to"
    if trainer.step:
        start = f"going on from step {trainer.step:,} of"
    elif trainer.base:
        start = f"fine-tuning {trainer.base['out_dir']} as of step {trainer.base['step']:,} in"
    elif config.init_from != "scratch":
        start = "no checkpoint to resume yet: starting anew in"
    return f"""\
model:  {config.input_layer} input, {inputs:,} of {total:,} parameters in the input layer
data:   {data.path}, V={data.vocab_size:,}
        {trainer.rows.rows} to train on
        {data.rows("val", config.block_size)} to validate
recipe: {config.max_steps:,} steps x {config.tokens_per_step:,} tokens = {tokens:,} \
({epochs:.2f} epochs)
{memory_report(config, trainer.processes)}
{start} {config.out_dir}"""


def show_sample(trainer: Trainer) -> None:
    """Print a text, or the reply to the first prompt of the validation data."""
    model, tokenizer = trainer.raw_model, trainer.data.tokenizer
    sample = SampleConfig(max_new_tokens=SAMPLE_TOKENS, dtype=trainer.config.dtype)
    if not trainer.data.chat:
        write_sample(model, tokenizer, sample, 0)
        return
    tokens = trainer.data.val.shards[0].tolist()
    prompt = tokens[: tokens.index(tokenizer.special["<|assistant|>"]) + 1]
    print(tokenizer.decode(prompt), end="")
    write_on(model, tokenizer, prompt, sample, 0)


def close(trainer: Trainer, argv: list[str]) -> None:
    """Print how the run ended, a short sample, and what to try next."""
    config = trainer.config
    if trainer.step < config.max_steps or trainer.interrupted:
        print(f"stopped after step {trainer.step:,} and saved; the same command and")
        print("--init_from=resume go on from there")
        return
    print(f"\ndone after {trainer.elapsed_s / 60:.1f} minutes: {trainer.result}")
    print("a sample:")
    show_sample(trainer)
    next_sample = "--chat" if trainer.data.chat else "--prompt='import '"
    next_run = ""
    if not trainer.base:
        other = "learned" if config.input_layer != "learned" else "fixed"
        changed = ("--input_layer", "--out_dir", "--init_from")
        words = [word for word in argv if not word.startswith(changed)]
        words += [f"--input_layer={other}", f"--out_dir={config.out_dir}/{other}"]
        next_run = f"\n      python train.py {' '.join(words)}"
    print(f"""
next: python sample.py --out_dir={config.out_dir} {next_sample}
      python evaluate.py --out_dir={config.out_dir}{next_run}""")


def main(argv: list[str]) -> None:
    """Train as `argv` says; see the module's docstring."""
    config, start = configure_run(argv)
    stopped = 0  # the signal that ended the run before its time
    with join_processes(
        config.device,
        dtype=config.dtype,
        matmul_precision=config.matmul_precision,
        deterministic=config.deterministic,
    ) as processes:
        data = open_data(config, processes)
        check_base(start, data, config.init_from, Path(config.data_dir))
        config = config.for_data(data, processes.world)
        trainer = Trainer(config, data, processes, start)
        del start  # its tensors are in the trainer now
        first = processes.first
        if trainer.step >= config.max_steps and not trainer.interrupted:
            if first:
                print(f"{config.out_dir} holds this run already, all {trainer.step:,} steps of it")
            return
        with sole_writer(trainer.out_dir) if first else contextlib.nullcontext():
            metrics = None
            if first:
                print(describe(trainer), flush=True)
                write_run_json(trainer.out_dir, trainer.record(), processes.device)
                show = open_dashboard(config.log_to, trainer.out_dir, trainer.step)
                metrics = Metrics(trainer.out_dir / "metrics.jsonl", trainer.step, show)
            bar = {"total": config.max_steps, "initial": trainer.step, "unit": "step", "ncols": 80}
            with trainer.stop.listening(), tqdm(**bar, disable=not first) as progress:
                try:
                    trainer.run(metrics, progress)
                except Stopped:
                    trainer.save("last")
                    stopped = trainer.stop.signal
        if first:
            close(trainer, argv)
    if stopped:
        sys.exit(128 + stopped)  # as a shell reports the end by a signal


if __name__ == "__main__":
    with one_cause():
        run_main(main, TrainConfig, USAGE)
