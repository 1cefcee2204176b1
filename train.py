"""Train a GPT: one process, or one a GPU under torchrun.

    python train.py                                             # 5 minutes on two CPU cores
    python train.py config/fixed32.py --seed=2 --out_dir=out/fixed32-s2
    torchrun --nproc_per_node=2 train.py config/fixed32.py      # the paper's run

Everything a step computes follows from the configuration, the seed and the step's number: not
from the number of processes (up to rounding), nor from evaluations, nor from interruptions.
"""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from checkpoint import Metrics, code_sha256, read_checkpoint, write_checkpoint, write_run_json
from configurator import UserError, configure, help_text, run_main, setting
from data import BatchOrder, DataSet, training_batches
from evaluate import Evaluation, autocast, validate
from model import GPT, GPTConfig, count_parameters
from prepare_data import PrepareConfig, prepare
from processes import Processes, join_processes
from sample import SampleConfig, write_sample

DEFAULT_CONFIG = "config/default.py"
SAMPLE_TOKENS = 200  # of the sample that closes a run
USAGE = "usage: python train.py [config/FILE.py ...] [--name=value ...]"

LEAST = {
    "batch_size": 1, "gradient_accumulation_steps": 1, "max_steps": 1, "eval_interval": 1,
    "log_interval": 1, "seed": 0, "learning_rate": 0, "min_lr": 0, "warmup_steps": 0,
    "weight_decay": 0, "grad_clip": 0, "eval_tokens": 0,
}  # fmt: skip
CHOICES = {"init_from": ("scratch", "resume"), "dtype": ("float32", "bfloat16")}

# What says where and how fast a run goes, not what it computes: resuming may change these alone.
FREE_TO_CHANGE = {
    "data_dir", "out_dir", "init_from", "eval_interval", "eval_tokens", "log_interval", "device",
    "compile",
}  # fmt: skip


