"""Files: which ones a path, a folder or a pattern names, and the documents in them.

Read are texts, JSON lines, JSON arrays and CSV, also compressed, Parquet and Arrow. A text file is
read in parts of about a megabyte, so memory does not grow with its size.
"""

import codecs
import contextlib
import csv
import glob
import io
import itertools
import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from inputcodes.configurator import UserError, local_path
from inputcodes.documents import CHAT_COLUMNS, HASHED, MORE_CHAT_COLUMNS, Item, split_hash
from inputcodes.files import system_errors, trying

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py")
TABLE_SUFFIXES = (".parquet", ".arrow")
ROW_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", *TABLE_SUFFIXES)
SUFFIXES = (*TEXT_SUFFIXES, *ROW_SUFFIXES)
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}  # pyarrow reads them
TEXT_TYPES = ("string", "large_string", "binary", "large_binary",
              "dictionary<values=string,", "dictionary<values=large_string,")  # fmt: skip
TURNS = ("messages", "conversations")
TURN_TYPES = ("list", "large_list", "fixed_size_list", "extension<arrow.json>", "null")
OTHER_MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32",  # begin as UTF-16's
               codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}  # fmt: skip
SKIPPED = r'"?sep=."?\s*$|\s*$'  # lines before the header of a CSV
PART = HASHED  # characters of a text that are read at a time, up to the end of a line


class NotText(UserError):
    """A file is no text in UTF-8, which the bytes `bad` show."""

    def __init__(self, message: str, bad: bytes = b"\xff") -> None:
        super().__init__(message)
        self.bad = bad


def paths_below(folder: str, skipped: Container[str] = ()) -> list[str]:
    """Where everything but folders is in a folder and below: links followed, nothing hidden."""
    return [
        os.path.join(where, name)
        for where, names in _folders_below(folder, skipped)
        for name in names
        if name[0] != "."
    ]


def _folders_below(folder: str, skipped: Container[str] = ()) -> Iterator[tuple[str, list[str]]]:
    """A folder and those below, none twice and no data sets, with the sorted names of the rest."""
    seen = set()
    for where, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        is_data_set = {"meta.json", "tokenizer.json"} <= set(names)
        if (real := os.path.realpath(where)) in seen or is_data_set:  # a loop of links ends here
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if f[0] != "." and f not in skipped)
        if {"dataset_info.json", "dataset_dict.json"} & set(names):  # what save_to_disk writes
            names = [name for name in names if not name.endswith(".json")]
        yield where, sorted(names)


def _refuse(error: OSError) -> None:
    raise UserError(f"cannot read {error.filename}: {error.strerror}") from error


def matching_files(name: str, suffixes: Container[str] = SUFFIXES) -> list[str]:
    """The files of a path, a folder or, if neither is there, a pattern; UserError if none."""
    path = local_path(name)
    if os.path.isdir(path):
        known = (file for file in paths_below(path) if suffix_of(file) in suffixes)
        if paths := list(filter(os.path.isfile, known)):
            return paths
        raise UserError(f"no text in folder {name!r}, data sets aside: check the path")
    if paths := [path] if os.path.isfile(path) else list(filter(os.path.isfile, _expand(path))):
        return sorted(paths)
    with system_errors("read", Path(path)), contextlib.suppress(FileNotFoundError):
        os.stat(path)
        raise UserError(f"{path} is no regular file: save its text in one")
    raise UserError(f"no file matches {name!r}: check the path, and quote a pattern")


def left_alone(name: str, read: Iterable[str]) -> str:
    """What a folder holds besides the files `read`, counted by ending; "" if nothing."""
    path, counts, known = local_path(name), Counter[str](), set(map(os.path.realpath, read))
    for file in paths_below(path) if os.path.isdir(path) else ():
        if not os.path.isfile(file):
            counts["not regular files"] += 1
        elif os.path.realpath(file) not in known:
            counts[os.path.splitext(file)[1] or "without an ending"] += 1
    return ", ".join(f"{number:,} {ending}" for ending, number in sorted(counts.items()))


