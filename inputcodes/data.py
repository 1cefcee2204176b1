"""Token shards as batches: a data set is checked when opened, then read through memory maps.

How a document becomes a batch: prepare_data.py writes its tokens and an end-of-text token into a
shard; the shards of a split, one after another, are one long stream of tokens. An epoch cuts the
stream into windows of block_size + 1 tokens, each beginning with the last token of the one
before, so that every token is a target once. Where the first window starts (below block_size)
and the order of the windows are drawn anew for every epoch from (seed, epoch). Sequence number n
of the run is window n % windows of epoch n // windows; micro-batch m of the run holds sequences
m * batch_size to (m + 1) * batch_size - 1, and each process takes its slice. So what a step sees
follows from (seed, step) alone: there is no cursor to save.

A data set of conversations is read in packed rows instead (packing.py), numbered 0, 1, ..., which
every epoch permutes anew.

Validation reads windows spread evenly over the whole split, the same ones whatever the seed, the
variant or the number of processes, and says which document each target belongs to, so that a loss
can be kept by document.

Shapes: B sequences of this process, T = block_size.
"""

import functools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inputcodes.configurator import UserError
from inputcodes.distributed import Processes
from inputcodes.packing import ChatRows
from inputcodes.shards import file_sha256
from inputcodes.tokenizer import Tokenizer
from model import Layout, segment_layout


class Split:
    """The shards of a split as one stream of uint16 token ids."""

    def __init__(self, paths: list[Path]) -> None:
        self.shards = [np.memmap(path, dtype="<u2", mode="r") for path in paths]
        self.ends = np.cumsum([len(shard) for shard in self.shards])
        self.tokens = int(self.ends[-1]) if paths else 0
        self._places: dict[int, NDArray[np.int64]] = {}  # one pass over the split is enough

    def places(self, token: int) -> NDArray[np.int64]:
        """The positions in the stream where `token` stands, in order, (N,)."""
        if token not in self._places:
            starts = self.ends - [len(shard) for shard in self.shards]
            found = [np.flatnonzero(shard == token) for shard in self.shards]
            parts = [start + places for start, places in zip(starts, found, strict=True)]
            self._places[token] = np.concatenate([np.empty(0, dtype=np.int64), *parts])
        return self._places[token]

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


