"""Train a GPT: in one process, or one per GPU under torchrun.

    python train.py                                             # 4 to 8 minutes on two CPU cores
    python train.py config/fixed32.py --seed=2 --out_dir=out/fixed32-s2
    torchrun --nproc_per_node=2 train.py config/fixed32.py      # the paper's run
    python train.py config/sft_default.py                       # fine-tune the first one

Everything a step computes follows from the configuration, the seed and the step's number: not
from the number of processes (up to rounding), nor from evaluations, nor from interruptions.
"""

import inputcodes  # noqa: F401  # isort: skip  # before PyTorch: Ctrl-C while it loads
import contextlib
import copy
import dataclasses
import functools
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.nn.parallel import DistributedDataParallel

from inputcodes import distributed, resume
from inputcodes.checkpoint import Metrics, code_sha256, write_checkpoint, write_run_json
from inputcodes.configurator import run_main, setting
from inputcodes.data import Batch, DataSet, TrainingData
from inputcodes.distributed import Processes, Stop, Stopped, autocast, join_processes, one_cause
from inputcodes.files import locked
from inputcodes.progress import Progress, close, describe, not_finite, open_dashboard
from inputcodes.resume import Start
from inputcodes.validation import Bigram, Evaluation, validate
from model import GPT, GPTConfig
from prepare_data import prepare_missing

USAGE = "usage: python train.py [config/FILE.py ...] [--name=value ...]"
# Settings that a resumed run may have other values of: any, or those that the command line says.
free = functools.partial(setting, free_on_resume=True)
changeable = functools.partial(setting, explicit_on_resume=True)


