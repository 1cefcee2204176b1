"""Token shards as batches: a data set is checked when opened, then read through memory maps.

How a document becomes a batch: prepare_data.py writes its tokens and an end-of-text token into a
shard; the shards of a split, one after another, are one long stream of tokens. An epoch cuts the
stream into windows of block_size + 1 tokens, each beginning with the last token of the one
before, so that every token is a target once. Where the first window starts (below block_size)
and the order of the windows are drawn for every epoch from (seed, epoch). Sequence number n
of the run is window n % windows of epoch n // windows; micro-batch m of the run holds sequences
m * batch_size to (m + 1) * batch_size - 1, and each process takes its slice. So the batch of
a step follows from (seed, step) alone: there is no cursor to save.

A data set of conversations is read in packed rows (packing.py), permuted for every epoch.

Validation reads windows spread evenly over the whole split, the same ones whatever the seed, the
variant or the number of processes, and says which document each target belongs to, so that a loss
can be kept by document.

Shapes: B sequences of this process, T = block_size.
"""

import contextlib
import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inputcodes import files
from inputcodes.configurator import UserError, command
from inputcodes.distributed import Processes
from inputcodes.packing import ChatRows, Layout, segment_layout
from inputcodes.shards import FORMAT, NEW, SPLITS, summary
from inputcodes.tokenizer import SPECIAL_NAMES, Tokenizer


