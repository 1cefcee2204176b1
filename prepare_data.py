"""Text to token shards: `python prepare_data.py --source=files --files='texts/*.parquet' ...`.

One document on its way: corpus.py reads it; a worker checks that it is text, lets a keyed hash of
the text decide whether it is for training or for validation, encodes it and adds `end_of_text`;
the main process writes the tokens of all documents in the order they were read. With --chat
documents are conversations, `{"prompt", "response"}` or `{"messages": [{"role", "content"}]}`,
whose turns get role marks (documents.py shows where).

The result in `data/<dataset>/`: `train_000000.bin`, ... and `val_000000.bin`, ... (uint16, or
uint32 for more than 65,536 ids; little-endian, no header), `tokenizer.json`, and `meta.json`,
written last. The bytes depend on the input and the settings alone, not on the number of processes
nor on interruptions: `progress.json` says how far a run came, and the same command goes on from
there.

An input that cannot be read (malformed JSON, a broken parquet file, a missing column) is an error
that names it. A document that is not text is left out and counted: `empty` (nothing or only white
space, in any turn; or no response), `binary` (has U+0000), `not_utf8`, `surrogate` (a lone one,
from a JSON escape), `not_text` (a number, a list, ...), `not_chat` (messages of another shape or
with other roles than system, user and assistant).
"""

import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from inputcodes import corpus
from inputcodes.configurator import Settings, UserError, configure, run_main, setting
from inputcodes.documents import SKIPS, Encoded, count_chunk, encode_chunk
from inputcodes.files import file_sha256
from inputcodes.ngrams import ORDERS, Counts, choose_ngrams, merge_counts, read_ngrams
from inputcodes.pool import chunks_of, map_chunks
from inputcodes.shards import SPLITS, ShardWriter, open_folder
from inputcodes.tokenizer import Tokenizer, check_vocab_size, ngram_places

USAGE = "usage: python prepare_data.py [FILE.py] [--name=value ...]"
FREE_SETTINGS = {"data_dir", "dataset", "workers", "save_every_s", "quiet"}  # change no byte


@dataclasses.dataclass(frozen=True)
class PrepareConfig(Settings):
    """The settings of prepare_data.py; the defaults make the embedded corpus."""

    dataset: str = setting("stdlib", "name of the data set, a folder in data_dir")
    data_dir: str = setting("data", "folder of all data sets")
    source: str = setting("stdlib", "stdlib (the library of this Python), files or hub")
    files: str = setting("", "globs of .txt, .md, .rst, .py, .jsonl, .parquet; commas between")
    hub: str = setting(
        "", "Hugging Face data sets (path or path:config) or folders, commas between"
    )
    probabilities: str = setting(
        "",
        "chance of each entry of files or hub to give the next document, commas between; "
        "empty: one entry after the other",
    )
    seed: int = setting(0, "of the draws that mix the entries")
    text_column: str = setting("text", "column or key that holds the document")
    chat: bool = setting(
        False,
        "documents are conversations: columns or keys messages, or prompt and response; those of "
        "stdlib are the signatures and docstrings of its functions",
    )
    vocab_size: int = setting(
        0, "256 (bytes) to 65536, see tokenizer.py; 0: 256, or what the tokenizer given has"
    )
    tokenizer: str = setting(
        "",
        "instead of a new one: the name of a tiktoken encoding such as gpt2, a tokenizer.json to "
        "use again, or a .json file of the tokenizers library",
    )
    ngrams: int = setting(0, "n-grams in the vocabulary; 0: as many as fit", least=0)
    ngram_order: str = setting(
        "frequency",
        "order of their ids: frequency, or text (longest first, then by code point)",
        choices=ORDERS,
    )
    ngram_within_words: bool = setting(False, "only n-grams of letters and apostrophes")
    ngram_file: str = setting(
        "", "file of n-grams to use in its order instead of counting: a JSON list, or one per line"
    )
    max_ngram: int = setting(3, "most characters of an n-gram that is counted", least=2, most=3)
    count_characters: int = setting(
        200_000_000, "training text whose n-grams are counted, in characters; 0: all"
    )
    val_fraction: float = setting(0.035, "share of the documents (stdlib: of the bytes) held out")
    shard_tokens: int = setting(100_000_000, "tokens in a full shard")
    max_tokens: int = setting(
        0, "stop after the document that reaches these training tokens; 0: no"
    )
    workers: int = setting(0, "processes; 0: one a core")
    save_every_s: float = setting(5.0, "seconds between two saves of the progress")
    quiet: bool = setting(False, "print nothing")

    def problems(self) -> list[str]:
        """One sentence for every impossible value or combination."""
        found = super().problems() + _source_problems(self) + _vocabulary_problems(self)
        if Path(self.dataset).name != self.dataset or self.dataset in ("", ".."):
            found.append(f"dataset={self.dataset!r}: expected the plain name of a folder")
        if not 0 <= self.val_fraction < 1:
            found.append(f"val_fraction={self.val_fraction}: expected 0 or more and less than 1")
        if self.shard_tokens < 1:
            found.append(f"shard_tokens={self.shard_tokens}: expected 1 or more")
        for name in ("max_tokens", "workers", "count_characters", "save_every_s"):
            if getattr(self, name) < 0:
                found.append(f"{name}={getattr(self, name)}: expected 0 or more")
        return found

    @property
    def entries(self) -> list[str]:
        """The globs or data sets to read; none for the standard library."""
        text = {"files": self.files, "hub": self.hub}.get(self.source, "")
        return [entry.strip() for entry in text.split(",") if entry.strip()]

    @property
    def chances(self) -> list[float]:
        """The probabilities as numbers; ValueError if they are not."""
        return [float(part) for part in self.probabilities.split(",") if part.strip()]


