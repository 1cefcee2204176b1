"""Throughput and memory of what users run, beside nanoGPT's where a checkout of it is at hand.

    python bench.py --dataset=stdlib-65536 --n_head=8 --n_embd=256 --batch_size=8
    python bench.py --n_layer=4 --nanogpt=../nanoGPT --only=step,generate_1
    python bench.py config/fixed32.py              # on a GPU

Each row is measured in a process of its own, with its own settings and its own peak of memory. On a
CPU the processes of a table take turns, A B C A B C ..., so that whatever else the machine does
falls on all of them; on a GPU, which may not hold two models, they come one after another. The
first turns warm up and do not count. A time is the median of the turns, a ratio the median of the
ratios within a turn, to the first row of the table. Brackets hold the middle half of the turns.

FLOPs are the model's own: per token, 6 for every weight of a matrix product and 12 n_layer n_embd T
for attention; the ceiling is a large square product, timed in the same turns.
"""

import inputcodes  # noqa: F401  # isort: skip  # before PyTorch: Ctrl-C while it loads
import contextlib
import dataclasses
import functools
import importlib.util
import io
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from inputcodes.checkpoint import made_by
from inputcodes.configurator import UserError, configure, end_with_parent, run_main, setting
from inputcodes.data import Batch, DataSet, TrainingData
from inputcodes.distributed import Processes, autocast, peak_mb, setup_device
from inputcodes.files import read_json, split_list, system_errors, write_json
from inputcodes.resume import for_data
from inputcodes.stats import markdown_table
from model import GPT, INPUT_LAYERS, count_parameters
from prepare_data import prepare_missing
from train import TrainConfig, Trainer

USAGE = "usage: python bench.py [config/FILE.py ...] [--name=value ...]"
TABLES = {
    "step": "training step: forward, backward, clip, optimizer",
    "input": "each input layer alone, forward and backward, beside a training step",
    "generate_1": "generation from one token",
    "generate_8": "generation from one token, 8 texts at a time",
}


@dataclass(frozen=True)
class BenchConfig(TrainConfig):
    nanogpt: str = setting("", "checkout of nanoGPT to measure beside; empty: none", is_path=True)
    only: str = setting(",".join(TABLES), "tables to make, separated by commas")
    rounds: int = setting(10, "turns that count", least=1, most=100_000)
    warmup: int = setting(2, "turns before them; the first one compiles", least=1, most=100_000)
    turn_s: float = setting(0.3, "seconds of a turn, at least; it has one call at least", least=0)
    new_tokens: int = setting(256, "tokens that a generation writes", least=1)
    out: str = setting("", "JSON file to add the result to; empty: none", is_path=True)

    def problems(self) -> list[str]:
        problems = super().problems()
        if not (names := split_list(self.only)) or set(names) - set(TABLES):
            problems.append(f"only={self.only!r}: expected some of {', '.join(TABLES)}")
        model = Path(self.nanogpt) / "model.py"
        if self.nanogpt and not (model.is_file() and b"configure_optimizers" in model.read_bytes()):
            problems.append(f"nanogpt={self.nanogpt!r}: no model.py of nanoGPT there")
        out, records = Path(self.out), None
        with contextlib.suppress(UserError):  # what is no JSON is not bench.py's either
            records = read_json(out).get("records")
        if self.out and out.exists() and not isinstance(records, list):
            problems.append(f"out={self.out!r}: expected no file, or one that bench.py wrote")
        return problems


# ---------------------------------------------------------------------------------------------
# What is measured: a builder sets up one thing in the process of its row


@dataclass
class Line:
    """A line of the result: times are seconds per call, lists a median and its quartiles."""

    amount: float  # of a call: tokens or products
    unit: str = "tokens"
    flops: float = 0.0
    stored_mb: float = 0.0  # of an input layer: its parameters and buffers
    name: str = ""
    peak_mb: float = 0.0
    reserved_mb: float = 0.0  # on a GPU, with what the allocator keeps for later
    seconds: list[float] = dataclasses.field(default_factory=list)
    times_first: list[float] = dataclasses.field(default_factory=list)  # as fast as the first row
    of_ceiling: list[float] = dataclasses.field(default_factory=list)