@dataclass(frozen=True)
class TrainConfig(GPTConfig):
    """A training run. Batch sizes are global: the number of processes divides them."""

    dataset: str = setting("stdlib", "directory under data_dir made by prepare_data.py")
    data_dir: str = setting("data", "where data sets are")
    out_dir: str = setting("", "where the run is written; empty: out/NAME for config/NAME.py")
    init_from: str = setting(
        "scratch", "scratch, or resume: go on from the last checkpoint in out_dir if there is one"
    )
    seed: int = setting(1, "initial weights and batch order; at least 0")
    batch_size: int = setting(16, "sequences a micro-step, over all processes")
    gradient_accumulation_steps: int = setting(1, "micro-steps a step")
    max_steps: int = setting(1000, "steps (weight updates) of the run")
    learning_rate: float = setting(1e-3, "peak learning rate of AdamW")
    min_lr: float = setting(1e-4, "learning rate at the end of the cosine")
    warmup_steps: int = setting(100, "steps of linear warm-up")
    weight_decay: float = setting(0.1, "on matrices only")
    beta1: float = setting(0.9, "AdamW: decay of the mean of gradients")
    beta2: float = setting(0.95, "AdamW: decay of the mean of squared gradients")
    grad_clip: float = setting(1.0, "largest norm of the gradient; 0 clips nothing")
    eval_interval: int = setting(250, "steps between evaluations, each followed by a checkpoint")
    eval_tokens: int = setting(0, "validation tokens an evaluation; 0: all")
    log_interval: int = setting(10, "steps between lines of metrics.jsonl")
    device: str = setting("auto", "cuda, mps or cpu; auto: the first of these there is")
    dtype: str = setting("float32", "float32, or bfloat16: autocast with float32 weights")
    tf32: bool = setting(False, "CUDA: let float32 products round to TF32")
    compile: bool = setting(False, "torch.compile the model (needs a C++ compiler on a CPU)")

    def problems(self) -> list[str]:
        """One sentence for every impossible value or combination."""
        found = super().problems()
        for name, least in LEAST.items():
            if not least <= getattr(self, name) < math.inf:
                found.append(f"{name}={getattr(self, name)}: expected at least {least}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                found.append(f"{name}={getattr(self, name)}: expected 0 <= {name} < 1")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                found.append(f"{name}={getattr(self, name)!r}: expected {' or '.join(known)}")
        if self.warmup_steps >= self.max_steps:
            found.append(f"warmup_steps={self.warmup_steps}: max_steps={self.max_steps} is over")
        if self.min_lr > self.learning_rate:
            found.append(f"min_lr={self.min_lr} is above learning_rate={self.learning_rate}")
        return found

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.block_size * self.gradient_accumulation_steps


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

    def __init__(self, config: TrainConfig, data: DataSet, processes: Processes) -> None:
        self.config, self.data, self.processes = config, data, processes
        self.out_dir = Path(config.out_dir)
        device = processes.device
        self.raw_model = GPT(config, config.seed).to(device)
        self.optimizer = make_optimizer(self.raw_model, config)
        self.order = BatchOrder(data.train.tokens, config.block_size, config.seed)
        self.step, self.best_loss, self.result = 0, math.inf, Evaluation(math.nan, math.nan)
        self.started = time.perf_counter()
        if config.init_from == "resume":
            self._load_last()
        self.model: Any = torch.compile(self.raw_model) if config.compile else self.raw_model
        if processes.world > 1:
            ids = [device.index] if device.type == "cuda" else None
            self.model = DistributedDataParallel(
                self.model, ids, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        self.stop_asked = False  # of this process, by a signal
        self.stopping = False  # agreed by all processes

    def _load_last(self) -> None:
        """Go on from `last.pt`, if there is one yet."""
        path = self.out_dir / "last.pt"
        if not path.is_file():
            return
        tensors, record = read_checkpoint(path)
        check_same_run(path, record, self.record())
        self.raw_model.load_state_dict(tensors["model"])
        self.optimizer.load_state_dict(tensors["optimizer"])
        self.step, self.best_loss = record["step"], record["best_val_loss"]
        self.started -= record["elapsed_s"]

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
            "config": dataclasses.asdict(self.config),
            "tokenizer": self.data.tokenizer.to_json(),
            "tokenizer_sha256": self.data.tokenizer.sha256,
            "data_sha256": self.data.sha256,
            "code_sha256": code_sha256(),
        }

    def save(self, name: str) -> None:
        """Write `last` (all that resuming needs) or `best` (weights alone)."""
        if not self.processes.first:
            return
        tensors: dict[str, Any] = {"model": self.raw_model.state_dict()}
        if name == "last":
            tensors["optimizer"] = self.optimizer.state_dict()
        write_checkpoint(self.out_dir / f"{name}.pt", tensors, self.record())

    def train_step(self, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[float, float]:
        """One weight update; the mean loss over the step's tokens and the gradient's norm.

        Raises UserError on every process, before the update, if either is not finite.
        """
        config, accumulate = self.config, self.config.gradient_accumulation_steps
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, config)
        loss_sum = torch.zeros((), device=self.processes.device)
        for micro_step in range(accumulate):
            last = micro_step == accumulate - 1
            no_sync = self.processes.world > 1 and not last  # one all-reduce a step
            with self.model.no_sync() if no_sync else contextlib.nullcontext():
                x, y = next(batches)
                with autocast(config.dtype, self.processes.device):
                    loss = self.model(x, y) / accumulate
                loss.backward()
                loss_sum += loss.detach()
        limit = config.grad_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.raw_model.parameters(), limit)
        shared = self.processes.sum(torch.stack((loss_sum, loss_sum.new_tensor(self.stop_asked))))
        # The one wait for the device in a step.
        loss_total, stop, grad_norm = torch.cat((shared, norm.view(1))).tolist()
        mean_loss = loss_total / self.processes.world
        if not (math.isfinite(mean_loss) and math.isfinite(grad_norm)):
            raise UserError(self._not_finite(mean_loss, grad_norm))
        self.stopping = stop > 0  # a signal to one process stops all after the same step
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
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
        return validate(
            self.raw_model, self.data, config.eval_tokens, batch_size, processes, config.dtype
        )

    def run(self, metrics: Metrics | None, progress: tqdm) -> None:
        """Train to the end or to a signal; log, evaluate and save on the way."""
        config = self.config
        first = self.step * config.gradient_accumulation_steps
        batches = training_batches(
            self.data.train, self.order, config.batch_size, first, self.processes
        )
        steps, seconds = 0, 0.0  # since the last log line, without evaluations
        while self.step < config.max_steps and not self.stopping:
            started = time.perf_counter()
            loss, grad_norm = self.train_step(batches)
            progress.update()
            steps, seconds = steps + 1, seconds + time.perf_counter() - started
            evaluating = self.step % config.eval_interval == 0 or self.step == config.max_steps
            if not evaluating and self.step % config.log_interval:
                continue
            speed = steps * config.tokens_per_step / seconds
            steps, seconds = 0, 0.0
            progress.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s")
            line = self.log_line(loss, grad_norm, speed)
            if evaluating:
                self.result = self.evaluate()
                progress.write(f"step {self.step:>6,}: {self.result}, {speed:,.0f} tokens/s")
                line |= self.result.as_metrics()
            if metrics:
                metrics.write(line)
            if evaluating:
                self.keep()
        if self.stopping:
            self.save("last")

    def log_line(self, loss: float, grad_norm: float, tokens_per_s: float) -> dict[str, float]:
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


@contextlib.contextmanager
def finishing_the_step(trainer: Trainer) -> Iterator[None]:
    """SIGTERM and Ctrl-C stop `trainer` after the step it is in, on all processes."""

    def stop(*_: object) -> None:
        trainer.stop_asked = True

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


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