def _source_problems(config: PrepareConfig) -> list[str]:
    if config.source not in ("stdlib", "files", "hub"):
        return [f"source={config.source!r}: expected stdlib, files or hub"]
    found = []
    if config.source != "stdlib" and not config.entries:
        found.append(f"source={config.source!r} needs --{config.source}=...")
    if config.dataset == "stdlib" and (config.source != "stdlib" or config.chat):
        what = "chat" if config.chat else f"source={config.source!r}"
        found.append(f"{what} needs a name for its data set: --dataset=...")
    for name in {"files", "hub"} - {config.source}:
        if getattr(config, name):
            found.append(f"{name} is given, but source={config.source!r}: pass --source={name}")
    try:
        chances = config.chances
    except ValueError:
        return [*found, f"probabilities={config.probabilities!r}: expected numbers and commas"]
    if chances and len(chances) != len(config.entries):
        found.append(f"{len(chances)} probabilities for {len(config.entries)} entries")
    if chances and not (min(chances) > 0 and abs(sum(chances) - 1) < 1e-6):
        found.append(
            f"probabilities={config.probabilities!r}: expected positive ones that sum to 1"
        )
    return found


def _vocabulary_problems(config: PrepareConfig) -> list[str]:
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    of_counting = ("ngram_order", "ngram_within_words", "max_ngram")
    of_ngrams = ("ngrams", "ngram_file", *of_counting)
    vocab_size = config.vocab_size or 256

    def given(names: Sequence[str]) -> list[str]:
        return [name for name in names if getattr(config, name) != defaults[name]]

    if config.tokenizer:
        return [
            f"{name}={getattr(config, name)!r} beside tokenizer={config.tokenizer!r}: leave it out,"
            " the tokenizer decides"
            for name in given(("vocab_size", *of_ngrams))
        ]
    try:
        places = len(ngram_places(check_vocab_size(vocab_size)))
    except UserError as error:
        return [str(error)]
    found = []
    if not places and (names := given(of_ngrams)):
        found.append(f"{names[0]} is given, but a vocab_size of 256 has no n-grams: raise it")
    elif config.ngrams > places:
        found.append(f"ngrams={config.ngrams}: vocab_size={vocab_size} has places for {places:,}")
    if config.ngram_file:
        found += [
            f"{name} is given beside ngram_file={config.ngram_file!r}, which decides: leave it out"
            for name in given(of_counting)
        ]
    return found


def prepare(config: PrepareConfig) -> Path:
    """Make the data set, or what is left of it to make, and return its folder.

    A finished data set of the same settings and sources is left as it is. Raises UserError.
    """
    folder = Path(config.data_dir) / config.dataset
    settings = _identity(config)
    say = (lambda text: None) if config.quiet else functools.partial(print, flush=True)
    sources = corpus.describe_sources(config.source, config.entries)
    writer = open_folder(folder, config.shard_tokens, settings, sources)
    if writer is None:
        say(f"{folder} is complete already")
        return folder
    done = writer.progress["splits"]["train"]["tokens"]
    say(f"preparing {folder}" + (f", going on after {done:,} training tokens" if done else ""))
    started = time.monotonic()
    tokenizer = _tokenizer(config, writer)
    _write_shards(config, tokenizer, writer)
    for split, counts in writer.progress["splits"].items():
        if not counts["documents"] and (split == "train" or config.val_fraction):
            skipped = writer.progress["skipped"]
            writer.discard()
            raise UserError(
                f"no document for {split!r} in {folder} (left out: {skipped}): "
                f"give more text, or change --val_fraction={config.val_fraction}"
            )
    say(_summary(folder, writer.finish(tokenizer.vocab_size), time.monotonic() - started))
    return folder


def _identity(config: PrepareConfig) -> dict[str, Any]:
    """The settings that decide the bytes of the data set; those of n-grams only where given."""
    settings = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in FREE_SETTINGS
        and not (field.name.startswith("ngram") and getattr(config, field.name) == field.default)
    }
    settings["vocab_size"] = config.vocab_size or 256
    if config.ngram_file:
        settings["ngram_file_sha256"] = file_sha256(Path(config.ngram_file))
    return settings


def _open_stream(config: PrepareConfig) -> corpus.Stream:
    column = None if config.chat else config.text_column
    sources = corpus.open_sources(config.source, config.entries, column, config.val_fraction)
    return corpus.Stream(sources, column, config.chances, config.seed)