def _expand(pattern: str) -> list[str]:
    """The paths of a glob; `**` is any folder below, as in glob, but loops of links end."""
    head, stars, tail = pattern.partition("**")
    separators = f"{os.sep}/"  # a slash works on Windows, too
    if not stars or (head and head[-1] not in separators):
        return glob.glob(pattern)
    folders = [folder for root in glob.glob(head or ".") for folder, _ in _folders_below(root)]
    rest = tail.lstrip(separators) or "*"
    return [path for f in folders for path in _expand(os.path.join(glob.escape(f), rest))]


def suffix_of(path: str) -> str:
    """The suffix in lower case, without that of a compression."""
    stem, suffix = os.path.splitext(path.lower())
    inner = os.path.splitext(stem)[1]
    return inner if suffix in COMPRESSIONS and inner not in TABLE_SUFFIXES else suffix


def read_files(
    paths: Sequence[str], column: str | None, separator: str, cut: float
) -> Iterator[Item]:
    """The documents of files, in order; UserError names the file that cannot be read.

    `column` is the column or key of texts, None for conversations; `separator` stands between the
    documents of a text file; with `cut` > 0 that share of a text file, its end, is for validation.
    """
    for path in paths:
        suffix = suffix_of(path)
        with trying(f"read {path}"):
            if suffix in TEXT_SUFFIXES:
                yield from _read_text(path, separator, cut)
                continue
            for number, row in _READERS.get(suffix, read_json)(path, column):
                yield item_of(row, column, f"{path}, {_COUNTED.get(suffix, 'line')} {number}")


