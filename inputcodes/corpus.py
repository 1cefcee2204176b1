"""Where documents come from: the standard library, local files or Hugging Face data sets.

Every source is a streamed `datasets.IterableDataset` whose rows hold one document, so nothing is
copied to a cache and reading can go on from a saved state. A `Stream` puts the sources one after
the other or mixes them, and hands out documents as it finds them: of texts what the column holds,
be it a string, bytes not yet decoded (text files) or anything else; of conversations the row.
documents.py decides what they are.

`column` is the column or key of texts throughout; None stands for conversations, in `messages` or
in `prompt` and `response`.
"""

import bisect
import glob
import hashlib
import itertools
import json
import os
import platform
import random
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inputcodes.configurator import UserError
from inputcodes.documents import SPLIT_KEY, docstring_rows

if TYPE_CHECKING:
    from datasets import IterableDataset

CHAT_COLUMNS = (("messages",), ("prompt", "response"))
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py")
SUFFIXES = (".jsonl", ".parquet", *TEXT_SUFFIXES)
SPLIT_COLUMN = "<split>"  # of rows whose source says on which side they are
# Distributions strip the tests; the others are not the library's own source.
STDLIB_SKIPS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
# Modules whose names do not show that they share text: one family each.
STDLIB_SIBLINGS = (
    "abc py_abc collections_abc",
    "aifc chunk imghdr sndhdr sunau wave",
    "asynchat asyncore smtpd",
    "bz2 compression gzip lzma",
    "cProfile profile pstats",
    "distutils sysconfig",
    "ftplib imaplib nntplib poplib smtplib",
    "genericpath ntpath nturl2path posixpath",
    "imp importlib",
    "lib2to3 token tokenize",
    "re sre_compile sre_constants sre_parse",
    "turtle turtledemo",
)

Item = tuple[str, Any]  # a document and the split its source puts it in, "" if its hash decides


