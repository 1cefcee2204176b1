"""What bench.py measures: its settings, and a builder for every kind of row.

A builder sets up one thing in the process of its row and returns a `Work`, whose `call` does it
once. nanoGPT's model and optimizer come from a local checkout; nothing of it is here.
"""

import dataclasses
import functools
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from inputcodes.configurator import setting
from inputcodes.data import Batch, DataSet, TrainingData
from inputcodes.distributed import Processes, autocast, setup_device
from inputcodes.loss import linear_cross_entropy
from model import GPT, INPUT_LAYERS, count_parameters
from train import TrainConfig, Trainer

TABLES = {
    "step": "training step: forward, backward, clip, optimizer",
    "variants": "training step of each input layer",
    "input": "input layer alone, forward and backward",
    "loss": "head and loss alone, forward and backward",
    "generate_1": "generation from one token",
    "generate_8": "generation from one token, 8 texts at a time",
    "tokenize": "tokenizing, one thread",
}
MATMUL = 2048  # rows and columns of the product that is the ceiling


@dataclass(frozen=True)
class BenchConfig(TrainConfig):
    """What to measure: a training configuration, and how."""

    nanogpt: str = setting("", "directory of a checkout of nanoGPT to measure beside; empty: none")
    only: str = setting(",".join(TABLES), "tables to make, separated by commas")
    rounds: int = setting(10, "turns that count")
    warmup: int = setting(2, "turns before them; compilation falls into the first")
    turn_s: float = setting(0.3, "seconds of a turn, at least; it has one call at least")
    new_tokens: int = setting(256, "tokens that a generation writes")
    tokenize_mb: float = setting(4.0, "text to tokenize, in MB")
    quick: bool = setting(False, "no torch.compile: shows that all runs, in little time")
    out: str = setting("", "JSON file to add the result to; empty: none")

    def problems(self) -> list[str]:
        """One sentence for every impossible value or combination."""
        found = super().problems()
        if unknown := set(self.only.split(",")) - set(TABLES):
            found.append(f"only: unknown {', '.join(unknown)}; expected {', '.join(TABLES)}")
        for name in ("rounds", "new_tokens"):
            if getattr(self, name) < 1:
                found.append(f"{name}={getattr(self, name)}: expected at least 1")
        if self.warmup < 0 or self.turn_s < 0 or self.tokenize_mb <= 0:
            found.append("warmup and turn_s must be at least 0, tokenize_mb above 0")
        if self.nanogpt and not (Path(self.nanogpt) / "model.py").is_file():
            found.append(f"nanogpt={self.nanogpt!r}: no model.py there")
        return found


@dataclass
class Work:
    """Something to call again and again, and what one call does."""

    call: Callable[[], object]
    amount: float  # tokens or megabytes
    unit: str = "tokens"
    flops: float = 0.0
    waited_s: Callable[[], float] = lambda: 0.0  # for data, since the start


class Batches:
    """The batches of a training run, and the seconds that were waited for them."""

    def __init__(self, config: BenchConfig, device: torch.device) -> None:
        data = DataSet(Path(config.data_dir) / config.dataset, verify=False)
        self.data, self.waited_s = data, 0.0
        rows = TrainingData(data.rows("train", config.block_size), config.batch_size, config.seed)
        self._coming = rows.batches(0, Processes(device))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        started = time.perf_counter()
        batch = next(self._coming)
        self.waited_s += time.perf_counter() - started
        return batch


def flops_per_token(config: TrainConfig) -> float:
    """6 N + 12 L C T; the norms' scales are no products."""
    total, inputs = count_parameters(config)
    weights = total - inputs - (2 * config.n_layer + 1) * config.n_embd
    return 6 * weights + 12 * config.n_layer * config.n_embd * config.block_size


def our_step(config: BenchConfig) -> Work:
    """train.py's own step."""
    device = setup_device(config.device, config.dtype, config.matmul_precision)
    batches = Batches(config, device)
    trainer = Trainer(config, batches.data, Processes(device))
    tokens = config.tokens_per_step
    return Work(
        lambda: trainer.train_step(batches),
        tokens,
        flops=tokens * flops_per_token(config),
        waited_s=lambda: batches.waited_s,
    )


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
    batches, model = Batches(config, device), load_nanogpt(config)
    betas = (config.beta1, config.beta2)
    optimizer = model.configure_optimizers(
        config.weight_decay, config.learning_rate, betas, device.type
    )
    compiled = torch.compile(model) if config.compile else model

    def step() -> float:
        for _ in range(config.gradient_accumulation_steps):
            x, y, *_ = next(batches)
            with autocast(config.dtype, device):
                loss = compiled(x, y)[1] / config.gradient_accumulation_steps
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return Work(step, config.tokens_per_step, waited_s=lambda: batches.waited_s)


def matmul(config: BenchConfig) -> Work:
    """The ceiling: a square product, as fast as this machine makes it."""
    device = setup_device(config.device, config.dtype, config.matmul_precision)
    dtype = getattr(torch, config.dtype)
    a, b = torch.randn(2, MATMUL, MATMUL, device=device).to(dtype)
    out = torch.empty_like(a)
    return Work(lambda: torch.mm(a, b, out=out), 1, "products", flops=2 * MATMUL**3)


