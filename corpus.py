"""Documents: where they come from, whether they are text, and on which side of the split.

They come from the standard library, local files or Hugging Face data sets.

Every source is a streamed `datasets.IterableDataset` whose rows hold one document, so nothing is
copied to a cache and reading can go on from a saved state. A `Stream` puts the sources one after
the other or mixes them, and hands out documents as it finds them: a string, bytes not yet decoded
(text files), or whatever else the column holds; `read_text` decides whether it is text.
"""

import bisect
import glob
import hashlib
import itertools
import json
import os
import platform
import random
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configurator import UserError

if TYPE_CHECKING:
    from datasets import IterableDataset

SKIPS = ("empty", "binary", "not_utf8", "surrogate", "not_text")
SPLIT_KEY = b"input-codes split"
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py")
SUFFIXES = (".jsonl", ".parquet", *TEXT_SUFFIXES)
# Distributions strip the tests; the others are not the library's own source.
STDLIB_SKIPS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


class Stream:
    """Documents of several sources: in turn, or each drawn from a source chosen at random.

    With probabilities the stream ends when the source drawn has no document left, so that the
    proportions hold to the end. `state` says where it stands, as JSON values; a stream opened on
    the same sources with that state goes on from there.
    """

    def __init__(
        self,
        sources: Sequence["IterableDataset"],
        column: str,
        probabilities: Sequence[float] = (),
        seed: int = 0,
    ) -> None:
        self._sources = sources
        self._column = column
        self._bounds = list(itertools.accumulate(probabilities))[:-1]
        self._mixed = bool(probabilities)
        self._seed = seed
        self._drawn = 0

    def state(self) -> dict[str, Any]:
        """How many documents were drawn, and where each source stands."""
        return {"drawn": self._drawn, "sources": [source.state_dict() for source in self._sources]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`; call it before iterating."""
        self._drawn = state["drawn"]
        for source, position in zip(self._sources, state["sources"], strict=True):
            source.load_state_dict(position)

    def __iter__(self) -> Iterator[Any]:
        rows = [_rows(source) for source in self._sources]
        if not self._mixed:
            for row in itertools.chain.from_iterable(rows):
                yield self._document(row)
            return
        # datasets.interleave_datasets does this too, at 30 MB/s where this loop reaches 250.
        draw = random.Random(self._seed)
        for _ in range(self._drawn):
            draw.random()
        while drawn := next(rows[bisect.bisect(self._bounds, draw.random())], None):
            self._drawn += 1
            yield self._document(drawn)

    def _document(self, row: dict[str, Any]) -> Any:
        if self._column not in row:
            raise UserError(
                f"no column {self._column!r}; there are {', '.join(row)} (pass --text_column=...)"
            )
        return row[self._column]


def _rows(source: "IterableDataset") -> Iterator[dict[str, Any]]:
    """The rows of a source; what goes wrong on the way (network, damaged files) is a UserError."""
    try:
        yield from source
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot read on: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The first line of what an error says, after its type."""
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]


def describe_sources(kind: str, entries: Sequence[str]) -> list[dict[str, Any]]:
    """What is read: name, number of files and bytes (a hub's are not known) of each entry."""
    if kind == "hub":
        return [{"name": entry} for entry in entries]
    paths = {entry: matching_files(entry) for entry in entries}
    if kind == "stdlib":
        version = f"{platform.python_implementation()} {platform.python_version()}"
        paths = {f"{version} standard library": stdlib_files()}
    return [
        {"name": name, "files": len(found), "bytes": sum(map(os.path.getsize, found))}
        for name, found in paths.items()
    ]


def open_sources(kind: str, entries: Sequence[str], column: str) -> list["IterableDataset"]:
    """The entries of kind `files` (globs) or `hub`, or the standard library, which has none."""
    if kind == "hub":
        return [open_hub(entry, column) for entry in entries]
    if kind == "stdlib":
        return [open_files(stdlib_files(), column)]
    return [open_files(matching_files(entry), column) for entry in entries]


def stdlib_files() -> list[str]:
    """The .py, .txt and .rst files of the running Python's own library, in sorted order."""
    root = sysconfig.get_paths()["stdlib"]
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = set(folders) - STDLIB_SKIPS
        found += [os.path.join(folder, name) for name in names]
    return sorted(
        path
        for path in found
        if path.endswith((".py", ".txt", ".rst"))
        and not os.path.basename(path).startswith("_sysconfigdata")  # paths of one machine
    )


def matching_files(pattern: str) -> list[str]:
    """The files a glob names, sorted; UserError if there is none or one cannot be read."""
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    if not paths:
        raise UserError(f"no file matches {pattern!r}: check the path and quote the pattern")
    for path in paths:
        if Path(path).suffix not in SUFFIXES:
            raise UserError(f"cannot read {path}: expected one of {', '.join(SUFFIXES)}")
    return paths


def open_files(paths: Sequence[str], column: str) -> "IterableDataset":
    """One document a text file, JSON line or parquet row; files in the order given."""
    from datasets import IterableDataset  # a second of imports, not needed by users of the shards

    return IterableDataset.from_generator(
        _read_files, gen_kwargs={"paths": list(paths), "column": column}
    )


def open_hub(name: str, column: str) -> "IterableDataset":
    """The training split of a data set `path` or `path:config` on the hub, or a local folder."""
    from datasets import load_dataset

    path, _, config = (name, "", "") if os.path.isdir(name) else name.partition(":")
    try:
        source = load_dataset(path, config or None, split="train", streaming=True)
    except Exception as error:
        raise UserError(f"cannot open the data set {name!r}: {_reason(error)}") from error
    known = source.column_names
    if known and column not in known:
        raise UserError(
            f"{name}: no column {column!r}; there are {', '.join(known)} (pass --text_column=...)"
        )
    return source.select_columns([column]) if known else source


def _read_files(paths: Sequence[str], column: str) -> Iterator[dict[str, Any]]:
    for path in paths:
        if path.endswith(".parquet"):
            yield from _read_parquet(path, column)
        elif path.endswith(".jsonl"):
            yield from _read_json_lines(path, column)
        else:
            yield {column: Path(path).read_bytes()}


def _read_parquet(path: str, column: str) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                known = ", ".join(file.schema_arrow.names)
                raise UserError(
                    f"{path}: no column {column!r}; there are {known} (pass --text_column=...)"
                )
            for batch in file.iter_batches(batch_size=256, columns=[column]):
                yield from ({column: document} for document in batch.column(0).to_pylist())
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"cannot read {path}: {_reason(error)}") from error


def _read_json_lines(path: str, column: str) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode())
            except ValueError as error:
                raise UserError(f"{path}, line {number}: not JSON in UTF-8: {error}") from error
            if not isinstance(row, dict) or column not in row:
                known = ", ".join(row) if isinstance(row, dict) else type(row).__name__
                raise UserError(
                    f"{path}, line {number}: no key {column!r}; found {known} "
                    "(pass --text_column=...)"
                )
            yield {column: row[column]}


def read_text(document: Any) -> tuple[str, bytes, str]:
    """The text of a document, its UTF-8, and its outcome: one of SKIPS, or "" if it is text."""
    if document is None:
        return "", b"", "empty"
    try:
        text = document.decode() if isinstance(document, bytes) else document
    except UnicodeDecodeError:
        return "", b"", "binary" if b"\0" in document else "not_utf8"
    if not isinstance(text, str):
        return "", b"", "not_text"
    if "\0" in text:
        return "", b"", "binary"
    try:
        return text, text.encode(), "" if text.strip() else "empty"
    except UnicodeEncodeError:
        return "", b"", "surrogate"


def split_of(utf8: bytes, val_fraction: float) -> str:
    """The side of a document: the same for the same text, whatever else there is."""
    digest = hashlib.blake2b(utf8, digest_size=8, key=SPLIT_KEY).digest()
    return "val" if int.from_bytes(digest, "little") < val_fraction * 2**64 else "train"