class Stream:
    """Documents of several sources: in turn, or each drawn from a source chosen at random.

    With probabilities the stream ends when the source drawn has no document left, so that the
    proportions hold to the end. `state` says where it stands, as JSON values; a stream opened on
    the same sources with that state goes on from there.
    """

    def __init__(
        self,
        sources: Sequence["IterableDataset"],
        column: str | None,
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

    def __iter__(self) -> Iterator[Item]:
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

    def _document(self, row: dict[str, Any]) -> Item:
        names = _columns(row, self._column, "a row")
        texts = {name: row[name] for name in names}
        document = texts if self._column is None else texts[self._column]
        return row.get(SPLIT_COLUMN, ""), document


def _rows(source: "IterableDataset") -> Iterator[dict[str, Any]]:
    """The rows of a source; what goes wrong on the way (network, damaged files) is a UserError."""
    try:
        yield from source
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot read on: {_reason(error)}") from error


def _columns(known: Iterable[str], column: str | None, where: str) -> list[str]:
    """Those of the known columns that hold a document; UserError if some are missing."""
    for names in CHAT_COLUMNS if column is None else ((column,),):
        if all(name in known for name in names):
            return list(names)
    wanted, advice = f"no column {column!r}", " (pass --text_column=...)"
    if column is None:
        wanted, advice = "neither 'messages' nor 'prompt' and 'response'", ""
    raise UserError(f"{where}: {wanted}; there are {', '.join(known)}{advice}")


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
        paths = {f"{version} standard library, split by family": stdlib_files()}
    return [
        {"name": name, "files": len(found), "bytes": sum(map(os.path.getsize, found))}
        for name, found in paths.items()
    ]


def open_sources(
    kind: str, entries: Sequence[str], column: str | None, val_fraction: float
) -> list["IterableDataset"]:
    """The entries of kind `files` (globs) or `hub`, or the standard library, which has none.

    The library's conversations are signatures and docstrings, and it is split by family.
    """
    if kind == "hub":
        return [open_hub(entry, column) for entry in entries]
    if kind == "stdlib":
        paths = stdlib_files()
        splits = stdlib_splits(paths, val_fraction)
        return [_generated(_read_stdlib, paths=paths, splits=splits, column=column)]
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


def stdlib_family(path: str) -> str:
    """The package or family of modules that a file of the library belongs to."""
    top = os.path.relpath(path, sysconfig.get_paths()["stdlib"]).split(os.sep)[0]
    name = re.sub(r"^_+(py(?=[^_]))?", "", top.removesuffix(".py"))  # _pyio goes with io
    return next((group for group in STDLIB_SIBLINGS if name in group.split()), name)


def stdlib_splits(paths: Sequence[str], val_fraction: float) -> list[str]:
    """The split of each file: whole families, so that near-duplicates are on the same side.

    Families are held out in the order of a keyed hash of their names until `val_fraction` of the
    bytes is reached; one larger than a sixth of that is for training, lest it dominate.
    """
    sizes: dict[str, int] = {}
    for path in paths:
        family = stdlib_family(path)
        sizes[family] = sizes.get(family, 0) + os.path.getsize(path)
    wanted = val_fraction * sum(sizes.values())
    held_out: set[str] = set()
    for family in sorted(sizes, key=_family_hash):
        if sizes[family] <= wanted / 6 and sum(sizes[name] for name in held_out) < wanted:
            held_out.add(family)
    return ["val" if stdlib_family(path) in held_out else "train" for path in paths]


def _family_hash(family: str) -> bytes:
    return hashlib.blake2b(family.encode(), digest_size=8, key=SPLIT_KEY).digest()


def _read_stdlib(
    paths: Sequence[str], splits: Sequence[str], column: str | None
) -> Iterator[dict[str, Any]]:
    for path, split in zip(paths, splits, strict=True):
        if column is not None:
            yield {column: Path(path).read_bytes(), SPLIT_COLUMN: split}
        elif path.endswith(".py"):
            yield from ({**row, SPLIT_COLUMN: split} for row in docstring_rows([path]))


def matching_files(pattern: str) -> list[str]:
    """The files a glob names, sorted; UserError if there is none or one cannot be read."""
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    if not paths:
        raise UserError(f"no file matches {pattern!r}: check the path and quote the pattern")
    for path in paths:
        if Path(path).suffix not in SUFFIXES:
            raise UserError(f"cannot read {path}: expected one of {', '.join(SUFFIXES)}")
    return paths


def _generated(read: Callable[..., Iterator[dict[str, Any]]], **arguments: Any) -> Any:
    from datasets import IterableDataset  # a second of imports, not needed by users of the shards

    return IterableDataset.from_generator(read, gen_kwargs=arguments)


def open_files(paths: Sequence[str], column: str | None) -> "IterableDataset":
    """One document a text file, JSON line or parquet row; files in the order given."""
    for path in paths:
        if column is None and not path.endswith((".jsonl", ".parquet")):
            raise UserError(f"{path} holds no conversations: expected .jsonl or .parquet")
    return _generated(_read_files, paths=list(paths), column=column)


def open_hub(name: str, column: str | None) -> "IterableDataset":
    """The training split of a data set `path` or `path:config` on the hub, or a local folder."""
    from datasets import load_dataset

    path, _, config = (name, "", "") if os.path.isdir(name) else name.partition(":")
    try:
        source = load_dataset(path, config or None, split="train", streaming=True)
    except Exception as error:
        raise UserError(f"cannot open the data set {name!r}: {_reason(error)}") from error
    known = source.column_names
    return source.select_columns(_columns(known, column, name)) if known else source


def _read_files(paths: Sequence[str], column: str | None) -> Iterator[dict[str, Any]]:
    for path in paths:
        if path.endswith(".parquet"):
            yield from _read_parquet(path, column)
        elif path.endswith(".jsonl"):
            yield from _read_json_lines(path, column)
        else:
            assert column is not None, "open_files lets no text file through as a conversation"
            yield {column: Path(path).read_bytes()}


def _read_parquet(path: str, column: str | None) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = _columns(file.schema_arrow.names, column, path)
            for batch in file.iter_batches(batch_size=256, columns=names):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"cannot read {path}: {_reason(error)}") from error


def _read_json_lines(path: str, column: str | None) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode())
            except ValueError as error:
                raise UserError(f"{path}, line {number}: not JSON in UTF-8: {error}") from error
            if not isinstance(row, dict):
                found = type(row).__name__
                raise UserError(f"{path}, line {number}: expected an object, found {found}")
            yield {name: row[name] for name in _columns(row, column, f"{path}, line {number}")}
