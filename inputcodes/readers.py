"""Files: which ones a path, a folder or a pattern names, and the documents in them.

Read are texts, JSON lines, JSON arrays, CSV and Parquet, all but the last also compressed. A text
file is read in parts of about a megabyte, so memory does not grow with its size.
"""

import codecs
import csv
import glob
import io
import json
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from inputcodes.configurator import UserError
from inputcodes.documents import CHAT_COLUMNS, Item, split_of

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py")
SUFFIXES = (*TEXT_SUFFIXES, ".jsonl", ".ndjson", ".json", ".csv", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}  # pyarrow reads them
TEXT_TYPES = ("string", "large_string", "binary", "large_binary", "null")
PART = 1 << 20  # bytes of a long text that are read at a time


def files_below(folder: str, skipped: Container[str] = ()) -> list[str]:
    """The files in a folder and below, links followed, no folder twice, nothing hidden."""
    return [
        os.path.join(where, name)
        for where in _folders_below(folder, skipped)
        for name in sorted(os.listdir(where))
        if name[0] != "." and os.path.isfile(os.path.join(where, name))
    ]


def _folders_below(folder: str, skipped: Container[str] = ()) -> Iterator[str]:
    seen = set()
    for where, folders, _ in os.walk(folder, followlinks=True):
        status = os.stat(where)
        if (status.st_dev, status.st_ino) in seen:  # a link back: its loop ends here
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(f for f in folders if f[0] != "." and f not in skipped)
        yield where


def matching_files(name: str) -> list[str]:
    """The files of a path, a folder or, if neither is there, a pattern; UserError if none."""
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        paths = [file for file in files_below(path) if suffix_of(file) in SUFFIXES]
    else:
        paths = [path] if os.path.isfile(path) else sorted(filter(os.path.isfile, _expand(path)))
    if not paths:
        raise UserError(f"no file matches {name!r}: check the path and quote the pattern")
    for path in paths:
        if suffix_of(path) not in SUFFIXES:
            raise UserError(
                f"cannot read {path}: expected one of {', '.join(SUFFIXES)}; all but .parquet also "
                f"with {', '.join(COMPRESSIONS)}"
            )
    return paths


def _expand(pattern: str) -> list[str]:
    """The paths of a glob; `**` is any folder below, as in glob, but loops of links end."""
    head, stars, tail = pattern.partition("**")
    if not stars or (head and not head.endswith(os.sep)):
        return glob.glob(pattern)
    folders = [folder for root in glob.glob(head or ".") for folder in _folders_below(root)]
    rest = tail.lstrip(os.sep) or "*"
    return [path for f in folders for path in _expand(os.path.join(glob.escape(f), rest))]


def suffix_of(path: str) -> str:
    """The suffix in lower case, without that of a compression."""
    stem, suffix = os.path.splitext(path.lower())
    inner = os.path.splitext(stem)[1]
    return inner if suffix in COMPRESSIONS and inner != ".parquet" else suffix


def read_files(
    paths: Sequence[str], column: str | None, separator: str, val_below: int, cut: float
) -> Iterator[Item]:
    """The documents of files, in order; UserError names the file that cannot be read.

    `column` is the column or key of texts, None for conversations; `separator` stands between the
    documents of a text file. Long ones have the split of their first part's hash; with `cut` > 0
    that share of a text file, its end, is for validation instead.
    """
    import pyarrow

    for path in paths:
        suffix = suffix_of(path)
        try:
            if suffix in TEXT_SUFFIXES:
                texts = _read_text(path, separator.encode(), val_below)
                yield from _cut_text(path, cut) if cut else texts
                continue
            for number, row in _READERS[suffix](path, column):
                yield item_of(row, column, f"{path}, {_COUNTED.get(suffix, 'line')} {number}")
        except UserError:
            raise
        except (pyarrow.ArrowException, csv.Error, OSError, ValueError) as error:
            raise UserError(f"cannot read {path}: {reason(error)}") from error