def item_of(row: Any, column: str | None, where: str) -> Item:
    """The document in a row; UserError if the row is no object or lacks the column."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object, found {type(row).__name__}")
    names = columns_of(row, column, where)
    return Item({name: row[name] for name in names} if column is None else row[column])


def columns_of(known: Iterable[str], column: str | None, where: str) -> list[str]:
    """The names among `known` that hold a document; UserError if some are missing or double."""
    known = list(known)
    more = [name for name in MORE_CHAT_COLUMNS if column is None and name in known]
    for needed in CHAT_COLUMNS if column is None else ((column,),):
        names = [*needed, *more]
        if all(name in known for name in names):
            if same := next((name for name in names if known.count(name) > 1), ""):
                raise UserError(f"{where}: several columns are called {same!r}: rename all but one")
            return names
    listed = ", ".join(map(str, known)) or "none"
    if column is not None:
        raise UserError(f"{where}: no column {column!r}; there are {listed} (--text_column=NAME)")
    expected = ", or ".join(" and ".join(names) for names in CHAT_COLUMNS)
    raise UserError(f"{where}: no conversations (expected {expected}); there are {listed}")


def check_schema(schema: Any, column: str | None, where: str) -> list[str]:
    """The columns of an Arrow schema that hold a document; UserError if texts are no texts."""
    types = {field.name: str(field.type) for field in schema}
    names = columns_of(schema.names, column, where)
    texts = [name for name, kind in types.items() if kind.startswith(TEXT_TYPES)]
    if column is not None and column not in texts and types[column] != "null":  # all are missing
        advice = " or ".join(shlex.quote(f"--text_column={name}") for name in texts)
        advice = f"pass {advice}" if texts else "no column does"
        raise UserError(f"{where}: column {column!r} holds {types[column]}, not text: {advice}")
    if column is None and names[0] in TURNS and not types[names[0]].startswith(TURN_TYPES):
        found = f"column {names[0]!r} holds {types[names[0]]}, not lists of turns"
        raise UserError(f"{where}: {found}: convert it, as with json.loads if it is JSON")
    return names


def check_files(paths: Sequence[str], column: str | None) -> None:
    """Raise UserError for what can be refused before anything is read."""
    for path in paths:
        if suffix_of(path) not in SUFFIXES:
            raise UserError(
                f"cannot read {path}: expected one of {', '.join(SUFFIXES)}; all but the last two "
                f"also with {', '.join(COMPRESSIONS)}"
            )
        if column is None and suffix_of(path) in TEXT_SUFFIXES:
            raise UserError(
                f"{path} is a text and holds no conversations: expected JSON lines,"
                " JSON, CSV, Parquet or Arrow"
            )
        if suffix_of(path) in TABLE_SUFFIXES:
            with trying(f"read {path}"), _open_table(path) as (schema, _):
                check_schema(schema, column, path)


def _open(path: str) -> io.BufferedReader:
    """The bytes of a file, unpacked, without a byte order mark; NotText if that is of UTF-16."""
    raw: Any = io.FileIO(path)  # pyarrow itself opens no names that are not UTF-8
    if compression := COMPRESSIONS.get(os.path.splitext(path.lower())[1]):
        import pyarrow

        raw = pyarrow.input_stream(raw, compression=compression)
    file = io.BufferedReader(raw)
    start = file.peek(4)
    if start.startswith(codecs.BOM_UTF8):
        file.read(len(codecs.BOM_UTF8))
    for mark, encoding in OTHER_MARKS.items():
        if start.startswith(mark):
            raise NotText(f"{path} is {encoding}, not UTF-8: {_conversion(path, encoding)}")
    return file


@contextlib.contextmanager
def _open_table(path: str) -> Iterator[tuple[Any, Any]]:
    """The schema of a Parquet or Arrow file, and a function to its batches of some columns."""
    import pyarrow.parquet

    if suffix_of(path) == ".parquet":
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            yield file.schema_arrow, lambda columns: file.iter_batches(256, columns=columns)
        return
    with pyarrow.memory_map(path) as source:
        has_index = source.read(6) == b"ARROW1"  # as Feather; save_to_disk writes a stream
        source.seek(0)
        reader = (pyarrow.ipc.open_file if has_index else pyarrow.ipc.open_stream)(source)
        yield reader.schema, lambda columns: reader.read_all().select(columns).to_batches(256)


def _read_table(path: str, column: str | None) -> Iterator[tuple[int, Any]]:
    with _open_table(path) as (schema, batches):
        names = check_schema(schema, column, path)
        rows: Iterator[Any] = (row for batch in batches(names) for row in batch.to_pylist())
        if "arrow.json" in str(schema):  # values of several types, as JSON in a string
            from datasets import Features  # which writes them so

            rows = map(Features.from_arrow_schema(schema).decode_example, rows)
        yield from enumerate(rows, start=1)


def _read_csv(path: str, column: str | None) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit((1 << 31) - 1)
    with io.TextIOWrapper(_open(path), encoding="latin-1", newline="") as file:
        lines = (line.encode("latin-1").decode() for line in file)  # singly: the bad one is known
        read = 0
        try:
            # Excel is told the delimiter in a line of its own, "sep=;".
            starts = ((n, line) for n, line in enumerate(lines) if not re.match(SKIPPED, line))
            before, header = next(starts, (0, ""))
            names = {c: next(csv.reader([header], delimiter=c), []) for c in ",;\t|"}
            comma = max(names, key=lambda c: (column in names[c], len(names[c])))
            rows = csv.DictReader(itertools.chain([header], lines), delimiter=comma, strict=True)
            columns_of(rows.fieldnames or (), column, path)
            read = before + rows.line_num
            for row in rows:
                read = before + rows.line_num
                if None in row or None in row.values():  # parts of a text, as likely as not
                    fault, held = ("more", repr(comma)) if None in row else ("fewer", "line breaks")
                    advice = f"{fault} values than columns: quote texts that hold {held}"
                    raise UserError(f"{path}, line {read}: {advice}")
                yield read, row
        except (csv.Error, UnicodeDecodeError) as error:
            why = f"{error}: {_conversion(path)}" if isinstance(error, UnicodeError) else error
            raise UserError(f"{path}, line {read + 1}: not CSV in UTF-8: {why}") from error


def read_json(path: str, column: str | None = None) -> Iterator[tuple[int, Any]]:
    """The objects of an array, which is read whole, or of lines."""
    with _open(path) as file:
        is_first = True
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            if is_first and line.lstrip().startswith(b"["):
                yield from enumerate(json.loads((line + file.read()).decode()), start=1)
                return
            is_first = False
            try:
                yield number, json.loads(line.decode())
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{path}, line {number}: not JSON in UTF-8, an array or a row per line: {error}"
                ) from error


_READERS = {".csv": _read_csv, **dict.fromkeys(TABLE_SUFFIXES, _read_table)}  # or read_json
_COUNTED = {**dict.fromkeys(TABLE_SUFFIXES, "row"), ".json": "object"}


def _read_text(path: str, separator: str, cut: float) -> Iterator[Item]:
    """The documents of a text file, long ones in parts."""
    try:
        characters = _scan(path)
    except NotText as error:
        yield Item(error.bad, note=str(error))
        return
    texts = _halves(path, characters, cut) if cut else _documents(path, separator)
    inside, first_hash = False, None
    for split, text, ends in texts:
        if not inside:
            first_hash = None if ends else split_hash(text.encode())
        yield Item(text, split, first_hash, ends)
        inside = not ends


def _scan(path: str) -> int:
    """The characters of a file; NotText if it is no text."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    characters, latin = 0, False
    with _open(path) as file:
        while block := file.read(PART):
            if b"\0" in block:
                raise NotText(f"{path} holds U+0000, as binary files do", b"\0")
            try:
                characters += len(decoder.decode(block, final=not file.peek(1)))
            except UnicodeDecodeError:
                latin = True
                decoder.reset()
    if latin:
        raise NotText(f"{path} is not UTF-8: {_conversion(path)}")
    return characters