def input_alone(config: BenchConfig) -> Work:
    """ids to vectors, and back to the table where it is trained."""
    device = setup_device(config.device, config.dtype, config.matmul_precision)
    batches = Batches(config, device)
    layer = INPUT_LAYERS[config.input_layer](config, batches.data.tokenizer.texts()).to(device)
    for weight in layer.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    ids = next(batches).x

    def call() -> None:
        x = layer(ids)
        if x.requires_grad:
            layer.zero_grad(set_to_none=True)
            x.sum().backward()

    return Work(call, ids.numel())


def loss_alone(config: BenchConfig, plain: bool) -> Work:
    """Final states to the loss and back to their gradient and the head's."""
    device = setup_device(config.device, config.dtype, config.matmul_precision)
    targets = next(Batches(config, device)).y
    targets = targets.flatten()
    shapes = ((len(targets), config.n_embd), (config.vocab_size, config.n_embd))
    x, weight = (torch.randn(shape, device=device).mul_(0.02).requires_grad_() for shape in shapes)

    def call() -> None:
        x.grad = weight.grad = None
        with autocast(config.dtype, device):
            if plain:
                loss = F.cross_entropy(F.linear(x, weight), targets)
            else:
                loss = linear_cross_entropy(x, weight, targets)
        loss.backward()

    return Work(call, len(targets), flops=6 * weight.numel() * len(targets))


def our_generation(config: BenchConfig, batch: int) -> Work:
    device = setup_device(config.device, config.dtype, config.matmul_precision)
    data = DataSet(Path(config.data_dir) / config.dataset, verify=False)
    model = GPT(config, config.seed, data.tokenizer.texts()).to(device).eval()
    start = torch.zeros(batch, 1, dtype=torch.int64, device=device)

    def call() -> None:
        with autocast(config.dtype, device):
            for _ in model.generate(start, config.new_tokens):
                pass

    return Work(call, batch * config.new_tokens)


def nanogpt_generation(config: BenchConfig, batch: int) -> Work:
    model = load_nanogpt(config).eval()
    start = torch.zeros(batch, 1, dtype=torch.int64, device=config.device)
    return Work(lambda: model.generate(start, config.new_tokens), batch * config.new_tokens)


def tokenizing(config: BenchConfig) -> Work:
    """Validation text to tokens, as prepare_data.py encodes it."""
    data = DataSet(Path(config.data_dir) / config.dataset, verify=False)
    count = min(data.val.tokens, int(config.tokenize_mb * 1e6))  # a token has a byte at least
    tokens = data.val.windows(np.zeros(1, dtype=np.int64), count)[0]
    text = data.tokenizer.decode(tokens.tolist())
    text = text[: int(config.tokenize_mb * 1e6)]
    megabytes = len(text.encode()) / 1e6
    return Work(lambda: data.tokenizer.encode_array(text), megabytes, "MB")


# ---------------------------------------------------------------------------------------------
# Rows and the processes that measure them


@dataclass(frozen=True)
class Row:
    """A line of a table: what is built with which configuration."""

    table: str
    name: str
    build: Callable[[BenchConfig], Work]
    config: BenchConfig


def rows_of(config: BenchConfig) -> list[Row]:
    """All lines of all tables; the first of a table is what its others are compared with."""
    found: list[Row] = []

    def add(table: str, name: str, build: Callable[[BenchConfig], Work], **changes: Any) -> None:
        if table in config.only.split(",") and not (config.quick and changes.get("compile")):
            found.append(Row(table, name, build, dataclasses.replace(config, **changes)))

    if config.nanogpt:
        # On a CPU its loop has no bfloat16; on a GPU it takes the configuration's type.
        dtype = "float32" if config.device == "cpu" else config.dtype
        medium = functools.partial(nanogpt_step, precision="medium")
        add("step", "nanoGPT as it is", nanogpt_step, compile=False, dtype=dtype)
        add("step", "nanoGPT, medium", medium, compile=False, dtype=dtype)
        add("step", "nanoGPT, compile", nanogpt_step, compile=True, dtype=dtype)
    for dtype in ("float32", "bfloat16"):
        add("step", dtype, our_step, dtype=dtype, compile=False)
        add("step", f"{dtype}, compile", our_step, dtype=dtype, compile=True)
        add("step", f"matmul {dtype}", matmul, dtype=dtype)
    for layer in INPUT_LAYERS:
        add("variants", layer, our_step, input_layer=layer)
        add("input", layer, input_alone, input_layer=layer)
    add("variants", f"matmul {config.dtype}", matmul)
    for dtype in ("float32", "bfloat16"):
        for plain, name in ((True, "plain"), (False, "chunked")):
            add("loss", f"{name}, {dtype}", functools.partial(loss_alone, plain=plain), dtype=dtype)
        add("loss", f"matmul {dtype}", matmul, dtype=dtype)
    for batch in (1, 8):
        if config.nanogpt:
            build = functools.partial(nanogpt_generation, batch=batch)
            add(f"generate_{batch}", "nanoGPT", build)
        for dtype in ("float32", "bfloat16"):
            build = functools.partial(our_generation, batch=batch)
            add(f"generate_{batch}", dtype, build, dtype=dtype)
    add("tokenize", f"V={config.vocab_size:,}", tokenizing)
    return found