Work = tuple[Callable[[], object], Line]  # what is called again and again, and what a call does


def device_of(config: BenchConfig) -> torch.device:
    return setup_device(config.device, config.dtype, config.matmul_precision)


def open_set(config: BenchConfig) -> DataSet:
    return DataSet(Path(config.data_dir) / config.dataset, verify=False)  # main verified it


def batches_of(config: BenchConfig, device: torch.device) -> Iterator[Batch]:
    rows = open_set(config).rows("train", config.block_size)
    return TrainingData(rows, config.batch_size, config.seed).batches(0, Processes(device))


def flops_per_token(config: TrainConfig) -> float:
    """6 N + 12 L C T; the scales of the norms are no products."""
    total, inputs = count_parameters(config)
    weights = total - inputs - (2 * config.n_layer + 1) * config.n_embd
    return 6 * weights + 12 * config.n_layer * config.n_embd * config.block_size


def our_step(config: BenchConfig) -> Work:
    device = device_of(config)
    trainer, tokens = Trainer(config, open_set(config), Processes(device)), config.tokens_per_step
    batches = batches_of(config, device)
    flops = tokens * flops_per_token(config)
    return lambda: trainer.train_step(batches), Line(tokens, flops=flops)


def load_nanogpt(config: BenchConfig) -> Any:
    """A model of nanoGPT's own, of the same shape, without dropout and biases."""
    spec = importlib.util.spec_from_file_location("nanogpt", Path(config.nanogpt) / "model.py")
    assert spec is not None, "problems() checked the file"
    assert spec.loader is not None, "a .py file has a loader"
    module = sys.modules["nanogpt"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
    shape = {name: getattr(config, name) for name in names}
    torch.manual_seed(config.seed)
    return module.GPT(module.GPTConfig(**shape, dropout=0.0, bias=False)).to(config.device)


def nanogpt_step(config: BenchConfig, precision: str = "highest") -> Work:
    """The step of nanoGPT's loop with its own model and optimizer, on the same batches."""
    torch.set_float32_matmul_precision(precision)
    device = torch.device(config.device)
    batches, model = batches_of(config, device), load_nanogpt(config)
    recipe = config.weight_decay, config.learning_rate, (config.beta1, config.beta2)
    optimizer = model.configure_optimizers(*recipe, device.type)
    compiled = torch.compile(model) if config.compile else model

    def step() -> float:
        for _ in range(config.gradient_accumulation_steps):
            batch = next(batches)
            with autocast(config.dtype, device):
                loss = compiled(batch.x, batch.y)[1] / config.gradient_accumulation_steps
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step, Line(config.tokens_per_step)


def matmul(config: BenchConfig) -> Work:
    """The ceiling: a square product, as fast as this machine makes it."""
    device = device_of(config)
    size = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, size, size, device=device).to(getattr(torch, config.dtype))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out), Line(1, "products", flops=2 * size**3)


def input_alone(config: BenchConfig) -> Work:
    """ids to vectors, and back to the table where it is trained."""
    device = device_of(config)
    texts = open_set(config).tokenizer.texts()
    layer = INPUT_LAYERS[config.input_layer](config, texts).to(device)
    for weight in layer.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    ids = next(batches_of(config, device)).x
    tensors = [*layer.parameters(), *layer.buffers()]

    def call() -> None:
        x = layer(ids)
        if x.requires_grad:
            layer.zero_grad(set_to_none=True)
            x.sum().backward()

    return call, Line(ids.numel(), stored_mb=sum(tensor.nbytes for tensor in tensors) / 1e6)


def our_generation(config: BenchConfig, batch: int) -> Work:
    device = device_of(config)
    model = GPT(config, config.seed, open_set(config).tokenizer.texts()).to(device).eval()
    start = torch.zeros(batch, 1, dtype=torch.int64, device=device)

    def call() -> None:
        with autocast(config.dtype, device):
            for _ in model.generate(start, config.new_tokens):
                pass

    return call, Line(batch * config.new_tokens)


def nanogpt_generation(config: BenchConfig, batch: int) -> Work:
    model = load_nanogpt(config).eval()
    start = torch.zeros(batch, 1, dtype=torch.int64, device=config.device)
    return lambda: model.generate(start, config.new_tokens), Line(batch * config.new_tokens)