class TextRows:
    """The stream of a split in windows, numbered by the token that they begin with."""

    def __init__(self, split: Split, block_size: int, end_of_text: int) -> None:
        self._split, self._end_of_text = split, end_of_text
        self.tokens, self.block_size, self.stride = split.tokens, block_size, block_size
        self.count = max(0, split.tokens // block_size - 1)  # an epoch, whatever its offset

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens"

    def read(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        """Inputs and targets, each (len(numbers), block_size) int64."""
        tokens = self._split.windows(numbers, self.block_size + 1)
        return tokens[:, :-1], tokens[:, 1:]

    def targets(self, numbers: NDArray[np.int64]) -> int:
        """How many targets these windows have."""
        return len(numbers) * self.block_size

    def documents(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The document of each target, (len(numbers), block_size): 0, 1, ... in the split.

        The end-of-text token is the last target of its document.
        """
        targets = numbers[:, None] + np.arange(1, self.block_size + 1)
        return np.searchsorted(self._split.places(self._end_of_text), targets)

    @property
    def document_count(self) -> int:
        """How many documents the split has, what follows the last end-of-text token included."""
        return len(self._split.places(self._end_of_text)) + 1

    def validation(self, max_targets: int) -> NDArray[np.int64]:
        """Windows with at most `max_targets` targets, spread evenly over the split (0: all)."""
        whole = max(0, self.tokens - 1) // self.block_size
        count = min(max_targets // self.block_size, whole) if max_targets else whole
        # The middle one of each of `count` equal parts of the windows.
        return (2 * np.arange(count) + 1) * whole // (2 * max(count, 1)) * self.block_size


Rows = TextRows | ChatRows


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
        self.chat: bool = self.meta.get("settings", {}).get("chat", False)
        self._packed: dict[tuple[str, int], ChatRows] = {}  # packing is slow
        self.train, self.val = (self._open_split(name, verify) for name in ("train", "val"))

    def rows(self, name: str, block_size: int) -> Rows:
        """What a run reads of split `name`: windows of the stream, or packed conversations."""
        split = {"train": self.train, "val": self.val}[name]
        if not self.chat:
            return TextRows(split, block_size, self.tokenizer.end_of_text)
        if (name, block_size) not in self._packed:
            tokens = np.concatenate([np.empty(0, dtype=np.uint16), *split.shards])
            self._packed[name, block_size] = ChatRows(tokens, self.tokenizer, block_size)
        return self._packed[name, block_size]

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
            if verify and file_sha256(path) != entry["sha256"]:
                raise UserError(f"{path} was altered (wrong SHA-256): prepare the data set again")
            paths.append(path)
        return Split(paths)


class BatchOrder:
    """Which row is sequence number n of a run: a pure function of (seed, n).

    An epoch has `count` rows, numbered `stride` apart from an offset below `stride`.
    """

    def __init__(self, count: int, stride: int, seed: int) -> None:
        self.count, self.stride, self.seed = count, stride, seed
        self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)

    def rows(self, first: int, count: int) -> NDArray[np.int64]:
        """The numbers of the rows of sequences first to first + count - 1."""
        return np.array([self._row(n) for n in range(first, first + count)])

    def _row(self, n: int) -> int:
        epoch, position = divmod(n, self.count)
        offset, permutation = self._epoch(epoch)
        return offset + int(permutation[position]) * self.stride

    def _draw_epoch(self, epoch: int) -> tuple[int, np.ndarray]:
        # RandomState's stream is frozen for good, unlike Generator's (NumPy NEP 19).
        bits = np.random.MT19937(np.random.SeedSequence((self.seed, epoch)))
        rng = np.random.RandomState(bits)
        return int(rng.randint(self.stride)), rng.permutation(self.count)


class Batch(NamedTuple):
    """Rows of one process on its device; `targets` of `y` have a loss, the others are IGNORED."""

    x: Tensor  # (B, T) int64
    y: Tensor  # (B, T) int64
    layout: Layout | None  # of rows that hold several texts
    targets: int
    documents: Tensor | None = None  # (B, T) int64, of validation: the document of each target


class TrainingData:
    """The training rows of a run in their order; micro-batch m holds `batch_size` of them."""

    def __init__(self, rows: Rows, batch_size: int, seed: int) -> None:
        if not rows.count:
            raise UserError(
                f"{rows.tokens} training tokens are too few for block_size={rows.block_size}"
            )
        self.rows, self.batch_size = rows, batch_size
        self.order = BatchOrder(rows.count, rows.stride, seed)

    def targets(self, first: int, micro_batches: int) -> int:
        """How many targets have a loss in micro-batches `first`, ... of all processes."""
        sequences = first * self.batch_size, micro_batches * self.batch_size
        return self.rows.targets(self.order.rows(*sequences))

    def batches(self, first: int, processes: Processes) -> Iterator[Batch]:
        """This process's slices of micro-batch `first` and of all that follow.

        The next one is read, and its copy to the device begun, while this one is computed on.
        """
        B = self.batch_size // processes.world

        def load(m: int) -> Batch:
            numbers = self.order.rows(m * self.batch_size + processes.rank * B, B)
            return _load(self.rows, numbers, processes.device)

        with ThreadPoolExecutor(max_workers=1) as pool:
            coming = pool.submit(load, first)
            while True:
                first += 1
                ready, coming = coming.result(), pool.submit(load, first)
                yield ready


def validation_batches(
    rows: Rows, max_targets: int, batch_size: int, processes: Processes
) -> Iterator[Batch]:
    """This process's share of rows with up to `max_targets` (0: all) targets, with `documents`.

    They are spread over the whole split: always the same rows in the same order, whatever the
    number of processes. Raises UserError if there is no whole row.
    """
    numbers = rows.validation(max_targets)
    if not len(numbers):
        raise UserError(
            f"{rows.tokens} validation tokens or eval_tokens={max_targets}"
            f" do not fill one window of block_size={rows.block_size}"
        )
    numbers = numbers[processes.rank :: processes.world]
    for i in range(0, len(numbers), batch_size):
        part = numbers[i : i + batch_size]
        documents = torch.from_numpy(rows.documents(part)).to(processes.device)
        yield _load(rows, part, processes.device)._replace(documents=documents)


def _load(rows: Rows, numbers: NDArray[np.int64], device: torch.device) -> Batch:
    """Read rows and copy them to the device, without waiting where possible."""
    arrays = [torch.from_numpy(np.ascontiguousarray(array)) for array in rows.read(numbers)]
    if device.type == "cuda":
        arrays = [array.pin_memory() for array in arrays]
    x, y, *layout = (array.to(device, non_blocking=True) for array in arrays)
    return Batch(x, y, segment_layout(*layout) if layout else None, rows.targets(numbers))
