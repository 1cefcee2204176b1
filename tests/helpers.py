"""What several test files share: texts, tokenizers, data, the small run, programs in processes."""

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import random
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from inputcodes.checkpoint import RECORD_PARTS, read_checkpoint, write_checkpoint
from inputcodes.ngrams import choose_ngrams, count_ngrams
from inputcodes.tokenizer import Tokenizer
from model import GPT, GPTConfig
from prepare_data import PrepareConfig

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
# What no part of a record can be.
WRONG_PARTS = [(name, {} if kind is not dict else []) for name, kind in RECORD_PARTS.items()]
WRONG_PARTS += [("step", None), ("elapsed_s", 10**400), ("base", "x"), ("base", {"out_dir": 5})]


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


def torchrun(argv: list, program: str = "train.py", grace: int = 30) -> subprocess.Popen:
    """A program in two processes under torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc_per_node=2", f"--shutdown-timeout={grace}", program]
    return subprocess.Popen(
        [*launcher, *argv],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=600)
    return output


class Program:
    """A program with its arguments in a process of its own, or in several that train together.

    The processes are forked from one that has imported PyTorch, which takes seconds, and has
    computed nothing; the program runs in them as `__main__`.
    """

    FORKS = multiprocessing.get_context("forkserver")
    FORKS.set_forkserver_preload(["tests.helpers", "train", "evaluate", "sample"])

    def __init__(
        self, output: Path, argv: list, program="train.py", processes: int = 1, cwd=ROOT
    ) -> None:
        self.output, ranks = output, [{} for _ in range(processes)]
        if processes > 1:
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                port = str(listener.getsockname()[1])
            known = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            ranks = [{**known, "RANK": str(rank)} for rank in range(processes)]
        words = [str(ROOT / program), *map(str, argv)]
        output.write_text("")
        self.processes = [
            self.FORKS.Process(target=self.main, args=(words, output, cwd, rank), daemon=True)
            for rank in ranks
        ]
        with contextlib.chdir(ROOT):  # from where the first of all imports
            for process in self.processes:
                process.start()

    @staticmethod
    def main(words: list[str], output: Path, cwd: Path, environment: dict[str, str]) -> None:
        """What each process does."""
        with open(output, "ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        # Whole lines, though PYTHONUNBUFFERED writes word by word: processes share the file.
        sys.stdout.reconfigure(line_buffering=True, write_through=False)
        os.chdir(cwd)
        os.environ.update(environment)
        torch.set_num_threads(1)
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")

    def send_signal(self, number: int) -> None:
        """Signal the first process."""
        os.kill(self.processes[0].pid, number)

    @property
    def running(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def finish(self) -> tuple[list[int], str]:
        """The exit codes, negative after a signal, and the output of all together."""
        for process in self.processes:
            process.join(600)
        return [process.exitcode for process in self.processes], self.output.read_text()


ENGLISH = ["the", "then", "them", "there", "this", "that", "of", "and", "in", "to", "a", "is"]
WORDS = [*ENGLISH, "café", "naïve", "中文", "中国", "שלום", "سلام", "été", "😀"]


def documents(count: int = 400, seed: int = 0) -> list[str]:
    """Word salad with a few hundred distinct n-grams, some of them not ASCII."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=60)) + ".\n" for _ in range(count)]


def build_tokenizer(vocab_size: int, texts: list[str]) -> Tokenizer:
    """The tokenizer with the most frequent n-grams of `texts`."""
    return Tokenizer(vocab_size, choose_ngrams(count_ngrams(texts), vocab_size))


def write_data_set(
    path: Path,
    train: list[np.ndarray],
    val: list[np.ndarray],
    vocab_size: int = 256,
    chat: bool = False,
) -> None:
    """A directory as prepare_data.py leaves it, of tokens in the given shards."""
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(vocab_size)
    tokenizer.save(path / "tokenizer.json")
    splits = {"train": write_split(path, "train", train), "val": write_split(path, "val", val)}
    hashes = [tokenizer.sha256, *(f["sha256"] for s in splits.values() for f in s["files"])]
    meta = {
        "format": 1,
        "vocab_size": vocab_size,
        "tokenizer_sha256": tokenizer.sha256,
        "data_sha256": hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
        "splits": splits,
        "settings": {"chat": chat},
    }
    (path / "meta.json").write_text(json.dumps(meta))


def write_split(path, name: str, shards: list[np.ndarray]) -> dict:
    """Shards as raw little-endian uint16, and their entry of meta.json."""
    files = []
    for i, shard in enumerate(shards):
        raw = b"".join(int(token).to_bytes(2, "little") for token in shard)
        (path / f"{name}_{i:06d}.bin").write_bytes(raw)
        digest = hashlib.sha256(raw).hexdigest()
        files.append({"name": f"{name}_{i:06d}.bin", "tokens": len(shard), "sha256": digest})
    return {"tokens": sum(map(len, shards)), "documents": 1, "bytes": 1, "files": files}


def write_parquet(path: Path, texts: list[Any], column: str = "text") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": list(range(len(texts))), column: texts})
    pq.write_table(table, path, row_group_size=50)
    return str(path)


def write_json_lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prepare_config(tmp_path: Path, **settings: Any) -> PrepareConfig:
    defaults = {
        "data_dir": str(tmp_path / "data"), "dataset": "set", "source": "files",
        "val_fraction": 0.1, "workers": 1,
    }  # fmt: skip
    settings |= {"files": (settings["files"],)} if "files" in settings else {}
    made = PrepareConfig(**(defaults | settings))
    assert made.problems() == []
    return made


def record_of(config: dict[str, Any], tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    """What a checkpoint says of itself, of a run with these settings."""
    tokenizer = tokenizer or Tokenizer(256)
    record = {"step": 7, "tokens": 700, "best_val_loss": 2.0, "elapsed_s": 1.0}
    record |= {"tokenizer": tokenizer.to_json(), "tokenizer_sha256": tokenizer.sha256}
    record |= {"data_sha256": "d" * 64, "code_sha256": "c" * 64}
    return record | {"config": {"dataset": "tiny", "seed": 1, **config}}


def write_run(out: Path, tokenizer: Tokenizer, chat: bool = False, **settings) -> GPT:
    """A checkpoint of random weights of all sizes that training gives, and the record of a run."""
    config = {"block_size": 32, "n_layer": 2, "n_head": 2, "n_embd": 64, "compression": 4}
    config |= {"vocab_size": tokenizer.vocab_size, **settings}
    model = GPT(GPTConfig(**config), 3, tokenizer.texts())
    generator = torch.Generator().manual_seed(4)
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    config = dataclasses.asdict(model.config)
    config |= {"learning_rate": 1e-3, "seed": 3, "out_dir": str(out)}
    record = record_of(config, tokenizer) | {"chat": chat, "base": None}
    out.mkdir(parents=True, exist_ok=True)
    write_checkpoint(out / "best.pt", {"model": model.state_dict()}, record)
    return model.eval()