@dataclass(frozen=True)
class Row:
    """A line of a table: what is built with which configuration."""

    table: str
    name: str
    build: Callable[[BenchConfig], Work]
    config: BenchConfig


def rows_of(config: BenchConfig) -> list[Row]:
    """All rows of all tables; the first of a table is what its others are compared with."""
    rows: list[Row] = []

    def add(table: str, name: str, build: Callable[[BenchConfig], Work], **changes: Any) -> None:
        own = dataclasses.replace(config, **changes)
        if table in split_list(config.only):
            if problems := own.problems():  # of a layer that is not the configuration's
                raise UserError(f"{name}: {problems[0]}; or name other tables with --only")
            rows.append(Row(table, name, build, own))

    if config.nanogpt:
        # On a CPU its loop has no bfloat16; on a GPU it takes the configuration's type.
        dtype = "float32" if config.device == "cpu" else config.dtype
        medium = functools.partial(nanogpt_step, precision="medium")
        for name, build in (("nanoGPT", nanogpt_step), ("nanoGPT, medium", medium)):
            add("step", name, build, compile=False, dtype=dtype)
            add("step", f"{name}, compile", build, compile=True, dtype=dtype)
    for dtype in ("float32", "bfloat16"):
        add("step", dtype, our_step, dtype=dtype, compile=False)
        add("step", f"{dtype}, compile", our_step, dtype=dtype, compile=True)
        add("step", f"matmul {dtype}", matmul, dtype=dtype)
    add("input", "a step, learned", our_step, input_layer="learned")
    for layer in INPUT_LAYERS:
        add("input", layer, input_alone, input_layer=layer)
    for batch in (1, 8):
        if config.nanogpt:
            build = functools.partial(nanogpt_generation, batch=batch)
            add(f"generate_{batch}", "nanoGPT", build)
        for dtype in ("float32", "bfloat16"):
            build = functools.partial(our_generation, batch=batch)
            add(f"generate_{batch}", dtype, build, dtype=dtype)
    return rows


# ---------------------------------------------------------------------------------------------
# Measuring


def serve(pipe: Connection, row: Row) -> None:
    """In the process of a row: build, then take a turn whenever asked, then tell the peak."""
    end_with_parent()
    # nanoGPT prints, and a parent that was stopped no longer reads.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(EOFError, ConnectionError):
        try:
            (call, line), device = row.build(row.config), torch.device(row.config.device)
        except UserError as error:
            sys.exit(f"error: {error}")
        pipe.send(dataclasses.replace(line, name=row.name))
        calls = 1
        while pipe.recv():
            started = time.perf_counter()
            for _ in range(calls):
                call()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            seconds = (time.perf_counter() - started) / calls
            pipe.send(seconds)
            calls = max(1, round(row.config.turn_s / seconds))
        reserved = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0
        pipe.send((peak_mb(device), reserved / 1e6))


def measure(rows: Sequence[Row]) -> list[Line]:
    """The lines of one table: its rows take turns, on a GPU one row after another."""
    gpu = rows[0].config.device != "cpu"
    groups = [[row] for row in rows] if gpu else [rows]
    results = [measure_together(group) for group in groups]
    lines = [line for group, _ in results for line in group]
    turns = np.concatenate([turns for _, turns in results], axis=1)[rows[0].config.warmup :]
    for i, row in enumerate(rows):
        compare(lines, i, turns, f"matmul {row.config.dtype}")
    return lines