def _tokenizer(config: PrepareConfig, writer: ShardWriter) -> Tokenizer:
    """The tokenizer of an unfinished run, or a new one beside the shards to come."""
    path = writer.folder / "tokenizer.json"
    if sha256 := writer.progress["tokenizer_sha256"]:
        tokenizer = Tokenizer.load(path)
        if tokenizer.sha256 != sha256:
            raise UserError(f"{path} has changed; delete {writer.folder} to start anew")
        return tokenizer
    if config.tokenizer.endswith(".json"):
        tokenizer = Tokenizer.load(config.tokenizer)
    elif config.tokenizer:
        tokenizer = Tokenizer.named(config.tokenizer)
    else:
        tokenizer = Tokenizer(config.vocab_size or 256, _ngrams(config))
    tokenizer.save(path)
    writer.progress |= {"tokenizer_sha256": tokenizer.sha256, "dtype": tokenizer.dtype.name}
    writer.save(None)
    return tokenizer


def _ngrams(config: PrepareConfig) -> list[str]:
    """The n-grams of the vocabulary, in the order of their ids."""
    vocab_size, number = config.vocab_size or 256, config.ngrams
    if vocab_size == 256:
        return []
    if config.ngram_file:
        return read_ngrams(Path(config.ngram_file), vocab_size, number)
    counts, order = _count(config), config.ngram_order
    return choose_ngrams(counts, vocab_size, number, order, config.ngram_within_words)


def _count(config: PrepareConfig) -> Counts:
    """The n-grams in the first `count_characters` of the stream, in chunks."""
    job = functools.partial(count_chunk, config.max_ngram, config.val_fraction, config.chat)
    results = map_chunks(job, chunks_of(_open_stream(config)), config.workers)
    total = merge_counts([])
    parts: list[Counts] = []
    characters = 0
    with _bar(config, "counting", 0) as bar, contextlib.closing(results):
        for chunk, counts in results:
            bar.update(chunk.size)
            characters += chunk.size
            parts.append(counts)
            if len(parts) == 16:
                total = merge_counts([total, *parts])
                parts = []
            if 0 < config.count_characters <= characters:
                break
    return merge_counts([total, *parts])


def _write_shards(config: PrepareConfig, tokenizer: Tokenizer, writer: ShardWriter) -> None:
    stream = _open_stream(config)
    if state := writer.progress["stream"]:
        stream.restore(state)
    splits = writer.progress["splits"]
    job = functools.partial(encode_chunk, tokenizer, config.val_fraction, config.chat)
    results = map_chunks(job, chunks_of(stream), config.workers)
    saved = time.monotonic()
    done = sum(counts["bytes"] for counts in splits.values())
    with _bar(config, "encoding", done) as bar, contextlib.closing(results):
        for chunk, encoded in results:
            if config.max_tokens:
                encoded = encoded.until(config.max_tokens - splits["train"]["tokens"])
            _write(writer, encoded)
            documents, tokens = (
                sum(counts[what] for counts in splits.values()) for what in ("documents", "tokens")
            )
            bar.set_postfix_str(f"{documents:,} documents, {tokens / 1e6:.1f} M tokens", False)
            bar.update(int(encoded.text_bytes.sum()))
            if 0 < config.max_tokens <= splits["train"]["tokens"]:
                break
            if time.monotonic() - saved >= config.save_every_s:
                writer.save(chunk.state)
                saved = time.monotonic()


def _write(writer: ShardWriter, encoded: Encoded) -> None:
    for code, split in enumerate(SPLITS):
        chosen = encoded.outcomes == code
        tokens = encoded.tokens[np.repeat(chosen, encoded.lengths)]
        writer.add(split, tokens, int(chosen.sum()), int(encoded.text_bytes[chosen].sum()))
    skipped = writer.progress["skipped"]
    for code, reason in enumerate(SKIPS, start=len(SPLITS)):
        skipped[reason] = skipped.get(reason, 0) + int((encoded.outcomes == code).sum())


def _bar(config: PrepareConfig, what: str, done: int) -> Any:
    return tqdm(desc=what, initial=done, unit="B", unit_scale=True, disable=config.quiet, ncols=80)


def _summary(folder: Path, meta: dict[str, Any], elapsed_s: float) -> str:
    """The closing lines, for an 80-column screen."""
    lines = [f"{folder}: {meta['vocab_size']:,} ids, data {meta['data_sha256'][:12]}"]
    for split, counts in meta["splits"].items():
        ratio = counts["bytes"] / max(counts["tokens"], 1)
        lines.append(
            f"  {split:5} {counts['documents']:>10,} documents {counts['bytes'] / 1e6:>10,.2f} MB"
            f" {counts['tokens']:>14,} tokens of {ratio:.2f} bytes"
        )
    left_out = [f"{number:,} {reason}" for reason, number in meta["skipped"].items() if number]
    lines.append(f"  left out: {', '.join(left_out) or 'nothing'}; {elapsed_s:.1f} s")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Prepare what the settings in `argv` say; `--help` lists them."""
    try:
        prepare(configure(PrepareConfig, argv))
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run_main(main, PrepareConfig, USAGE)
