"""Token shards as batches: a data set is checked when opened, then read through memory maps.

How a document becomes a batch: prepare_data.py writes its tokens and an end-of-text token into a
shard; the shards of a split, one after another, are one long stream of tokens. An epoch cuts the
stream into windows of block_size + 1 tokens, each beginning with the last token of the one
before, so that every token is a target once. Where the first window starts (below block_size)
and the order of the windows are drawn anew for every epoch from (seed, epoch). Sequence number n
of the run is window n % windows of epoch n // windows; micro-batch m of the run holds sequences
m * batch_size to (m + 1) * batch_size - 1, and each process takes its slice. So what a step sees
follows from (seed, step) alone: there is no cursor to save.

Shapes: B sequences of this process, T = block_size.
"""

import functools
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configurator import UserError
from processes import Processes
from tokenizer import Tokenizer


class Split:
    """The shards of a split as one stream of uint16 token ids."""

    def __init__(self, paths: list[Path]) -> None:
        self.shards = [np.memmap(path, dtype="<u2", mode="r") for path in paths]
        self.ends = np.cumsum([len(shard) for shard in self.shards])
        self.tokens = int(self.ends[-1]) if paths else 0

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Tokens (len(starts), length), int64: the windows that begin at `starts`."""
        return np.stack([self._read(int(start), length) for start in starts]).astype(np.int64)

    def _read(self, start: int, length: int) -> np.ndarray:
        i = int(np.searchsorted(self.ends, start, side="right"))
        offset = start - int(self.ends[i]) + len(self.shards[i])
        tokens = self.shards[i][offset : offset + length]
        if len(tokens) == length:
            return tokens
        rest = self._read(start + len(tokens), length - len(tokens))
        return np.concatenate((tokens, rest))


class DataSet:
    """A prepared directory: `train` and `val` splits, `tokenizer`, and what meta.json says."""

    def __init__(self, path: Path, verify: bool = True) -> None:
        """Open `path`; `verify` also compares every shard with its SHA-256.

        Raises UserError, naming the file, if anything is missing, cut short or altered.
        """
        self.path = path
        self.meta = self._read_meta()
        self.tokenizer = Tokenizer.load(self._file("tokenizer.json"))
        if self.tokenizer.sha256 != self.meta["tokenizer_sha256"]:
            raise UserError(f"{path / 'tokenizer.json'} is not the one meta.json was written with")
        self.vocab_size: int = self.meta["vocab_size"]
        self.sha256: str = self.meta["data_sha256"]
        self.train, self.val = (self._open_split(name, verify) for name in ("train", "val"))

    def _read_meta(self) -> dict[str, Any]:
        file = self.path / "meta.json"
        if not file.is_file():
            raise UserError(
                f"no data set in {self.path}: make it with"
                f" `python prepare_data.py --dataset={self.path.name}` (see --help)"
            )
        try:
            meta = json.loads(file.read_text())
            if meta["format"] != 1:
                raise ValueError(f"format {meta['format']}, expected 1")
        except (ValueError, KeyError) as error:
            raise UserError(f"{file} is damaged ({error}): prepare the data set again") from error
        return meta

    def _file(self, name: str) -> Path:
        if not (self.path / name).is_file():
            raise UserError(f"{self.path / name} is missing: prepare the data set again")
        return self.path / name

    def _open_split(self, name: str, verify: bool) -> Split:
        paths = []
        for entry in self.meta["splits"][name]["files"]:
            path = self._file(entry["name"])
            if path.stat().st_size != 2 * entry["tokens"]:
                raise UserError(
                    f"{path} holds {path.stat().st_size} bytes, expected {2 * entry['tokens']}:"
                    " prepare the data set again"
                )
            if verify and _sha256(path) != entry["sha256"]:
                raise UserError(f"{path} was altered (wrong SHA-256): prepare the data set again")
            paths.append(path)
        return Split(paths)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class BatchOrder:
    """Which window of the stream is sequence number n of a run: a pure function of (seed, n)."""

    def __init__(self, tokens: int, block_size: int, seed: int) -> None:
        self.windows = tokens // block_size - 1  # an epoch, whatever its offset
        if self.windows < 1:
            raise UserError(
                f"{tokens} training tokens are too few for block_size={block_size}"
                f" (need at least {2 * block_size})"
            )
        self.block_size, self.seed = block_size, seed
        self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)

    def starts(self, first: int, count: int) -> np.ndarray:
        """Where the windows of sequences first to first + count - 1 begin in the stream."""
        return np.array([self._start(n) for n in range(first, first + count)])

    def _start(self, n: int) -> int:
        epoch, position = divmod(n, self.windows)
        offset, permutation = self._epoch(epoch)
        return offset + int(permutation[position]) * self.block_size

    def _draw_epoch(self, epoch: int) -> tuple[int, np.ndarray]:
        # RandomState's stream is frozen for good, unlike Generator's (NumPy NEP 19).
        bits = np.random.MT19937(np.random.SeedSequence((self.seed, epoch)))
        rng = np.random.RandomState(bits)
        return int(rng.randint(self.block_size)), rng.permutation(self.windows)


def training_batches(
    split: Split,
    order: BatchOrder,
    batch_size: int,
    first: int,
    processes: Processes,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets (B, T) int64 on `device` of micro-batch `first` and all that follow.

    The next one is read, and its copy to the device begun, while this one is computed on.
    """
    B, T = batch_size // processes.world, order.block_size

    def load(m: int) -> tuple[Tensor, Tensor]:
        starts = order.starts(m * batch_size + processes.rank * B, B)
        return _to_device(split.windows(starts, T + 1), processes.device)

    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = pool.submit(load, first)
        while True:
            first += 1
            ready, coming = coming.result(), pool.submit(load, first)
            yield ready


def validation_batches(
    split: Split,
    max_tokens: int,
    block_size: int,
    batch_size: int,
    processes: Processes,
) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's share of the first `max_tokens` (0: all) targets, in whole windows.

    Always the same windows in the same order, whatever the number of processes. Raises UserError
    if the split has no whole window.
    """
    targets = split.tokens - 1
    count = (min(max_tokens, targets) if max_tokens else targets) // block_size
    if count < 1:
        raise UserError(
            f"{split.tokens} validation tokens or eval_tokens={max_tokens}"
            f" do not fill one window of block_size={block_size}"
        )
    starts = np.arange(processes.rank, count, processes.world) * block_size
    for i in range(0, len(starts), batch_size):
        tokens = split.windows(starts[i : i + batch_size], block_size + 1)
        yield _to_device(tokens, processes.device)


def _to_device(tokens: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Windows (B, T + 1) to inputs and targets (B, T), copied without waiting where possible."""
    batch = torch.from_numpy(tokens)
    if device.type == "cuda":
        batch = batch.pin_memory().to(device, non_blocking=True)
    else:
        batch = batch.to(device)
    return batch[:, :-1].contiguous(), batch[:, 1:].contiguous()
