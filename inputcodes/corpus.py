"""Where documents come from: the standard library, local files or Hugging Face data sets.

Data sets of the hub are streamed by `datasets`, so nothing is copied to a cache; readers.py reads
local files. A `Stream` puts entries one after the other or mixes them, and hands out `Item`s, of
which documents.py decides what they are and on which side of the split. Reading can resume.
"""

import ast
import bisect
import contextlib
import functools
import hashlib
import itertools
import math
import os
import platform
import random
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inputcodes import readers
from inputcodes.configurator import UserError, local_path
from inputcodes.documents import Item, LeftOut, read_item, split_hash
from inputcodes.files import trying

SMALL_SET = 100_000  # documents after which no side of the split is empty by chance
# Distributions strip the tests; the others are not the library's own source.
STDLIB_SKIPS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
# Modules whose names do not show that they share text: one family each.
STDLIB_SIBLINGS = (
    "abc py_abc collections_abc", "aifc chunk imghdr sndhdr sunau wave",
    "asynchat asyncore smtpd", "bz2 compression gzip lzma", "cProfile profile pstats",
    "distutils sysconfig", "ftplib imaplib nntplib poplib smtplib",
    "genericpath ntpath nturl2path posixpath", "imp importlib", "lib2to3 token tokenize",
    "re sre_compile sre_constants sre_parse", "turtle turtledemo",
)  # fmt: skip


@dataclass
class Entry:
    """One of the things that are read: the library, a path, a pattern or a hub's data set.

    `split` is where its documents belong, "" if each one's hash decides; `hub_split` the split of
    the data set that is read; `paths` its files, None if they are not on this machine;
    `left_alone` says what else is in a folder.
    """

    name: str
    split: str = ""
    hub_split: str = "train"
    paths: list[str] | None = None
    left_alone: str = ""
    is_stdlib: bool = False


@dataclass(frozen=True)
class Corpus:
    """What is read, and how.

    `column` is the column or key of texts, None for conversations; `separator` stands between the
    documents of a text file; `probabilities`, if any, mix the entries by draws from `seed`.
    """

    entries: Sequence[Entry]
    column: str | None
    separator: str
    val_fraction: float
    probabilities: Sequence[float] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        empty = [entry for entry in self.entries if entry.paths == []]
        none_left = all(e in empty or e.split == "val" for e in self.entries)
        if empty and (self.probabilities or none_left):
            raise UserError(f"{empty[0].name}: its files are all named before it: leave it out")
        divided = [e for e in self.entries if not e.is_stdlib and any(map(_is_text, e.paths or ()))]
        if self.separator and not divided:
            raise UserError(
                f"separator={self.separator!r} divides text files, and none is read: leave it out"
            )

    @property
    def text_files(self) -> int:
        """How many text files are read; 0 if there are other sources besides."""
        paths = [path for e in self.entries for path in (("",) if e.paths is None else e.paths)]
        return len(paths) if all(map(_is_text, paths)) else 0

    @property
    def is_one_text(self) -> bool:
        return self.column is not None and not self.separator and self.text_files == 1

    @property
    def is_split_by_hash(self) -> bool:
        """Whether the hash of a document decides its side, not its place or its source."""
        return not self.is_one_text and not any(e.split or e.is_stdlib for e in self.entries)

    def open(self, entry: Entry) -> Any:
        """The Items of an entry; of the hub's, the rows of an IterableDataset."""
        column, paths = self.column, entry.paths
        if paths is None:
            return _open_hub(entry, column)
        if entry.is_stdlib:
            return _read_stdlib(paths, stdlib_splits(paths, self.val_fraction), column)
        readers.check_files(paths, column)
        cut = self.val_fraction if self.is_one_text else 0.0
        return readers.read_files(paths, column, self.separator, cut)