def item_of(row: Any, column: str | None, where: str) -> Item:
    """The document in a row; UserError if the row or its columns are others."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object, found {type(row).__name__}")
    names = columns_of(row, column, where)
    return Item({name: row[name] for name in names} if column is None else row[column])


def columns_of(known: Mapping[str, Any], column: str | None, where: str) -> list[str]:
    """Those of the `known` columns that hold a document; UserError if some are missing."""
    for names in CHAT_COLUMNS if column is None else ((column,),):
        if all(name in known for name in names):
            return list(names)
    listed = ", ".join(map(str, known))
    if column is not None:
        raise UserError(f"{where}: no column {column!r}; there are {listed} (--text_column=...)")
    expected = ", or ".join(" and ".join(names) for names in CHAT_COLUMNS)
    raise UserError(f"{where}: no conversations (expected {expected}); there are {listed}")


def check_schema(schema: Any, column: str | None, where: str) -> list[str]:
    """The columns of an Arrow schema that hold a document; UserError if texts are no texts."""
    types = {field.name: str(field.type) for field in schema}
    names = columns_of(types, column, where)
    texts = [name for name, kind in types.items() if kind.startswith(TEXT_TYPES)]
    if column is not None and column not in texts:
        advice = (
            f"pass --text_column= with one of {', '.join(texts)}" if texts else "no column does"
        )
        raise UserError(f"{where}: column {column!r} holds {types[column]}, not text: {advice}")
    return names


def check_files(paths: Sequence[str], column: str | None) -> int:
    """The number of rows, 0 if not every file says it; UserError for what can be refused now."""
    import pyarrow.parquet

    rows = 0
    for path in paths:
        suffix = suffix_of(path)
        if column is None and suffix in TEXT_SUFFIXES:
            raise UserError(
                f"{path} is a text and holds no conversations: expected JSON lines,"
                " JSON, CSV or Parquet"
            )
        if suffix == ".parquet":
            try:
                with pyarrow.parquet.ParquetFile(path) as file:
                    check_schema(file.schema_arrow, column, path)
                    rows += file.metadata.num_rows
            except (pyarrow.ArrowException, OSError) as error:
                raise UserError(f"cannot read {path}: {reason(error)}") from error
    return rows if all(suffix_of(path) == ".parquet" for path in paths) else 0


def reason(error: Exception) -> str:
    """The first line of what an error says, after its type."""
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]


def _open(path: str) -> io.BufferedReader:
    """The bytes of a file, unpacked, without a byte order mark."""
    import pyarrow

    compression = COMPRESSIONS.get(os.path.splitext(path.lower())[1])
    file = io.BufferedReader(pyarrow.input_stream(path, compression=compression))
    if file.peek(3).startswith(codecs.BOM_UTF8):
        file.read(3)
    return file


def _read_parquet(path: str, column: str | None) -> Iterator[tuple[int, Any]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        names = check_schema(file.schema_arrow, column, path)
        batches = file.iter_batches(batch_size=256, columns=names)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)


def _read_csv(path: str, column: str | None) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit((1 << 31) - 1)
    with io.TextIOWrapper(_open(path), encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        columns_of(dict.fromkeys(rows.fieldnames or ()), column, path)
        yield from ((rows.line_num, row) for row in rows)


def _read_json(path: str, column: str | None) -> Iterator[tuple[int, Any]]:
    """The objects of an array, which is read whole, or of lines."""
    with _open(path) as file:
        is_array = file.peek(1).lstrip()[:1] == b"["
        if is_array:
            yield from enumerate(json.loads(file.read().decode()), start=1)
    if not is_array:
        yield from _read_json_lines(path, column)


def _read_json_lines(path: str, _: str | None) -> Iterator[tuple[int, Any]]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line.decode())
                except ValueError as error:
                    raise UserError(f"{path}, line {number}: not JSON in UTF-8: {error}") from error


_READERS = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
_COUNTED = {".parquet": "row", ".json": "object"}


def _read_text(path: str, separator: bytes, val_below: int) -> Iterator[Item]:
    """The documents of a text file, long ones in parts, which have the split of the first."""
    plain = os.path.splitext(path)[1].lower() in TEXT_SUFFIXES
    if (not plain or separator or os.path.getsize(path) > PART) and (bad := _not_text(path)[0]):
        yield Item(bad)
        return
    split, inside = "", False
    with _open(path) as file:
        for text, ends in _parts(file, separator):
            if not inside:
                split = "" if ends else split_of(text, val_below)
            yield Item(text, split, inside or not ends, ends)
            inside = not ends


def _cut_text(path: str, share: float) -> Iterator[Item]:
    """One text in parts; its last `share`, from the start of a line on, is for validation."""
    bad, size = _not_text(path)
    if bad:
        yield Item(bad)
        return
    left, inside = int(size * (1 - share)), False
    with _open(path) as file:
        while left > 3 * PART:
            block = _block(file)
            left -= len(block)
            yield Item(block, "train", inside := True, False)
        block = file.read(left)
        at = block.rfind(b"\n") + 1 or _boundary(block, len(block) - 1)
        yield Item(block[:at], "train", inside, True)
        rest, inside = block[at:], False
        for text, ends in _parts(file, b""):
            yield Item(rest + text, "val", inside or not ends, ends)
            rest, inside = b"", True


def _not_text(path: str) -> tuple[bytes, int]:
    """Bytes that show that a long file is no text (empty if it is one), and its size unpacked."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    size, bad = 0, b""
    with _open(path) as file:
        while block := file.read(PART):
            size += len(block)
            try:
                decoder.decode(block, final=not file.peek(1))
            except UnicodeDecodeError:
                bad = bad or b"\xff"
                decoder.reset()
            if b"\0" in block:
                return b"\0", size
    return bad, size


def _parts(file: io.BufferedReader, separator: bytes) -> Iterator[tuple[bytes, bool]]:
    """The documents between separators, in parts: each with whether its document ends there."""
    buffer, inside, at_end = b"", False, False
    while not at_end:
        buffer += _block(file)
        at_end = not file.peek(1)
        *whole, buffer = buffer.split(separator) if separator else [buffer]
        for text in whole:
            text = text.rstrip(b"\r\n")
            yield text if inside else text.lstrip(b"\r\n"), True
            inside = False
        if separator and not inside:
            buffer = buffer.lstrip(b"\r\n")
        if not at_end and len(buffer) > (2 * PART if separator else 0):
            at = _boundary(buffer, len(buffer) - len(separator)) if separator else len(buffer)
            yield buffer[:at], False
            buffer, inside = buffer[at:], True
    if inside or not separator or buffer.strip():  # nothing follows a separator at the end
        yield buffer.rstrip(b"\r\n") if separator else buffer, True


def _block(file: io.BufferedReader) -> bytes:
    """About PART bytes, up to the end of a line or, if that is far, of a character."""
    block = file.read(PART) + file.readline(PART)
    while (following := file.peek(1)[:1]) and following[0] & 0xC0 == 0x80:
        block += file.read(1)
    return block


def _boundary(text: bytes, at: int) -> int:
    """The last place up to `at` where a character of UTF-8 begins."""
    while at > 0 and text[at] & 0xC0 == 0x80:
        at -= 1
    return at