def _conversion(path: str, encoding: str = "") -> str:
    """What to do about a file that is not UTF-8, most likely Windows-1252 if nothing is known."""
    unpack = "unpack it and " * (os.path.splitext(path.lower())[1] in COMPRESSIONS)
    stem, suffix = os.path.splitext(os.path.splitext(path)[0] if unpack else path)
    convert = shlex.join(["iconv", "-f", encoding or "CP1252", "-t", "UTF-8", stem + suffix])
    convert = f"{unpack}convert it with `{convert} > {shlex.quote(f'{stem}-utf8{suffix}')}`"
    return convert if encoding else f"{convert}, if it is Windows-1252"


def _blocks(path: str) -> Iterator[tuple[str, bool]]:
    """A text in blocks that end with a line (unless that is long), each with whether it is last."""
    with io.TextIOWrapper(_open(path), encoding="utf-8", newline="\n") as file:
        block = file.read(PART) + file.readline(PART)
        while following := file.read(PART) + file.readline(PART):
            yield block, False
            block = following
        yield block, True


def _halves(path: str, characters: int, cut: float) -> Iterator[tuple[str, str, bool]]:
    """A text as two documents, the second first, so that reading may stop within the training text.

    The cut is at the start of a line, unless that would more than double what is held out.
    """
    left = int(characters * (1 - cut))
    for wanted in ("val", "train"):
        split, before, start = "train", "", 0
        for block, is_last in _blocks(path):
            if split == "train" and start + len(block) > left:
                at = block.rfind("\n", 0, left - start) + 1
                if (not at and before[-1:] != "\n") or start + at < 2 * left - characters:
                    at = left - start
                if wanted == "train":
                    yield split, block[:at], True
                    break
                split, block = "val", block[at:]
            if split == wanted:
                yield split, block, is_last
            start, before = start + len(block), block


def _documents(path: str, separator: str) -> Iterator[tuple[str, str, bool]]:
    """The documents between separators, in parts: each with whether its document ends there.

    A separator is as typed in a shell, and its line breaks may be CRLF in the file.
    """
    for typed, meant in ((r"\n", "\n"), (r"\r", "\r"), (r"\t", "\t")):
        separator = separator.replace(typed, meant)
    escaped = re.escape(separator).replace("\\\n", "\r?\n")
    pattern = re.compile(escaped.removeprefix("\r?"))  # faster; a text loses its last \r anyway
    rest, inside = "", False
    for block, is_last in _blocks(path):
        if not separator:
            yield "", block, is_last
            continue
        *texts, rest = pattern.split(rest + block)
        for text in texts:
            text = text.rstrip("\r\n")
            yield "", text if inside else text.lstrip("\r\n"), True
            inside = False
        start = rest if inside else rest.lstrip("\r\n")
        if len(start) > 2 * PART and not is_last:  # all but what may begin a separator
            kept = 2 * len(separator)
            yield "", start[:-kept], False
            rest, inside = start[-kept:], True
    if inside or rest.strip():  # nothing follows a separator at the end
        yield "", (rest if inside else rest.lstrip("\r\n")).rstrip("\r\n"), True