class Split:
    """The shards of a split as one stream of token ids."""

    def __init__(self, paths: list[Path], dtype: np.dtype[Any], end_of_text: int) -> None:
        self.shards = [np.memmap(path, dtype.newbyteorder("<"), mode="r") for path in paths]
        self.ends = np.cumsum([len(shard) for shard in self.shards])
        self.tokens = int(self.ends[-1]) if paths else 0
        self._end_of_text = end_of_text

    @functools.cached_property
    def document_ends(self) -> NDArray[np.int64]:
        """Where in the stream the end-of-text tokens stand, (N,)."""
        starts = self.ends - [len(shard) for shard in self.shards]
        within = [np.flatnonzero(shard == self._end_of_text) for shard in self.shards]
        parts = [start + places for start, places in zip(starts, within, strict=True)]
        return np.concatenate([np.empty(0, dtype=np.int64), *parts])

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

    def __init__(self, split: Split, block_size: int) -> None:
        self._split = split
        self.tokens, self.block_size, self.stride = split.tokens, block_size, block_size
        self.count = max(0, split.tokens // block_size - 1)  # an epoch, whatever its offset

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens"

    def too_few(self, split: str) -> str:
        return (
            f"{self.tokens:,} {split} tokens are too few for block_size={self.block_size}:"
            " add text, or train a new model with a smaller one"
        )

    def read(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        """Inputs and targets, each (len(numbers), block_size) int64."""
        tokens = self._split.windows(numbers, self.block_size + 1)
        return tokens[:, :-1], tokens[:, 1:]

    def targets(self, numbers: NDArray[np.int64]) -> int:
        return len(numbers) * self.block_size

    def documents(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of each target's document in the split, (len(numbers), block_size)."""
        targets = numbers[:, None] + np.arange(1, self.block_size + 1)
        return np.searchsorted(self._split.document_ends, targets)

    @property
    def document_count(self) -> int:
        """How many documents the split has, what follows the last end-of-text token included."""
        return len(self._split.document_ends) + 1

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
        """Open `path`, checked; `verify` also compares every shard with its SHA-256.

        What was verified is remembered by size and modification time.
        """
        self.path, self._advice = path, f"delete {path} and prepare the data set again"
        self.meta = self._read_meta()
        self.tokenizer = Tokenizer.load(self._file("tokenizer.json"))
        if self.meta.get("tokenizer_sha256") != self.tokenizer.sha256:
            raise self._damaged("tokenizer.json", "is not the one meta.json was written with")
        with files.damage_named(path / "meta.json", self._advice):
            check_meta(self.meta, self.tokenizer)
        self.vocab_size, self.sha256 = self.tokenizer.vocab_size, str(self.meta["data_sha256"])
        self.chat: bool = self.meta.get("settings", {}).get("chat", False)
        with files.system_errors("read", path):
            self.train, self.val = self._open_splits(verify)
        self._packed: dict[tuple[str, int], ChatRows] = {}  # packing is slow
        marks = [self.tokenizer.special[name] for name in SPECIAL_NAMES[1:]]
        if self.chat != any(shard[0] in marks for shard in self.train.shards[:1]):
            what = "plain texts" if self.chat else "conversations"
            raise self._damaged("meta.json", f"says chat={self.chat}, but the shards hold {what}")

    def rows(self, name: str, block_size: int) -> Rows:
        """What a run reads of split `name`: windows of the stream, or packed conversations."""
        split = {"train": self.train, "val": self.val}[name]
        if not self.chat:
            return TextRows(split, block_size)
        if (name, block_size) not in self._packed:
            tokens = np.concatenate([np.empty(0, dtype=self.tokenizer.dtype), *split.shards])
            self._packed[name, block_size] = ChatRows(tokens, self.tokenizer, block_size)
        return self._packed[name, block_size]

    def _damaged(self, name: str, what: str) -> UserError:
        return UserError(f"{self.path / name} {what}: {self._advice}")

    def _read_meta(self) -> dict[str, Any]:
        to_take_over = (self.path / NEW / "meta.json").is_file()  # in the place of what is here
        if (self.path / "meta.json").is_file() and not to_take_over:
            meta = files.read_json(self.path / "meta.json", self._advice)
            if meta.get("format") != FORMAT:
                what = f"has format {meta.get('format')!r}, expected {FORMAT}"
                raise self._damaged("meta.json", what)
            return meta
        if (self.path / NEW).is_dir():
            raise UserError(f"{self.path} is unfinished: repeat the command that prepares it")
        raise UserError(
            f"no data set in {self.path}: choose another --dataset or --data_dir, or make one"
            f" (`{command('prepare_data.py', '--help')}`)"
        )

    def _file(self, name: str) -> Path:
        if not (self.path / name).is_file():
            raise self._damaged(name, "is missing")
        return self.path / name

    def _open_splits(self, verify: bool) -> list[Split]:
        """Check the size of every shard, and its hash unless verified.json has it."""
        remembered, dtype = self.path / "verified.json", self.tokenizer.dtype
        before: dict[str, Any] = {}
        with contextlib.suppress(UserError):  # a damaged file is as good as none
            before = files.read_json(remembered)
        verified: dict[str, Any] = {}
        shards = {split: self.meta["splits"][split]["files"] for split in SPLITS}
        for file in (*shards["train"], *shards["val"]):
            path = self._file(name := file["name"])
            stat, expected = path.stat(), dtype.itemsize * file["tokens"]
            if stat.st_size != expected:
                raise self._damaged(name, f"holds {stat.st_size} bytes, expected {expected}")
            verified[name] = [stat.st_size, stat.st_mtime_ns, file["sha256"]]
            known = not verify or before.get(name) == verified[name]
            if not known and files.file_sha256(path) != file["sha256"]:
                raise self._damaged(name, "was altered (wrong SHA-256)")
        if verify and verified != before:
            with contextlib.suppress(UserError):  # in a read-only folder: verify again next time
                files.write_json(remembered, verified)
        end = self.tokenizer.end_of_text
        return [Split([self.path / file["name"] for file in shards[s]], dtype, end) for s in SPLITS]


def show(data: DataSet, documents: int = 3, tokens: int = 100) -> str:
    """The counts of a data set and the beginnings of its first documents of each split."""
    lines = [summary(data.path, data.meta)]
    counts = np.sort(np.bincount(data.train.shards[0][:10_000_000]))[::-1]
    used, half = np.count_nonzero(counts), 1 + np.searchsorted(counts.cumsum(), counts.sum() / 2)
    of = f"of the first {counts.sum():,} training tokens"
    ids = f"{used:,} of {data.meta['vocab_size']:,} ids are in use"
    lines.append(f"  {ids}, half {of} are one of {half:,}")
    for name, split in zip(SPLITS, (data.train, data.val), strict=True):
        for shard in split.shards[:1]:
            ends = np.flatnonzero(shard[:10_000_000] == data.tokenizer.end_of_text)[:documents]
            starts = [start for start in (0, *(ends + 1)) if start < len(shard)]
            for start, end in zip(starts[:documents], [*ends, len(shard)], strict=False):
                text = data.tokenizer.decode(shard[start : min(end, start + tokens)].tolist())
                text = text.rstrip("\ufffd")  # of a character that is cut
                lines.append(f"  {name}: {text!r}")
    return "\n".join(lines)


def check_meta(meta: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Raise an error for what in meta.json contradicts the rest of it or the tokenizer."""

    def check(name: str, value: Any, expected: Any) -> None:
        if value != expected or type(value) is not type(expected):
            raise ValueError(f"{name} {value!r}, expected {expected!r}")

    check("vocab_size", meta["vocab_size"], tokenizer.vocab_size)
    check("dtype", meta.get("dtype", "uint16"), tokenizer.dtype.name)
    chat = meta.get("settings", {}).get("chat", False)
    check("chat", chat, bool(chat))
    hashes = [tokenizer.sha256]
    for split in SPLITS:
        entries = meta["splits"][split]["files"]
        for entry in entries:
            check("name of a shard", entry["name"], Path(str(entry["name"])).name)
            check(f"tokens of {entry['name']}", entry["tokens"], max(1, int(entry["tokens"])))
            hashes.append(entry["sha256"])
        for name in ("documents", "bytes"):
            value = meta["splits"][split][name]
            check(f"{name} of {split}", value, min(max(0, int(value)), 2**63 - 1))
        total = sum(entry["tokens"] for entry in entries)
        check(f"tokens of {split}", meta["splits"][split]["tokens"], total)
    for reason, number in meta.get("skipped", {}).items():
        check(reason, number, max(0, int(number)))
    check("data_sha256", meta["data_sha256"], files.sha256_of_all(hashes))


class BatchOrder:
    """Which row is sequence number n of a run: a pure function of (seed, n).

    An epoch has `count` rows, numbered `stride` apart from an offset below `stride`.
    """

    def __init__(self, count: int, stride: int, seed: int) -> None:
        self.count, self.stride, self.seed = count, stride, seed
        self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)

    def rows(self, first: int, count: int) -> NDArray[np.int64]:
        return np.array([self._row(n) for n in range(first, first + count)])

    def _row(self, n: int) -> int:
        epoch, position = divmod(n, self.count)
        offset, permutation = self._epoch(epoch)
        return offset + int(permutation[position]) * self.stride

    def _draw_epoch(self, epoch: int) -> tuple[int, np.ndarray]:
        # RandomState's stream is frozen for good, unlike Generator's (NumPy NEP 19).
        rng = np.random.RandomState(np.random.MT19937(np.random.SeedSequence((self.seed, epoch))))
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
            raise UserError(rows.too_few("training"))
        self.rows, self.batch_size = rows, batch_size
        self.order = BatchOrder(rows.count, rows.stride, seed)

    def targets(self, first: int, micro_batches: int) -> int:
        """How many targets have a loss in micro-batches `first`, ... of all processes."""
        sequences = first * self.batch_size, micro_batches * self.batch_size
        return self.rows.targets(self.order.rows(*sequences))

    def batches(self, first: int, processes: Processes) -> Iterator[Batch]:
        """This process's slices of micro-batch `first` and what follows, read one ahead."""
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


def validation_numbers(rows: Rows, max_targets: int) -> NDArray[np.int64]:
    """The rows with up to `max_targets` (0: all) targets, spread over the whole split."""
    if not rows.tokens:
        raise UserError("the data set has no text to validate: prepare it with a val_fraction")
    numbers = rows.validation(max_targets)
    if not len(numbers):
        if not len(rows.validation(0)):
            raise UserError(rows.too_few("validation"))
        raise UserError(
            f"eval_tokens={max_targets} do not fill one window of block_size={rows.block_size}"
            " (0: all validation tokens)"
        )
    return numbers


def validation_batches(
    rows: Rows, max_targets: int, batch_size: int, processes: Processes
) -> Iterator[Batch]:
    """This process's share of the `validation_numbers`, with `documents`, in a fixed order."""
    numbers = validation_numbers(rows, max_targets)[processes.rank :: processes.world]
    for i in range(0, len(numbers), batch_size):
        part = numbers[i : i + batch_size]
        documents = torch.from_numpy(rows.documents(part)).to(processes.device)
        yield _load(rows, part, processes.device)._replace(documents=documents)


def _load(rows: Rows, numbers: NDArray[np.int64], device: torch.device) -> Batch:
    """Read rows and copy them to the device, without waiting where possible."""
    arrays = [torch.from_numpy(np.ascontiguousarray(array)) for array in rows.read(numbers)]
    pinned = device.type == "cuda"
    if pinned:
        arrays = [array.pin_memory() for array in arrays]
    # MPS would still read memory that is not pinned when it is free again (PyTorch issue 189690).
    x, y, *layout = (array.to(device, non_blocking=pinned) for array in arrays)
    return Batch(x, y, segment_layout(*layout) if layout else None, rows.targets(numbers))