def check_same_run(path: Path, was: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise UserError, naming all that differs, unless `path` is a checkpoint of this very run."""
    found = [
        f"{name}: {was['config'].get(name)!r} there, {value!r} now"
        for name, value in now["config"].items()
        if name not in FREE_TO_CHANGE and was["config"].get(name) != value
    ]
    found += [
        f"{name}: another {what} than the checkpoint's"
        for name, what in (("tokenizer_sha256", "tokenizer"), ("data_sha256", "data set"))
        if was[name] != now[name]
    ]
    if found:
        raise UserError(f"cannot resume {path} with another recipe: " + "; ".join(found))


def open_data(config: TrainConfig, processes: Processes) -> DataSet:
    """The data set of the run; the embedded one is prepared on first use."""
    path = Path(config.data_dir) / config.dataset
    embedded = PrepareConfig(data_dir=config.data_dir)
    if config.dataset == embedded.dataset and not (path / "meta.json").is_file():
        if processes.first:
            prepare(embedded)
        processes.wait()
    return DataSet(path, verify=processes.first)


def refuse_to_overwrite(config: TrainConfig) -> None:
    """Raise UserError if a run from scratch would write over one that is there."""
    out_dir = Path(config.out_dir)
    there = [name for name in ("last.pt", "best.pt", "run.json") if (out_dir / name).is_file()]
    if config.init_from == "scratch" and there:
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


def describe(trainer: Trainer) -> str:
    """The run in lines of at most 80 columns."""
    config, data = trainer.config, trainer.data
    total, inputs = count_parameters(config)
    tokens = config.max_steps * config.tokens_per_step
    start = f"going on from step {trainer.step:,} of" if trainer.step else "writing to"
    if config.init_from == "resume" and not trainer.step:
        start = "no checkpoint to resume yet: starting anew in"
    return f"""\
model:  {config.input_layer} input, {inputs:,} of {total:,} parameters in the input layer
data:   {data.path}, V={data.vocab_size:,}: {data.train.tokens:,} tokens to train on, \
{data.val.tokens:,} to validate
recipe: {config.max_steps:,} steps x {config.tokens_per_step:,} tokens = {tokens:,} \
({tokens / data.train.tokens:.2f} epochs)
{start} {config.out_dir}"""


def close(trainer: Trainer, argv: list[str]) -> None:
    """Print how the run ended, a short sample, and what to try next."""
    config = trainer.config
    if trainer.step < config.max_steps:
        print(f"stopped after step {trainer.step:,} and saved; the same command and")
        print("--init_from=resume go on from there")
        return
    print(f"\ndone after {trainer.elapsed_s / 60:.1f} minutes: {trainer.result}")
    print("a sample:")
    sample = SampleConfig(max_new_tokens=SAMPLE_TOKENS, dtype=config.dtype)
    write_sample(trainer.raw_model, trainer.data.tokenizer, sample, 0)
    other = "learned" if config.input_layer != "learned" else "fixed"
    changed = ("--input_layer", "--out_dir", "--init_from")
    words = [word for word in argv if not word.startswith(changed)]
    words += [f"--input_layer={other}", f"--out_dir={config.out_dir}/{other}"]
    print(f"""
next: python sample.py --out_dir={config.out_dir} --prompt='import '
      python evaluate.py --out_dir={config.out_dir}
      python train.py {" ".join(words)}""")


def main(argv: list[str]) -> None:
    """Train as `argv` says; see the module's docstring."""
    if {"-h", "--help"} & set(argv):
        print(help_text(TrainConfig, USAGE))
        return
    config = configure(TrainConfig, argv, DEFAULT_CONFIG)
    if not config.out_dir:
        files = [DEFAULT_CONFIG, *(word for word in argv if not word.startswith("-"))]
        config = dataclasses.replace(config, out_dir=f"out/{Path(files[-1]).stem}")
    refuse_to_overwrite(config)
    with join_processes(config.device, config.tf32) as processes:
        data = open_data(config, processes)
        config = resolve(config, data, processes.world)
        trainer = Trainer(config, data, processes)
        if trainer.step >= config.max_steps:
            print(f"{config.out_dir} holds this run already, all {trainer.step:,} steps of it")
            return
        metrics = None
        if processes.first:
            print(describe(trainer), flush=True)
            write_run_json(Path(config.out_dir), trainer.record(), processes.device)
            metrics = Metrics(Path(config.out_dir) / "metrics.jsonl", trainer.step)
        bar = {"total": config.max_steps, "initial": trainer.step, "unit": "step", "ncols": 80}
        with finishing_the_step(trainer), tqdm(**bar, disable=not processes.first) as progress:
            trainer.run(metrics, progress)
        if processes.first:
            close(trainer, argv)


if __name__ == "__main__":
    run_main(main)
