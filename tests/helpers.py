"""What several test files share: texts and tokenizers, the small run, programs in processes."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import torch

from inputcodes.checkpoint import read_checkpoint
from inputcodes.ngrams import choose_ngrams, count_ngrams
from inputcodes.tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent
COSTS = {"elapsed_s", "tokens_per_s", "peak_mb"}  # all that may differ between two runs of one seed
SMALL = {
    "dataset": "tiny",
    "device": "cpu",
    "block_size": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 16,
    "batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_steps": 20,
    "learning_rate": 1e-3,
    "min_lr": 1e-4,
    "warmup_steps": 4,
    "eval_interval": 5,
    "log_interval": 1,
}


def metrics_of(out_dir: Path) -> list[dict]:
    lines = (out_dir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in COSTS} for line in lines]


def weights_of(out_dir: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return read_checkpoint(out_dir / f"{name}.pt")[0]["model"]


def assert_same_run(a: Path, b: Path) -> None:
    assert metrics_of(a) == metrics_of(b)
    for name in ("last", "best"):
        ours, theirs = weights_of(a, name), weights_of(b, name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def start(
    argv: list, processes: int = 1, program: str = "train.py", grace: int = 30
) -> subprocess.Popen:
    """A program in a process of its own, or in several under torchrun."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
        command += ["--standalone", f"--shutdown-timeout={grace}"]
    return subprocess.Popen(
        [*command, program, *argv],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=120)
    return output


ENGLISH = ["the", "then", "them", "there", "this", "that", "of", "and", "in", "to", "a", "is"]
WORDS = [*ENGLISH, "café", "naïve", "中文", "中国", "שלום", "سلام", "été", "😀"]


def documents(count: int = 400, seed: int = 0) -> list[str]:
    """Word salad with a few hundred distinct n-grams, some of them not ASCII."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=60)) + ".\n" for _ in range(count)]


def build_tokenizer(vocab_size: int, texts: list[str]) -> Tokenizer:
    """The tokenizer with the most frequent n-grams of `texts`."""
    return Tokenizer(vocab_size, choose_ngrams(count_ngrams(texts), vocab_size))