def measure_together(rows: Sequence[Row]) -> tuple[list[Line], np.ndarray]:
    """The rows' lines so far, and the seconds per call (turns, rows)."""
    spawn, config = multiprocessing.get_context("spawn"), rows[0].config
    workers, pipes = [], []
    try:
        for row in rows:
            here, there = spawn.Pipe()
            workers.append(spawn.Process(target=serve, args=(there, row), daemon=True))
            # Ctrl-C reaches a worker, too, which starts with what is set here: it is ended below.
            interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
            workers[-1].start()
            signal.signal(signal.SIGINT, interrupt)
            there.close()
            pipes.append(here)
        lines: list[Line] = [pipe.recv() for pipe in pipes]
        turns = np.empty((config.warmup + config.rounds, len(rows)))
        for turn in turns:
            for i, pipe in enumerate(pipes):
                pipe.send(True)
                turn[i] = pipe.recv()
        for line, pipe in zip(lines, pipes, strict=True):
            pipe.send(False)
            line.peak_mb, line.reserved_mb = pipe.recv()
        for worker in workers:
            worker.join()  # it ends by itself, cleaner than by force
    except (EOFError, ConnectionError) as error:
        why = "a row failed, as said above, or was killed (out of memory?)"
        raise UserError(f"{why}; --only leaves its table out") from error
    finally:
        for worker in workers:
            worker.terminate()
    return lines, turns


def quartiles(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in np.percentile(values, [50, 25, 75])]


def compare(lines: Sequence[Line], i: int, turns: np.ndarray, ceiling: str) -> None:
    """Fill line i from the counted turns (turns, rows), the first line and the ceiling's."""
    line, seconds = lines[i], turns[:, i]
    line.seconds = quartiles(seconds)
    if line.unit == lines[0].unit:
        line.times_first = quartiles(line.amount / lines[0].amount * turns[:, 0] / seconds)
    for j, other in enumerate(lines):
        if line.flops and other.name == ceiling:
            line.of_ceiling = quartiles(line.flops / seconds * turns[:, j] / other.flops)


def markdown(lines: Sequence[Line]) -> str:
    rows = []
    for line in lines:
        seconds, low, high = line.seconds
        row = [line.name, f"{seconds:.4g} [{low:.4g}, {high:.4g}]"]
        row += [f"{line.amount / seconds:,.1f} {line.unit}"]
        row += ["{:.2f} [{:.2f}, {:.2f}]".format(*line.times_first) if line.times_first else ""]
        reserved = f" ({line.reserved_mb:,.0f} reserved)" if line.reserved_mb else ""
        row += [f"{line.peak_mb:,.0f}{reserved}" if line.peak_mb else "-"]  # not told on Windows
        row += [f"{line.peak_mb / lines[0].peak_mb:.2f}" if lines[0].peak_mb else "-"]
        row += [f"{line.stored_mb:,.3f}" if line.stored_mb else ""]
        row += [f"{line.of_ceiling[0]:.0%}" if line.of_ceiling else ""]
        rows.append(row)
    header = "|seconds|per second|times as fast|peak MB|of first|layer MB|of ceiling"
    return markdown_table(header, rows)


def add_record(out: Path, record: dict[str, Any]) -> None:
    """Append to the records in a JSON file, where two at once would lose one."""
    with system_errors("write", out), FileLock(f"{out}.lock"):
        records = read_json(out)["records"] if out.is_file() else []
        write_json(out, {"records": [*records, record]})


def main(argv: list[str]) -> None:
    config = configure(BenchConfig, argv)
    device = device_of(config)
    if config.vocab_size and not (Path(config.data_dir) / config.dataset).is_dir():
        config = dataclasses.replace(config, dataset=f"stdlib-{config.vocab_size}")
        print(f"measuring on {config.dataset}, as the data set is not there")
    data = DataSet(prepare_missing(config.data_dir, config.dataset))
    config = dataclasses.replace(for_data(config, data), device=str(device))
    if not any(word.startswith("--gradient_accumulation_steps") for word in argv):
        config = dataclasses.replace(config, gradient_accumulation_steps=1)
    facts = made_by(device)
    print(f"{facts['device']}; {facts['processor']}; {facts['threads']} threads")
    rows, tables = rows_of(config), {}
    for name in dict.fromkeys(row.table for row in rows):
        tables[name] = measure([row for row in rows if row.table == name])
        print(f"\n{TABLES[name]} (ratios to the first row)\n")
        print(markdown(tables[name]), flush=True)
    if config.out:
        lines = {k: [dataclasses.asdict(line) for line in v] for k, v in tables.items()}
        record = {"made_by": facts, "config": dataclasses.asdict(config), "tables": lines}
        add_record(Path(config.out), record)


if __name__ == "__main__":
    run_main(main, BenchConfig, USAGE)