@dataclass(frozen=True)
class TrainConfig(GPTConfig):
    """A training run. Batch sizes are global: the number of processes divides them."""

    # data and places
    dataset: str = setting("stdlib", "folder in data_dir made by prepare_data.py", is_path=True)
    data_dir: str = free("data", "folder of all data sets", is_path=True)
    out_dir: str = free("", "its folder; empty: out, or out/NAME of config/NAME.py", is_path=True)
    init_from: str = free(
        "scratch",
        "scratch; the folder of a run, to fine-tune its best checkpoint, or of an export; resume: "
        "the last checkpoint in out_dir if there is one, else what follows a comma "
        "(resume,out/fixed32) or scratch",
    )
    seed: int = setting(1, "initial weights and batch order", least=0, most=2**63 - 1)
    # batch_size x block_size x gradient_accumulation_steps = tokens per step
    batch_size: int = changeable(4, "sequences per micro-step, all processes", least=1, most=2**20)
    gradient_accumulation_steps: int = changeable(1, "micro-steps per step", least=1, most=2**20)
    max_steps: int = changeable(5600, "steps (weight updates) of the run", least=1, most=2**40)
    # optimizer and schedule
    learning_rate: float = changeable(2.5e-3, "peak learning rate of AdamW", least=0)
    min_lr: float = changeable(0.0, "learning rate at the end of the cosine", least=0)
    warmup_steps: int = changeable(200, "linear warm-up; short runs: a quarter of them", least=0)
    weight_decay: float = changeable(0.1, "on matrices only", least=0)
    beta1: float = changeable(0.9, "AdamW: decay of the mean of gradients", least=0, below=1)
    beta2: float = changeable(0.95, "AdamW: decay of their mean square", least=0, below=1)
    grad_clip: float = changeable(1.0, "largest norm of the gradient; 0 clips nothing", least=0)
    # evaluation and log
    eval_interval: int = free(1400, "steps between evaluations, each with a checkpoint", least=1)
    eval_tokens: int = changeable(0, "validation tokens per evaluation; 0: all", least=0)
    save_interval: float = free(15.0, "most minutes without a checkpoint", above=0)
    log_interval: int = free(50, "steps between lines of metrics.jsonl", least=1)
    log_to: str = free("none", "show metrics there too", choices=("none", "wandb", "tensorboard"))
    # arithmetic
    device: str = free("auto", "cuda, mps or cpu; auto: the first of these there is")
    dtype: str = changeable("float32", "bfloat16: by autocast", choices=("float32", "bfloat16"))
    matmul_precision: str = changeable(
        "highest",
        "what float32 products may round to: highest, nothing; high, TF32 on CUDA; medium, "
        "bfloat16 on CPUs that have products for it (AMX), TF32 on CUDA",
        choices=("highest", "high", "medium"),
    )
    deterministic: bool = free(False, "the same bits every time on CUDA too, which is slower there")
    recompute: bool = free(False, "recompute blocks in the backward pass: 1/3 of memory, 4/3 time")
    compile: bool = free(False, "torch.compile the model (needs a C++ compiler on a CPU)")

    renamed: ClassVar[Mapping[str, str]] = resume.OTHER_NAMES

    @classmethod
    def complete(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """`given` with a warm-up that fits into a short run, unless it has one."""
        quarter = max(0, given.get("max_steps", cls.max_steps) // 4)
        return {"warmup_steps": min(cls.warmup_steps, quarter), **given}

    def problems(self) -> list[str]:
        problems = super().problems()
        if 0 < self.max_steps <= self.warmup_steps:
            problems.append(
                f"warmup_steps ({self.warmup_steps:,}) must be smaller than max_steps"
                f" ({self.max_steps:,})"
            )
        if self.min_lr > self.learning_rate:
            problems.append(f"min_lr ({self.min_lr}) is above learning_rate ({self.learning_rate})")
        if not self.dataset:
            problems.append("dataset='': expected the name of a folder in data_dir")
        if self.log_to in ("wandb", "tensorboard") and not importlib.util.find_spec(self.log_to):
            problems.append(f"log_to={self.log_to!r} needs a package: pip install {self.log_to}")
        return problems

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
    def __init__(
        self, config: TrainConfig, data: DataSet, processes: Processes, start: Start | None = None
    ) -> None:
        self.config, self.data, self.processes = config, data, processes
        self.stop = Stop(processes)
        self.out_dir = Path(config.out_dir)
        device = processes.device
        self.raw_model = GPT(config, config.seed, data.tokenizer.texts()).to(device)
        self.raw_model.recompute = config.recompute
        self.optimizer = make_optimizer(self.raw_model, config)
        rows = data.rows("train", config.block_size)
        self.rows = TrainingData(rows, config.batch_size, config.seed)
        self.bigram = Bigram(self.rows, config.vocab_size)
        self.step, self.best_loss, self.result = 0, math.inf, Evaluation(math.nan, math.nan)
        self.started = self.saved_at = time.perf_counter()
        self.owed: dict[str, Any] | None = None  # the line of metrics that lacks its evaluation
        self.origin = start.origin if start else resume.ORIGIN
        self.resuming = bool(start and start.resuming)
        if start:
            self._load(start)
        elif config.input_layer == "compressed" and config.table_of:
            table, sha256 = resume.starting_table(config, data)
            self.origin = resume.ORIGIN | {"table_sha256": sha256}
            self.raw_model.input_layer.load_state_dict({"weight": table})
        if config.compile:
            distributed.check_compiler(device)
        self.model: Any = torch.compile(self.raw_model) if config.compile else self.raw_model
        if processes.world > 1:
            ids = [device.index] if device.type == "cuda" else None
            self.model = DistributedDataParallel(self.model, ids, gradient_as_bucket_view=True)

    def _load(self, start: Start) -> None:
        """Take the weights of a checkpoint, and what else it holds if it is this run's own."""
        start.load_weights(self.raw_model)
        if not self.resuming:
            return
        self.step, best = start.record["step"], start.best_weights()
        self.started -= start.record["elapsed_s"]
        self.owed = start.owed_evaluation(self.config, best is None)
        if best:
            self.best_loss = start.record["best_val_loss"]
            if any(change["name"] == "eval_tokens" for change in start.changes):
                # The losses to come are of other tokens: measure the best weights on those, too.
                self.raw_model.load_state_dict(best)
                self.best_loss = self.evaluate().loss
                start.load_weights(self.raw_model)
        # The moments of the checkpoint with the rates of the configuration, which may be new. A
        # copy: they are mapped from a file that will be replaced, which Windows forbids.
        moments = copy.deepcopy(start.tensors["optimizer"]["state"])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})

    @property
    def elapsed_s(self) -> float:
        """Seconds of this run, those before an interruption included."""
        return round(time.perf_counter() - self.started, 3)

    def record(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "tokens": self.step * self.config.tokens_per_step,
            "best_val_loss": self.best_loss,
            "elapsed_s": self.elapsed_s,
            "config": dataclasses.asdict(self.config),
            **self.origin,
            "chat": self.data.chat,
            "tokenizer": self.data.tokenizer.to_json(),
            "tokenizer_sha256": self.data.tokenizer.sha256,
            "data_sha256": self.data.sha256,
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
        # Under DDP gradients are views of its buckets; None would make it hold both.
        self.optimizer.zero_grad(set_to_none=self.processes.world == 1)
        targets = self.rows.targets(self.step * accumulate, accumulate)
        loss_sum = torch.zeros((), device=self.processes.device)
        for micro_step in range(accumulate):
            self.stop.check()
            last = micro_step == accumulate - 1
            no_sync = self.processes.world > 1 and not last  # one all-reduce per step
            with self.model.no_sync() if no_sync else contextlib.nullcontext():
                batch = next(batches)
                # The batch's part of the step's mean, times the processes that DDP averages over.
                parts = targets / (batch.targets * self.processes.world)
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
            raise not_finite(self, mean_loss, grad_norm)
        self.optimizer.step()
        self.step += 1
        return mean_loss, grad_norm

    def evaluate(self, tick: Callable[[], None] = lambda: None) -> Evaluation:
        config, processes, bigram = self.config, self.processes, self.bigram
        batch_size = config.batch_size // processes.world
        bigram.count(self.step * config.batch_size * config.gradient_accumulation_steps)
        model, data, stop = self.raw_model, self.data, self.stop
        return validate(
            model, data, config.eval_tokens, batch_size, processes, config.dtype, bigram, stop, tick
        )

    def run(self, metrics: Metrics | None, progress: Progress) -> None:
        """Train to the end; log, evaluate and save on the way. Raises Stopped if asked to stop."""
        config = self.config
        first = self.step * config.gradient_accumulation_steps
        batches = self.rows.batches(first, self.processes)
        steps, seconds = 0, 0.0  # since the last log line, without evaluations
        if self.owed:
            self.log(self.owed, True, metrics, progress)
        while self.step < config.max_steps:
            started = time.perf_counter()
            loss, grad_norm = self.train_step(batches)
            progress.step(loss)
            steps, seconds = steps + 1, seconds + time.perf_counter() - started
            evaluating = self.step % config.eval_interval == 0 or self.step == config.max_steps
            if evaluating or self.step % config.log_interval == 0:
                speed = steps * config.tokens_per_step / seconds
                steps, seconds = 0, 0.0
                progress.log(self.step, speed)
                line = {
                    "step": self.step,
                    "tokens": self.step * config.tokens_per_step,
                    "elapsed_s": self.elapsed_s,
                    "train_loss": loss,
                    "lr": learning_rate(self.step - 1, config),
                    "grad_norm": grad_norm,
                    "tokens_per_s": round(speed, 1),
                }
                self.log(line, evaluating, metrics, progress)
            if time.perf_counter() - self.saved_at > 60 * config.save_interval:
                self.save("last")

    def log(
        self, line: dict[str, Any], evaluating: bool, metrics: Metrics | None, progress: Progress
    ) -> None:
        """Write a line of metrics; when `evaluating` add the validation result and save."""
        if evaluating:
            self.owed = line  # if Stopped is raised
            self.result = self.evaluate(progress.evaluating)
            self.owed = None
            progress.evaluated(self.step, self.result)
            line |= self.result.as_metrics()
            line["peak_mb"] = round(distributed.peak_mb(self.processes.device), 1)
        if metrics:
            metrics.write(line)
        if evaluating:
            self.keep()

    def keep(self) -> None:
        """Save the weights as `last`, and as `best` if no evaluation was better."""
        better = self.result.loss < self.best_loss
        self.best_loss = min(self.best_loss, self.result.loss)
        if not (self.out_dir / "last.pt").is_file():
            self.save("last")  # first, so that there is never a best.pt alone
        if better:
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


def main(argv: list[str]) -> None:
    code_sha256()  # now, of the code as loaded: the minutes that data takes are time to edit it
    config, start = resume.configure_run(TrainConfig, argv)
    stopped = 0  # the signal that ended the run before its time
    with join_processes(
        config.device,
        dtype=config.dtype,
        matmul_precision=config.matmul_precision,
        deterministic=config.deterministic,
    ) as processes:
        if processes.first:
            prepare_missing(config.data_dir, config.dataset, config.vocab_size)
        processes.wait()
        data = DataSet(Path(config.data_dir) / config.dataset, verify=processes.first)
        processes.wait()
        resume.check_base(start, data, config.init_from)
        config, first = resume.for_data(config, data, processes.world), processes.first
        trainer = Trainer(config, data, processes, start)
        if start and trainer.step >= config.max_steps and not trainer.owed:
            if first:
                late = "".join(f"; {c['name']}={c['to']} comes too late" for c in start.changes)
                print(f"{config.out_dir} holds this run already, up to step {trainer.step:,}{late}")
                write_run_json(trainer.out_dir, trainer.record(), processes.device, mend=True)
            return
        advice = "wait for it to end, or choose another --out_dir"
        lock = locked(trainer.out_dir, wait=False, advice=advice)
        with lock if first else contextlib.nullcontext():
            metrics = None
            if first:
                resume.check_unchanged(trainer.out_dir, start)
                print(describe(trainer, argv), flush=True)
                write_run_json(trainer.out_dir, trainer.record(), processes.device)
                show = open_dashboard(config.log_to, trainer.out_dir, trainer.step)
                metrics = Metrics(trainer.out_dir / "metrics.jsonl", trainer.step, show)
            del start  # its tensors are in the trainer
            progress = Progress(config.max_steps, trainer.step, first)
            with trainer.stop.listening(), contextlib.closing(progress):
                try:
                    trainer.run(metrics, progress)
                except Stopped:
                    if metrics and trainer.owed:
                        metrics.write(trainer.owed, shown=False)
                    trainer.save("last")
                    processes.wait()  # torchrun ends all when one has ended
                    stopped = trainer.stop.signal
        if first:
            close(trainer, argv)
    if stopped:
        sys.exit(128 + stopped)  # as a shell reports the end by a signal


if __name__ == "__main__":
    with one_cause():
        run_main(main, TrainConfig, USAGE)
