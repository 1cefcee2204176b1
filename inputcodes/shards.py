"""Writes token shards so that an interrupted run can go on: shards, progress.json, meta.json.

`progress.json` is replaced whole, after the shards it describes have reached the disk. Opening an
unfinished folder cuts every shard back to the size recorded there; what the run had written after
its last save is made again, to the same bytes. `meta.json` is written last and makes the folder a
data set:

  format, vocab_size, tokenizer_sha256
  dtype         of the ids in the shards: uint16, or uint32 for more than 65,536 ids
  splits        for `train` and `val`: tokens, documents, bytes (of text, as UTF-8), and files, each
                with its name, tokens and sha256
  skipped       documents left out, by reason
  sources       what was read; `settings` what it was read with
  data_sha256   of the line-separated hashes: the tokenizer's, then those of all files in order
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inputcodes.configurator import UserError
from inputcodes.tokenizer import TokenIds

SPLITS = ("train", "val")
FORMAT = 1


class ShardWriter:
    """Appends documents to the shards of both splits.

    `progress` is what progress.json holds: `settings`, `sources`, `tokenizer_sha256` and `dtype`
    (once there is a tokenizer), `stream` (the reader's state, None at the start), `splits` and
    `skipped` as in meta.json.
    """

    def __init__(self, folder: Path, shard_tokens: int, progress: dict[str, Any]) -> None:
        self.folder = folder
        self.progress = progress
        self._shard_tokens = shard_tokens

    @property
    def _dtype(self) -> np.dtype[Any]:
        return np.dtype(self.progress.get("dtype", "uint16")).newbyteorder("<")

    def add(self, split: str, tokens: TokenIds, documents: int, text_bytes: int) -> None:
        """Append whole documents; a shard that is full ends anywhere, also within a document."""
        counts = self.progress["splits"][split]
        counts["documents"] += documents
        counts["bytes"] += text_bytes
        while len(tokens):
            room = self._shard_tokens - counts["tokens"] % self._shard_tokens
            with open(self._path(split), "ab") as file:
                file.write(tokens[:room].astype(self._dtype).tobytes())
            counts["tokens"] += len(tokens[:room])
            tokens = tokens[room:]
            if counts["tokens"] % self._shard_tokens == 0:
                self._close(split)

    def save(self, stream: dict[str, Any] | None) -> None:
        """Put everything on disk and record that the reader stands at `stream`."""
        for split in SPLITS:
            if self._path(split).is_file():
                _flush(self._path(split))
        self.progress["stream"] = stream
        write_json(self.folder / "progress.json", self.progress)

    def finish(self, vocab_size: int) -> dict[str, Any]:
        """Close the last shards, write meta.json and return what it holds."""
        for split in SPLITS:
            if self._path(split).is_file():
                self._close(split)
        progress = self.progress
        files = [file for split in SPLITS for file in progress["splits"][split]["files"]]
        hashes = [progress["tokenizer_sha256"], *(file["sha256"] for file in files)]
        meta = {
            "format": FORMAT,
            "vocab_size": vocab_size,
            "dtype": self._dtype.name,
            "tokenizer_sha256": progress["tokenizer_sha256"],
            "splits": progress["splits"],
            "skipped": progress["skipped"],
            "sources": progress["sources"],
            "settings": progress["settings"],
            "data_sha256": data_sha256(hashes),
        }
        write_json(self.folder / "meta.json", meta)
        (self.folder / "progress.json").unlink()
        return meta

    def cut_back(self) -> None:
        """Give every shard the size that `progress` records and remove later ones."""
        known: set[str] = set()
        for split in SPLITS:
            counts = self.progress["splits"][split]
            itemsize = self._dtype.itemsize
            sizes = {file["name"]: itemsize * file["tokens"] for file in counts["files"]}
            left = itemsize * counts["tokens"] - sum(sizes.values())
            if left:
                sizes[self._path(split).name] = left
            for name, size in sizes.items():
                path = self.folder / name
                if not path.is_file() or path.stat().st_size < size:
                    raise UserError(
                        f"{path} is shorter than the {size} bytes that progress.json records; "
                        f"delete {self.folder} to start anew"
                    )
                os.truncate(path, size)
            known |= sizes.keys()
        for path in self.folder.glob("*.bin"):
            if path.name not in known:
                path.unlink()

    def discard(self) -> None:
        """Remove what this run has written."""
        for path in [*self.folder.glob("*.bin"), self.folder / "tokenizer.json"]:
            path.unlink(missing_ok=True)
        (self.folder / "progress.json").unlink(missing_ok=True)
        self.folder.rmdir()

    def _path(self, split: str) -> Path:
        number = len(self.progress["splits"][split]["files"])
        return self.folder / f"{split}_{number:06d}.bin"

    def _close(self, split: str) -> None:
        path = self._path(split)
        _flush(path)
        tokens = path.stat().st_size // self._dtype.itemsize
        entry = {"name": path.name, "tokens": tokens, "sha256": file_sha256(path)}
        self.progress["splits"][split]["files"].append(entry)


def data_sha256(hashes: Sequence[str]) -> str:
    """The hash of a data set, from those of its tokenizer and of all its shards in order."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def open_folder(
    folder: Path, shard_tokens: int, settings: dict[str, Any], sources: list[dict[str, Any]]
) -> ShardWriter | None:
    """A writer that begins or goes on; None if the same data set is there, complete.

    Raises UserError if the folder holds anything else: it is never overwritten.
    """
    wanted = {"settings": settings, "sources": sources}
    if (folder / "meta.json").is_file():
        _check_same(folder, "a finished data set", _read_json(folder / "meta.json"), wanted)
        return None
    if (folder / "progress.json").is_file():
        found = _read_json(folder / "progress.json")
        if found["stream"] or found["settings"] == settings:
            _check_same(folder, "an unfinished data set", found, wanted)
            writer = ShardWriter(folder, shard_tokens, found)
            writer.cut_back()
            return writer
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and no data set; choose another --dataset")
    folder.mkdir(parents=True, exist_ok=True)
    empty = {split: {"tokens": 0, "documents": 0, "bytes": 0, "files": []} for split in SPLITS}
    progress = {"tokenizer_sha256": "", "stream": None, "splits": empty, "skipped": {}}
    writer = ShardWriter(folder, shard_tokens, wanted | progress)
    writer.cut_back()
    writer.save(None)
    return writer


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Replace the file at once, so that a reader sees the old text or the new one."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8", newline="\n") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _check_same(folder: Path, what: str, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    old, new = found["settings"], wanted["settings"]
    changed = [
        f"{name} {old.get(name)!r} there, {new.get(name)!r} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if not changed and found["sources"] != wanted["sources"]:
        changed = ["the input files have changed since"]
    if changed:
        raise UserError(
            f"{folder} holds {what} made otherwise ({'; '.join(changed)}): "
            "choose another --dataset, or delete the folder to make it anew"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {path}: {error}; delete {path.parent} to start anew"
        ) from error
    return value


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
