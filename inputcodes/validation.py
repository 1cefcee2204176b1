"""The validation loss of a model: nats per token, perplexity and bits per byte."""

import math
from dataclasses import dataclass

import torch

from inputcodes.data import DataSet, validation_batches
from inputcodes.distributed import Processes, autocast
from model import GPT


@dataclass(frozen=True)
class Evaluation:
    """The validation result of some weights."""

    loss: float  # nats a token
    bits_per_byte: float

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))  # the largest that a float holds

    def as_metrics(self) -> dict[str, float]:
        return {
            "val_loss": self.loss,
            "val_perplexity": self.perplexity,
            "val_bits_per_byte": self.bits_per_byte,
        }

    def __str__(self) -> str:
        return (
            f"val loss {self.loss:.4f}, perplexity {self.perplexity:.3f},"
            f" {self.bits_per_byte:.4f} bits/byte"
        )


@torch.no_grad()
def validate(
    model: GPT,
    data: DataSet,
    max_tokens: int,
    batch_size: int,
    processes: Processes,
    dtype: str = "float32",
) -> Evaluation:
    """Evaluate on `max_tokens` (0: all) validation tokens, `batch_size` windows at a time.

    Of conversations the tokens that an assistant says count. All processes share the work; sums
    and counts are reduced apart and divided at the end.
    """
    device = processes.device
    bytes_of = torch.from_numpy(data.tokenizer.token_bytes()).to(device)  # (V,)
    nats = [torch.zeros((), device=device)]
    text_bytes = [torch.zeros((), device=device, dtype=torch.int64)]
    tokens = 0
    rows = data.rows("val", model.config.block_size)
    for x, y, layout, targets, _ in validation_batches(rows, max_tokens, batch_size, processes):
        with autocast(dtype, device):
            nats.append(model(x, y, layout) * targets)
        text_bytes.append((bytes_of[y.clamp(min=0)] * (y >= 0)).sum())
        tokens += targets
    sums = [torch.stack(part).cpu().double().sum() for part in (nats, text_bytes)]
    counts = torch.stack([*sums, torch.tensor(tokens, dtype=torch.float64)])
    total_nats, total_bytes, total_tokens = processes.sum(counts).tolist()
    return Evaluation(total_nats / total_tokens, total_nats / math.log(2) / max(total_bytes, 1))
