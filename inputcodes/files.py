"""Files that are whole or not there: one atomic write, lock and hash, readers of JSON; the commit.

Every error of the system (full disk, read-only folder, a file where a folder should be) becomes a
UserError of one line that names the path.
"""

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from inputcodes.configurator import ROOT, UserError, local_path

# The suffix of a file that is being written: no other program's, as such files are removed.
PARTIAL = ".inputcodes.partial"


@contextlib.contextmanager
def system_errors(action: str, path: Path) -> Iterator[None]:
    """Turn an OSError inside into UserError "cannot ACTION PATH: reason"."""
    try:
        yield
    except FileExistsError as error:  # where a folder is to be: a file, or a link to nothing
        raise UserError(f"cannot {action} {path}: {error.filename} is no folder") from error
    except OSError as error:
        raise UserError(f"cannot {action} {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def damage_named(path: Path, advice: str, what: str = "is damaged") -> Iterator[None]:
    """Turn what content of another shape raises inside into UserError "PATH is damaged (why)"."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
            RuntimeError) as error:  # fmt: skip
        why = str(error) if isinstance(error, ValueError) else f"{error!r:.100}"
        raise UserError(f"{path} {what} ({why}){advice and ': ' + advice}") from error


@contextlib.contextmanager
def trying(action: str) -> Iterator[None]:
    """Turn whatever a library raises inside into UserError "cannot ACTION: reason", one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # `datasets` says which configurations there are, and how to name one in Python.
        advised = re.sub(r"Example of usage:\s*`load_dataset.*`", "(--hub=PATH:CONFIG)", str(error))
        reason = textwrap.shorten(f"{type(error).__name__}: {advised}", 300)
        raise UserError(f"cannot {action}: {reason}") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name of a file to write, which replaces `path` at the end, flushed to the disk.

    A reader sees the old file or the new one; on any error the new one is removed.
    """
    # Of this process alone: two that write the same file would put half of one in its place.
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    with system_errors("write", path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file():  # as /dev/null, which root could replace
                raise OSError("not a regular file")
            yield partial
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file to write, which replaces `path` as `replacing` says."""
    with replacing(path) as partial, open(partial, "wb") as file:
        yield file


def write_text(path: Path, text: str) -> None:
    """Replace the file at once with `text` in UTF-8, line ends as they are.

    What is not text, such as the bytes of a path that are not UTF-8, is written as `\\udcff`.
    """
    with atomic_write(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Replace the file at once with `value` as indented JSON, infinite numbers as null."""
    finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
    write_text(path, json.dumps(finite, indent=1) + "\n")


def read_json(path: Path, advice: str = "") -> dict[str, Any]:
    """The JSON object in a file; `advice` says what to do if it is damaged."""
    with system_errors("read", path):
        if path.exists() and not path.is_file():  # as /dev/full, which has no end
            raise OSError("not a regular file")
        raw = path.read_bytes()
    with damage_named(path, advice):
        value = json.loads(raw.decode(), object_pairs_hook=_each_once)
        if not isinstance(value, dict):
            raise ValueError(f"expected an object, found {type(value).__name__}")
    return value


def read_json_lines(
    path: Path, damaged: Literal["refuse", "warn", "skip"] = "refuse"
) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, JSON objects with a `step`; none if there is no file.

    A last line without an end is still being written, or was when its process was killed: it does
    not count. Other damaged lines raise UserError, or are left out with a warning or in silence.
    """
    if not path.is_file():
        return []
    with system_errors("read", path):
        *lines, _ = path.read_bytes().split(b"\n")
    values = []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line.decode(), object_pairs_hook=_each_once)
            if not isinstance(value, dict) or type(value.get("step")) is not int:
                raise ValueError("expected an object with a step")
            for name, entry in value.items():
                if name == "val_documents":
                    _check_documents(entry)
                elif not isinstance(entry, int | float | None):
                    raise ValueError(f"{name}={entry!r} is no number")
            values.append(value)
        except (ValueError, RecursionError) as error:
            message = f"{path}, line {number} is damaged: {error}"
            if damaged == "refuse":
                raise UserError(f"{message}: delete the line") from error
            if damaged == "warn":
                print(f"warning: {message}; going on without it", file=sys.stderr)
    return values


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of its pairs; ValueError for a name that is there twice."""
    for name, number in Counter(name for name, _ in pairs).items():
        if number > 1:
            raise ValueError(f"{name!r} is there {number} times")
    return dict(pairs)


def _check_documents(entry: Any) -> None:
    """Raise ValueError unless these are a list of [nats, tokens], as validation.py writes it."""
    pairs = entry if isinstance(entry, list) else [entry]
    for pair in pairs:
        types = [type(number) for number in pair] if isinstance(pair, list) else []
        if types not in ([float, int], [int, int]):
            raise ValueError(f"val_documents has {pair!r}, expected [nats, tokens]")


@contextlib.contextmanager
def locked(folder: Path, wait: bool, advice: str = "wait for it to end") -> Iterator[None]:
    """Hold `folder` for this process, by a lock file in it that ends with the process.

    If another process holds it, say so and wait if `wait`, else raise UserError. What a killed
    process left half-written in the folder is removed.
    """
    from filelock import FileLock, Timeout  # here, as autoenc_study.py runs without packages

    with system_errors("write in", folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            if not wait:
                raise UserError(f"another process is writing to {folder}: {advice}") from error
            print(f"waiting for another process that writes to {folder}", file=sys.stderr)
            lock.acquire()
    try:
        for partial in folder.glob(f"*{PARTIAL}"):
            with contextlib.suppress(OSError):
                partial.unlink()
        yield
    finally:
        lock.release()


def file_sha256(path: Path) -> str:
    with system_errors("read", path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_all(hashes: Sequence[str]) -> str:
    """One hash of many, in their order: of a data set's tokenizer, then of all its shards."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def split_list(text: str) -> list[str]:
    """The parts between commas; a path that exists is one part, commas, spaces and all."""
    if os.path.exists(local_path(text)):
        return [text]
    return [part.strip() for part in text.split(",") if part.strip()]


def git_commit() -> str | None:
    """The commit of this checkout, with "-dirty" if files differ; None outside git."""
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    describe += ["--exclude=*"]  # no tag in its place, which may move, and need not be ASCII
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
