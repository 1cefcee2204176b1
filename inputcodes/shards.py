"""Token shards, written so that a run can resume.

The stream of documents is cut into chunks, each with the state of the stream after it; their tokens
are appended to the shards in order. `progress.json` is replaced whole, after the shards it
describes have reached the disk. Opening an unfinished data set cuts every shard back to the size
recorded there; what was written after the last save is made again, to the same bytes.
All this happens in a folder within the data set's (NEW). When `meta.json`, written last, is there,
the files move up, in the place of an older data set if there is one. meta.json holds:

  format, vocab_size, tokenizer_sha256
  dtype         of the ids in the shards: uint16, or uint32 for more than 65,536 ids
  splits        for `train` and `val`: tokens, documents, bytes (of text, as UTF-8), and files, each
                with its name, tokens and sha256
  skipped       documents left out, by reason
  sources       what was read; `settings` what it was read with
  data_sha256   of the line-separated hashes: the tokenizer's, then those of all files in order
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import time
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inputcodes import files
from inputcodes.configurator import UserError
from inputcodes.documents import SKIPS, SPLITS, Encoded
from inputcodes.ngrams import Counts, merge_counts
from inputcodes.tokenizer import TokenIds

FORMAT = 1
NEW = ".new"  # the folder within a data set's in which it is made
RECORDS = ("meta.json", "progress.json")
OWN_FILES = (*RECORDS, "tokenizer.json", "verified.json", "counts.npz")  # besides the shards
SHARD = re.compile(rf"({'|'.join(SPLITS)})_\d{{6,}}\.bin")
AGAIN = "start over with --overwrite"


class ShardWriter:
    """Appends documents to the shards of both splits.

    `progress` is what progress.json holds: `settings`, `sources`, `tokenizer_sha256` and `dtype`
    (once there is a tokenizer), `stream` (the reader's state, None at the start), `splits` and
    `skipped` as in meta.json, and `hashes`, of every shard so far by its name.
    """

    def __init__(self, folder: Path, shard_tokens: int, progress: dict[str, Any]) -> None:
        self.folder = folder
        self.progress = progress
        self._shard_tokens, self._saved = shard_tokens, time.monotonic()
        self._hashes: dict[Path, Any] = {}  # hashlib's, of the tokens in every shard so far

    @property
    def _dtype(self) -> np.dtype[Any]:
        return np.dtype(self.progress.get("dtype", "uint16")).newbyteorder("<")

    def write(self, encoded: Sequence[Encoded], end_of_text: int) -> None:
        """Append documents and parts of documents, and count those that are left out."""
        end = np.array([end_of_text], dtype=self._dtype)
        for split in SPLITS:
            counts, parts = self.progress["splits"][split], [end[:0]]
            for document in encoded:
                if document.outcome == split:
                    counts["documents"] += document.ends
                    counts["bytes"] += document.text_bytes
                    parts += [document.tokens, end[: document.ends]]
            self._append(split, np.concatenate(parts))
        skipped = self.progress["skipped"]
        for reason in SKIPS:
            number = sum(document.outcome == reason for document in encoded)
            skipped[reason] = skipped.get(reason, 0) + number

    def _append(self, split: str, tokens: TokenIds) -> None:
        """A shard that is full ends anywhere, also within a document."""
        counts = self.progress["splits"][split]
        while len(tokens):
            number, filled = divmod(counts["tokens"], self._shard_tokens)
            part, tokens = np.split(tokens, [self._shard_tokens - filled])
            path, written = self._path(split, number), part.astype(self._dtype).tobytes()
            with files.system_errors("write", path), open(path, "ab") as file:
                file.write(written)
            self._hashes.setdefault(path, hashlib.sha256()).update(written)
            counts["tokens"] += len(part)

    def _path(self, split: str, number: int) -> Path:
        return self.folder / f"{split}_{number:06d}.bin"

    def _shards(self, split: str) -> dict[Path, int]:
        """The tokens in each shard: all but the last are full."""
        tokens, full = self.progress["splits"][split]["tokens"], self._shard_tokens
        starts = enumerate(range(0, tokens, full))
        return {self._path(split, number): min(full, tokens - start) for number, start in starts}

    def is_due(self, every_s: float) -> bool:
        """Whether it is time to save, `every_s` seconds after the last True."""
        if time.monotonic() - self._saved < every_s:
            return False
        self._saved = time.monotonic()
        return True

    def save(self, stream: dict[str, Any] | None) -> None:
        """Put everything on disk and record that the reader stands at `stream`."""
        self._flush()
        hashes = {path.name: total.hexdigest() for path, total in self._hashes.items()}
        self.progress |= {"stream": stream, "hashes": hashes}
        whole = {"sha256": _record_sha256(self.progress)}
        files.write_json(self.folder / "progress.json", self.progress | whole)

    def _flush(self) -> None:
        for path in _shards_in(self.folder):
            with files.system_errors("write", path), open(path, "rb+") as file:
                os.fsync(file.fileno())

    def save_counts(self, counts: Counts, characters: int, stream: dict[str, Any]) -> None:
        """Keep the n-grams counted in so many characters, up to where the reader stands."""
        state = json.dumps({"characters": characters, "stream": stream})
        with files.atomic_write(self.folder / "counts.npz") as file:
            np.savez(file, keys=counts[0], counts=counts[1], state=np.array(state))

    def load_counts(self) -> tuple[Counts, int, dict[str, Any] | None]:
        """What `save_counts` kept; nothing if there is no such file or it is damaged."""
        # Also what zipfile says of methods and flags that it does not know.
        damage = (OSError, ValueError, LookupError, EOFError, RuntimeError, zipfile.BadZipFile)
        with contextlib.suppress(*damage), np.load(self.folder / "counts.npz") as file:
            state = json.loads(str(file["state"]))
            return (file["keys"], file["counts"]), state["characters"], state["stream"]
        return merge_counts([]), 0, None

    def finish(self, vocab_size: int, wanted: dict[str, Any]) -> dict[str, Any]:
        """Write meta.json and return what it holds.

        Raises UserError if by now `wanted` differs: the shards may hold half of each input.
        """
        if changes := _changes(self.folder / "progress.json", self.progress, wanted):
            discard(self.folder)
            raise UserError(f"{'; '.join(changes)}: start the same command again")
        self._flush()  # not save: the stream recorded last is not where the reader stands now
        progress, hashes = self.progress, [self.progress["tokenizer_sha256"]]
        for split in SPLITS:
            shards = [
                {"name": path.name, "tokens": tokens, "sha256": self._hashes[path].hexdigest()}
                for path, tokens in self._shards(split).items()
            ]
            progress["splits"][split]["files"] = shards
            hashes += [shard["sha256"] for shard in shards]
        kept = ("tokenizer_sha256", "splits", "skipped", "sources", "settings")
        meta = {"format": FORMAT, "vocab_size": vocab_size, "dtype": self._dtype.name}
        meta |= {name: progress[name] for name in kept}
        meta["data_sha256"] = files.sha256_of_all(hashes)
        files.write_json(self.folder / "meta.json", meta)
        return meta

    def cut_back(self) -> None:
        """Give every shard the size that `progress` records and remove later ones."""
        shards = {path: n for split in SPLITS for path, n in self._shards(split).items()}
        for path, tokens in shards.items():
            size = self._dtype.itemsize * tokens
            if not path.is_file() or path.stat().st_size < size:
                raise UserError(
                    f"{path} is shorter than the {size} bytes recorded in progress.json: {AGAIN}"
                )
            with files.system_errors("write", path), open(path, "rb+") as file:
                file.truncate(size)
                total = self._hashes[path] = hashlib.file_digest(file, "sha256")
            digest = total.hexdigest()
            if self.progress.get("hashes", {}).get(path.name, digest) != digest:  # none in old ones
                raise UserError(f"{path} was altered (wrong SHA-256): {AGAIN}")
        _remove(self.folder.glob(f"*{files.PARTIAL}"))
        _remove(path for path in _shards_in(self.folder) if path not in shards)


def _record_sha256(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def open_folder(
    folder: Path, shard_tokens: int, wanted: dict[str, Any], overwrite: bool
) -> ShardWriter:
    """A writer for the `settings` and `sources` of `wanted`, of what is there if it is the same."""
    new, path = folder / NEW, folder / NEW / "progress.json"
    try:
        if path.is_file():
            progress = files.read_json(path, AGAIN)
            if progress.pop("sha256", "") != _record_sha256(progress):
                raise UserError(f"{path} is damaged (wrong SHA-256): {AGAIN}")
            changes = _changes(path, progress, wanted)
            if changes and progress.get("stream"):
                raise _differs(folder, "an unfinished data set", changes)
            if not changes:
                writer = ShardWriter(new, shard_tokens, progress)
                writer.cut_back()
                return writer
    except UserError:
        if not overwrite:
            raise
    discard(new)  # of other settings, or damaged; or it has no tokens yet
    empty = {split: {"tokens": 0, "documents": 0, "bytes": 0} for split in SPLITS}
    progress = {"tokenizer_sha256": "", "stream": None, "splits": empty, "skipped": {}}
    writer = ShardWriter(new, shard_tokens, wanted | progress)
    writer.save(None)
    return writer


def is_finished(folder: Path, wanted: dict[str, Any]) -> bool:
    """Whether the wanted data set is there, complete; UserError if it is another, or damaged."""
    path = folder / "meta.json"
    if not path.is_file() or (folder / NEW / "meta.json").is_file():  # which is to take over
        return False
    meta = files.read_json(path, AGAIN)
    if changes := _changes(path, meta, wanted):
        raise _differs(folder, "a finished data set", changes)
    with files.damage_named(path, AGAIN):
        itemsize = np.dtype(meta.get("dtype", "uint16")).itemsize
        shards = [shard for split in SPLITS for shard in meta["splits"][split]["files"]]
        sizes = {folder / shard["name"]: itemsize * shard["tokens"] for shard in shards}
    for path in (folder / "tokenizer.json", *sizes):
        if not path.is_file() or path.stat().st_size != sizes.get(path, path.stat().st_size):
            raise UserError(f"{path} is missing or of another size: {AGAIN}")
    return True


def take_over(folder: Path) -> None:
    """Move a complete new set to its place, or the rest of one whose process died meanwhile."""
    new = folder / NEW
    if not (new / "meta.json").is_file():
        return
    if any((folder / name).is_file() for name in RECORDS):  # the old one's
        discard(folder)
    _remove(new / name for name in ("progress.json", "counts.npz"))
    with files.system_errors("write in", folder):
        for path in reversed(own_files(new)):
            os.replace(path, folder / path.name)
    discard(new)


def discard(folder: Path) -> None:
    """Remove a data set, finished or not, its records last, and the folder if nothing is left."""
    _remove([*folder.glob(f"*{files.PARTIAL}"), *reversed(own_files(folder))])
    with contextlib.suppress(OSError):
        folder.rmdir()


def discard_unfinished(folder: Path, wanted: dict[str, Any]) -> None:
    """Remove what an interrupted --overwrite made of the data set that is there, as `wanted`."""
    path = folder / NEW / "progress.json"
    if path.is_file() and not _changes(path, files.read_json(path, AGAIN), wanted):
        discard(folder / NEW)


def own_files(folder: Path) -> list[Path]:
    """The files of a data set, finished or not; RECORDS first."""
    named = [path for name in OWN_FILES if (path := folder / name).is_file()]
    return [*named, *_shards_in(folder)]


def check_folder(folder: Path) -> None:
    """Raise UserError, before anything is changed, if `folder` holds what is no data set's.

    Files of its names are none without a record. Hidden files (.DS_Store) are left where they are.
    """
    places = folder / NEW, folder  # in this order, as another process may move files up
    found = [path for place in places for path in place.glob("*")]  # once: it may add some
    recorded = any(path.name in RECORDS for path in found)
    for path in found:
        own = path.name in OWN_FILES or SHARD.fullmatch(path.name)
        known = (own and recorded and not path.is_dir()) or path.name.endswith(files.PARTIAL)
        if not known and path.name != "lock" and not path.name.startswith("."):
            raise UserError(
                f"{folder} holds {path.relative_to(folder)}, which is no part of a data set: "
                "choose another --dataset=NAME, or move it away"
            )


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with files.system_errors("remove", path):
            path.unlink(missing_ok=True)


def _shards_in(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*.bin") if SHARD.fullmatch(path.name)]


def _changes(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """How the data set that `path` records differs; an unset setting may be absent."""
    with files.damage_named(path, AGAIN):
        old, new = found["settings"], wanted["settings"]
        changes = [
            f"{name} {old.get(name)!r} there, {new.get(name)!r} now"
            for name in sorted(old.keys() | new.keys())
            if (old.get(name) or None) != (new.get(name) or None)
        ]
        empty: dict[str, Any] = {}
        for was, now in itertools.zip_longest(found["sources"], wanted["sources"], fillvalue=empty):
            if was.get("name") != now.get("name"):
                changes.append(f"read from {was.get('name')} there, {now.get('name')} now")
            # Data sets of earlier versions record less; no revision is known without a network.
            elif any(None not in (v, now.get(k)) and v != now[k] for k, v in was.items()):
                changes.append(f"{now['name']}: the input files have changed since they were read")
    return changes


def _differs(folder: Path, what: str, changes: list[str]) -> UserError:
    return UserError(
        f"{folder} holds {what} of other settings or files ({'; '.join(changes)}): "
        "choose another --dataset=NAME, or make it again with --overwrite"
    )


def left_out(record: dict[str, Any]) -> str:
    skipped = record.get("skipped", {})  # not in every data set
    reasons = [f"{number:,} {reason}" for reason, number in skipped.items() if number]
    return ", ".join(reasons) or "nothing"


def summary(folder: Path, meta: dict[str, Any]) -> str:
    lines = [f"{folder}: {meta['vocab_size']:,} ids, data {meta['data_sha256'][:12]}"]
    for split, counts in meta["splits"].items():
        ratio = counts["bytes"] / max(counts["tokens"], 1)
        noun = "document" if counts["documents"] == 1 else "documents"
        lines.append(
            f"  {split:5} {counts['documents']:>10,} {noun:9} {counts['bytes'] / 1e6:>10,.2f} MB"
            f" {counts['tokens']:>14,} tokens of {ratio:.2f} bytes"
        )
    return "\n".join([*lines, f"  left out: {left_out(meta)}"])