class Stream:
    """Items of several entries: in turn, or each drawn from an entry chosen at random.

    Entries of validation documents come first, one after the other. With probabilities the stream
    ends when the entry drawn has no document left, so that the proportions hold to the end. A
    stream opened on the same corpus with the `state` of another goes on from there.
    """

    def __init__(self, corpus: Corpus, state: dict[str, Any] | None = None) -> None:
        self._corpus = corpus
        self._rows = [corpus.open(entry) for entry in corpus.entries]
        self._bounds = list(itertools.accumulate(corpus.probabilities))
        self._drawn = state["drawn"] if state else 0
        places = state["sources"] if state else [0 for _ in self._rows]
        for rows, place in zip(self._rows, places, strict=True):
            if isinstance(place, dict):  # what `datasets` says of a data set of the hub
                rows.load_state_dict(place)
        self._places = [0 if isinstance(place, dict) else place for place in places]  # items given
        self.used_up = ""  # once a mixture has ended: which entry, and how much of the others

    def state(self) -> dict[str, Any]:
        """How many documents were drawn, and where each entry stands, as JSON values."""
        entries = zip(self._corpus.entries, self._rows, self._places, strict=True)
        places = [r.state_dict() if e.paths is None else place for e, r, place in entries]
        return {"drawn": self._drawn, "sources": places}

    def __iter__(self) -> Iterator[Item]:
        mixed = []
        for number, entry in enumerate(self._corpus.entries):
            if self._bounds and entry.split != "val":
                mixed.append((entry.name, self._items(number)))
            else:
                yield from self._items(number)
        if mixed:
            yield from self._mixture(*zip(*mixed, strict=True))

    def _mixture(self, names: Sequence[str], items: Sequence[Iterator[Item]]) -> Iterator[Item]:
        # datasets.interleave_datasets does this too, at 30 MB/s where this loop reaches 250.
        draw = random.Random(self._corpus.seed)
        draws = (bisect.bisect(self._bounds[:-1], draw.random()) for _ in itertools.count())
        used = Counter(itertools.islice(draws, self._drawn))
        for chosen in draws:
            if (item := next(items[chosen], None)) is None:
                break
            used[chosen] += 1
            while not item.ends:  # the parts of a long text stay together
                yield item
                item = next(items[chosen])
            self._drawn += 1
            yield item
        amounts = [
            f"{used[n]:,} document{'s' * (used[n] != 1)} of {name}" for n, name in enumerate(names)
        ]
        after = ", ".join(amounts)
        self.used_up = f"the mixture ends because {names[chosen]} is used up, after {after}"

    def _items(self, number: int) -> Iterator[Item]:
        """The items of an entry; what goes wrong on the way (network, damage) is a UserError."""
        entry, rows = self._corpus.entries[number], self._rows[number]
        if entry.paths is None:
            rows = (readers.item_of(row, self._corpus.column, entry.name) for row in rows)
        with trying(f"read any further in {entry.name}"):
            for item in itertools.islice(rows, self._places[number], None):
                self._places[number] += 1
                yield item._replace(split=entry.split or item.split)


def _is_text(path: str) -> bool:
    return readers.suffix_of(path) in readers.TEXT_SUFFIXES


def _open_hub(entry: Entry, column: str | None) -> Any:
    from datasets import load_dataset  # a second of imports, which local files do without

    path, config, _ = hub_name(entry.name)
    split, revision = entry.hub_split, _revision(entry.name)
    with trying(f"open the data set {entry.name!r}"):
        rows = load_dataset(path, config, split=split, streaming=True, revision=revision)
    if rows.features:
        schema = rows.features.arrow_schema
        rows = rows.select_columns(readers.check_schema(schema, column, entry.name))
    return rows


def find_threshold(corpus: Corpus) -> tuple[int, str]:
    """The hash below which documents are for validation, and a sentence if that was mended.

    A small set may have all on one side: then the one with the lowest hash is held out.
    """
    val_fraction = corpus.val_fraction
    below = math.ceil(val_fraction * 2**64)
    low, high = 2**64, -1
    for item in itertools.islice(Stream(corpus), SMALL_SET):
        with contextlib.suppress(LeftOut):
            *_, digest = read_item(item, corpus.column is None)
            low, high = min(low, digest), max(high, digest)
        if low < below <= high:
            return below, ""
    if low >= high:
        return below, ""
    side = "train" if low < below else "val"
    return low + 1, (
        f"the hashes of these few documents leave none for {side!r} at "
        f"val_fraction={val_fraction}: the one with the lowest hash is held out for validation"
    )


def find_entries(
    kind: str, names: Sequence[str], val_source: Sequence[str], chat: bool
) -> list[Entry]:
    """What to read, of kind stdlib, files or hub, validation documents first.

    `val_source` names their files, or the splits of each of the hub's data sets. A file counts
    once, however many links and patterns lead to it. With `chat` a folder's texts are not read.
    """
    if kind == "stdlib":
        version = f"{platform.python_implementation()} {platform.python_version()}"
        name = f"{version} standard library, split by family"
        return [Entry(name, paths=stdlib_files(), is_stdlib=True)]
    side = "train" if val_source else ""
    held_out = [Entry(name, "val", split) for split in val_source for name in names]
    if kind == "files":
        held_out = [Entry(name, "val") for name in val_source]
    entries = held_out + [Entry(name, side) for name in names]
    suffixes = readers.ROW_SUFFIXES if chat else readers.SUFFIXES
    seen: set[tuple[int, int]] = set()
    for entry in entries:
        folder, config, revision = hub_name(entry.name)
        if kind == "files":
            paths = readers.matching_files(entry.name, suffixes)
            entry.left_alone = readers.left_alone(entry.name, paths)
        elif os.path.isdir(folder):
            if revision:
                raise UserError(f"{folder} is a folder and has no revision: leave out @{revision}")
            paths, entry.left_alone = _hub_files(folder, config, entry.hub_split)
        else:
            continue
        entry.paths = []
        for path in paths:
            status = os.stat(path)
            if (file := (status.st_dev, status.st_ino)) not in seen:
                entry.paths.append(path)
                seen.add(file)
    return entries


