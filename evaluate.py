"""The validation result of checkpoints: loss, perplexity and bits per byte, side by side.

    python evaluate.py --out_dir=out,out/learned

Train.py uses the same `validate` for the lines it prints on the way.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from checkpoint import load_model
from configurator import UserError, configure, help_text, run_main, setting
from data import DataSet, validation_batches
from model import GPT
from processes import Processes, join_processes

USAGE = "usage: python evaluate.py [--name=value ...]"


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
    """Evaluate on the first `max_tokens` (0: all) validation tokens, `batch_size` windows a time.

    Of conversations the tokens that an assistant says count. All processes share the work; sums
    and counts are reduced apart and divided at the end.
    """
    device = processes.device
    bytes_of = torch.from_numpy(data.tokenizer.token_bytes()).to(device)  # (V,)
    nats = [torch.zeros((), device=device)]
    text_bytes = [torch.zeros((), device=device, dtype=torch.int64)]
    tokens = 0
    rows = data.rows("val", model.config.block_size)
    for x, y, layout, targets in validation_batches(rows, max_tokens, batch_size, processes):
        with autocast(dtype, device):
            nats.append(model(x, y, layout) * targets)
        text_bytes.append((bytes_of[y.clamp(min=0)] * (y >= 0)).sum())
        tokens += targets
    sums = [torch.stack(part).cpu().double().sum() for part in (nats, text_bytes)]
    counts = torch.stack([*sums, torch.tensor(tokens, dtype=torch.float64)])
    total_nats, total_bytes, total_tokens = processes.sum(counts).tolist()
    return Evaluation(total_nats / total_tokens, total_nats / math.log(2) / max(total_bytes, 1))


def autocast(dtype: str, device: torch.device) -> torch.autocast:
    """The context in which `dtype` = "bfloat16" computes its products in bfloat16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


@dataclass(frozen=True)
class EvaluateConfig:
    """Which checkpoints to evaluate, and where."""

    out_dir: str = setting("out", "directories of runs, separated by commas")
    checkpoint: str = setting("best", "best or last")
    data_dir: str = setting("data", "where data sets are")
    eval_tokens: int = setting(0, "validation tokens; 0: all")
    batch_size: int = setting(16, "windows at a time")
    device: str = setting("auto", "cuda, mps or cpu; auto: the first of these there is")
    dtype: str = setting("float32", "float32 or bfloat16")

    def problems(self) -> list[str]:
        """One sentence for every impossible value."""
        found = []
        if self.checkpoint not in ("best", "last"):
            found.append(f"checkpoint={self.checkpoint!r}: expected best or last")
        if self.dtype not in ("float32", "bfloat16"):
            found.append(f"dtype={self.dtype!r}: expected float32 or bfloat16")
        if self.eval_tokens < 0 or self.batch_size < 1:
            found.append("eval_tokens must be at least 0 and batch_size at least 1")
        return found


def main(argv: list[str]) -> None:
    """Print a table of validation results."""
    if {"-h", "--help"} & set(argv):
        print(help_text(EvaluateConfig, USAGE))
        return
    config = configure(EvaluateConfig, argv)
    with join_processes(config.device) as processes:
        rows = ["| run | step | val loss | perplexity | bits/byte |", "|---|---|---|---|---|"]
        for out_dir in config.out_dir.split(","):
            path = Path(out_dir) / f"{config.checkpoint}.pt"
            model, record = load_model(path, processes.device)
            data = DataSet(Path(config.data_dir) / record["config"]["dataset"], processes.first)
            if data.tokenizer.sha256 != record["tokenizer_sha256"]:
                raise UserError(f"{data.path} has another tokenizer than {path}")
            result = validate(
                model, data, config.eval_tokens, config.batch_size, processes, config.dtype
            )
            rows.append(
                f"| {out_dir} | {record['step']:,} | {result.loss:.4f}"
                f" | {result.perplexity:.3f} | {result.bits_per_byte:.4f} |"
            )
        if processes.first:
            print("\n".join(rows))


if __name__ == "__main__":
    run_main(main)