def describe(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """What tells the same input from another: names, sizes and times of files, revisions."""
    return [
        {"name": entry.name, "split": entry.split}
        | ({"revision": _revision(entry.name)} if entry.paths is None else _listing(entry.paths))
        for entry in entries
    ]


def _listing(paths: Sequence[str]) -> dict[str, Any]:
    status = {path: os.stat(path) for path in paths}
    lines = [f"{path}\0{s.st_size}\0{s.st_mtime_ns}\n" for path, s in status.items()]
    digest = hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
    size = sum(s.st_size for s in status.values())
    return {"files": len(paths), "bytes": size, "listing_sha256": digest}


def hub_name(name: str) -> tuple[str, str | None, str | None]:
    """Path, configuration and revision of `path:config@revision`; a folder's name is its path."""
    if os.path.isdir(local_path(name)):
        return local_path(name), None, None
    name, _, revision = name.partition("@")
    path, _, config = name.partition(":")
    return local_path(path), config or None, revision or None


@functools.cache
def _revision(name: str) -> str | None:
    """The commit of a data set on the hub; None if nobody can be asked."""
    from huggingface_hub import dataset_info

    path, _, revision = hub_name(name)
    try:
        return dataset_info(path, revision=revision, timeout=10).sha
    except Exception:
        return None


def stdlib_files() -> list[str]:
    root = sysconfig.get_paths()["stdlib"]
    return sorted(
        path
        for path in readers.paths_below(root, STDLIB_SKIPS)
        if path.endswith((".py", ".txt", ".rst"))
        and os.path.isfile(path)
        and not os.path.basename(path).startswith("_sysconfigdata")  # paths of one machine
    )


def stdlib_family(path: str) -> str:
    top = os.path.relpath(path, sysconfig.get_paths()["stdlib"]).split(os.sep)[0]
    name = re.sub(r"^_+(py(?=[^_]))?", "", top.removesuffix(".py"))  # _pyio goes with io
    return next((group for group in STDLIB_SIBLINGS if name in group.split()), name)


def stdlib_splits(paths: Sequence[str], val_fraction: float) -> list[str]:
    """The split of each file: whole families, so that near-duplicates are on the same side.

    Families are held out in the order of a keyed hash of their names until `val_fraction` of the
    bytes is reached; one larger than a sixth of that is for training, lest it dominate.
    """
    sizes: Counter[str] = Counter()
    for path in paths:
        sizes[stdlib_family(path)] += os.path.getsize(path)
    wanted = val_fraction * sizes.total()
    held_out: set[str] = set()
    for family in sorted(sizes, key=lambda name: split_hash(name.encode()).to_bytes(8, "little")):
        if sizes[family] <= wanted / 6 and sum(sizes[name] for name in held_out) < wanted:
            held_out.add(family)
    return ["val" if stdlib_family(path) in held_out else "train" for path in paths]


def _read_stdlib(paths: Sequence[str], splits: Sequence[str], column: str | None) -> Iterator[Item]:
    for path, split in zip(paths, splits, strict=True):
        if column is not None:
            yield Item(Path(path).read_bytes(), split)
        elif path.endswith(".py"):
            yield from (Item(row, split) for row in docstring_rows(path))


def docstring_rows(path: str) -> Iterator[dict[str, str]]:
    """Signature and first paragraph of the docstring of each documented function of a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # about the library's own source
        try:
            tree = ast.parse(Path(path).read_bytes())
        except (SyntaxError, ValueError):  # templates, and files kept to test bad syntax
            return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node) or ""
            signature = f"def {node.name}({ast.unparse(node.args)})"
            if docstring:
                yield {"prompt": signature, "response": docstring.split("\n\n")[0]}


def _hub_files(folder: str, config: str | None, split: str) -> tuple[list[str], str]:
    """The files of a split of a data set in a local folder, as `datasets` finds them: of the most
    frequent format; and what else is there."""
    from datasets import load_dataset_builder

    with trying(f"open the data set {folder!r}"):
        found = load_dataset_builder(folder, config).config.data_files or {}
    if split not in found:
        raise UserError(f"{folder} has no split {split!r}; there are {', '.join(map(str, found))}")
    others = readers.left_alone(folder, itertools.chain.from_iterable(found.values()))
    return [str(path) for path in found[split]], others
