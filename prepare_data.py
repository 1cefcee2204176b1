"""Text to token shards: `python prepare_data.py input.txt`.

One document on its way: readers.py reads it; a worker checks that it is text, lets a keyed hash of
the text decide whether it is for training or for validation, encodes it and adds `end_of_text`;
the main thread writes the tokens of all documents in the order they were read. A single text is
split within itself: its last part is for validation. With --chat documents are conversations
(documents.py says of which formats), whose turns get role marks.

The result in `data/<dataset>/`: `train_000000.bin`, ... and `val_000000.bin`, ... (uint16, or
uint32 for more than 65,536 ids; little-endian, no header), `tokenizer.json`, and `meta.json`,
written last. The bytes depend on the input and the settings alone, not on the number of workers
nor on interruptions: `progress.json` says how far a run came, and the same command continues.

Input that cannot be read is an error that names it; what is no text is left out and counted.
"""

import contextlib
import dataclasses
import functools
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from inputcodes import configurator, shards
from inputcodes.configurator import Settings, UserError, command, run_main, setting
from inputcodes.corpus import Corpus, Stream, describe, find_entries, find_threshold, hub_name
from inputcodes.documents import SPLITS, chunks_of, count_chunk, encode_chunk, until
from inputcodes.files import file_sha256, locked, split_list
from inputcodes.ngrams import ORDERS, choose_ngrams, merge_counts, ngram_places, read_ngrams
from inputcodes.readers import SUFFIXES
from inputcodes.tokenizer import Tokenizer
from inputcodes.workers import map_chunks, progress_bar

USAGE = "usage: python prepare_data.py [FILE | FOLDER | CONFIG.py ...] [--name=value ...]"
SOURCES = ("", "stdlib", "files", "hub")
FILES_HELP = f"comma-separated paths, folders, patterns ({' '.join(SUFFIXES)}; also .gz .zst .bz2)"
free = functools.partial(setting, free_on_resume=True)  # changes no byte of the data set
say = functools.partial(print, flush=True)


@dataclasses.dataclass(frozen=True)
class PrepareConfig(Settings):
    dataset: str = free("", "name of the data set, a folder in data_dir; empty: after the input")
    data_dir: str = free("data", "folder of all data sets", is_path=True)
    source: str = setting("", "of the text; empty: what is given", choices=SOURCES)
    files: tuple[str, ...] = setting((), FILES_HELP, positional=True, spaces_count=True)
    hub: str = setting("", "hub data sets (PATH:CONFIG@REVISION) or folders, comma-separated")
    val_source: str = setting("", "text to hold out: paths; of hub data sets, names of splits")
    separator: str = setting("", "between documents of a text file: '<|endoftext|>' or '\\n\\n'")
    probabilities: str = setting("", "chance of each entry to give the next one, comma-separated")
    seed: int = setting(0, "seed of the draws that mix the entries")
    text_column: str = setting("text", "column or key that holds the document")
    chat: bool = setting(False, "documents are conversations (stdlib: functions and docstrings)")
    vocab_size: int = setting(0, "256 (bytes) to 65536; 0: 256, or what the given tokenizer has")
    tokenizer: str = setting("", "tiktoken encoding or .json file; empty: a new one", is_path=True)
    ngrams: int = setting(0, "n-grams in the vocabulary; 0: as many as fit", least=0)
    ngram_order: str = setting("frequency", "order of ids; text: longest first", choices=ORDERS)
    ngram_within_words: bool = setting(False, "only n-grams of letters and apostrophes")
    ngram_file: str = setting("", "n-grams in this order: JSON list, or one per line", is_path=True)
    max_ngram: int = setting(3, "most characters of an n-gram that is counted", least=2, most=3)
    count_characters: int = setting(200_000_000, "characters to count n-grams in; 0: all", least=0)
    val_fraction: float = setting(0.035, "share of the text that is held out", least=0, below=1)
    shard_tokens: int = setting(100_000_000, "tokens in a full shard", least=1000)
    max_tokens: int = setting(0, "training tokens after which to stop; 0: read all", least=0)
    workers: int = free(0, "threads; 0: one per core", least=0, most=1024)
    save_every_s: float = free(5.0, "seconds between two saves of the progress", least=0)
    overwrite: bool = free(False, "make the data set again, whatever is there under its name")
    show: str = free("", "only print counts and first documents of this folder", is_path=True)

    def problems(self) -> list[str]:
        problems = super().problems() + _source_problems(self) + _vocabulary_problems(self)
        name = self.dataset or self.name
        if Path(name).name != name or name in ("", ".."):
            problems.append(
                f"dataset={name!r}: expected the plain name of a folder (--dataset=NAME)"
            )
        return problems

    @property
    def kind(self) -> str:
        """The source, as given or as what is given says."""
        return self.source or ("files" if self.files else "hub" if self.hub else "stdlib")

    @property
    def entries(self) -> list[str]:
        """The paths, patterns or data sets to read; none for the standard library."""
        words = self.files if self.kind == "files" else (self.hub,) if self.kind == "hub" else ()
        return [entry for word in words for entry in split_list(word)]

    @property
    def name(self) -> str:
        """The name of the data set: as given, or after the first thing that is read."""
        if self.dataset or not self.entries:
            return self.dataset or ("docstrings" if self.chat else "stdlib")
        path = Path(hub_name(self.entries[0])[0] if self.kind == "hub" else self.entries[0])
        while set(path.name) & set("*?[") and not path.exists():  # a pattern: after its folder
            path = path.parent
        name = os.path.basename(os.path.realpath(path))  # resolve() raises at a loop of links
        return re.sub(r"[^\w-]+", "-", name.split(".")[0]).strip("-")

    @property
    def chances(self) -> list[float]:
        """The probabilities as numbers; ValueError if they are not."""
        return [float(part) for part in self.probabilities.split(",") if part.strip()]


def _source_problems(config: PrepareConfig) -> list[str]:
    kind, problems = config.kind, []
    if kind not in SOURCES:
        return []  # which is said already
    if kind != "stdlib" and not config.entries:
        problems.append(f"source={kind!r} needs --{kind}=...")
    for name in ("files", "hub"):
        if name != kind and getattr(config, name):
            advice = f"leave out {kind} or {name}" if config.entries else f"pass --source={name}"
            problems.append(f"{name} is given, but source={kind!r}: {advice}")
    if kind == "stdlib" and config.val_source:
        problems.append("val_source is given, but stdlib is split by family: leave it out")
    if config.chat and config.text_column != PrepareConfig.text_column:
        problems.append(f"text_column={config.text_column!r} is for texts: leave out it or chat")
    if kind == "hub" and "train" in split_list(config.val_source):
        problems.append(f"val_source={config.val_source!r}: training reads train: name another")
    try:
        chances = config.chances
    except ValueError:
        return [*problems, f"probabilities={config.probabilities!r}: expected numbers and commas"]
    if chances and len(chances) != len(config.entries):
        problems.append(f"{len(chances)} probabilities for {len(config.entries)} entries")
    if chances and not (min(chances) > 0 and abs(sum(chances) - 1) < 1e-6):
        problems.append(
            f"probabilities={config.probabilities!r}: expected positive numbers that sum to 1"
        )
    return problems


def _vocabulary_problems(config: PrepareConfig) -> list[str]:
    counting = ("ngram_order", "ngram_within_words", "max_ngram")
    ngrams = ("ngrams", "ngram_file", *counting)
    vocab_size = config.vocab_size or 256
    try:
        places = len(ngram_places(vocab_size))
    except UserError as error:
        return [str(error)]
    names, decider = tuple[str, ...](), ""
    if config.tokenizer:
        names, decider = ("vocab_size", *ngrams), f"tokenizer={config.tokenizer!r}"
    elif not places:
        names, decider = ngrams, "vocab_size=256, which has no n-grams"
    elif config.ngram_file:
        names, decider = counting, f"ngram_file={config.ngram_file!r}"
    problems = [
        f"{field.name}={value!r} beside {decider}: leave out --{field.name}"
        for field in dataclasses.fields(config)
        if field.name in names and (value := getattr(config, field.name)) != field.default
    ]
    if config.ngrams > places > 0:
        problems.append(f"ngrams={config.ngrams}: vocab_size={vocab_size} has {places:,} places")
    return problems


def prepare(config: PrepareConfig) -> Path:
    """Make the data set, or what is missing of it, and return its folder.

    If another process is making it, this one waits and then uses what is there.
    """
    folder = Path(config.data_dir) / config.name
    entries = find_entries(config.kind, config.entries, split_list(config.val_source), config.chat)
    column = None if config.chat else config.text_column
    how = config.separator, config.val_fraction, config.chances, config.seed
    corpus = Corpus(entries, column, *how)
    wanted = _wanted(config, corpus)
    if config.overwrite or (folder / shards.NEW).is_dir() or not shards.is_finished(folder, wanted):
        shards.check_folder(folder)
        with locked(folder, wait=True):
            shards.take_over(folder)  # an earlier process may have died just before
            if config.overwrite or not shards.is_finished(folder, wanted):  # made meanwhile?
                started = time.monotonic()
                writer = shards.open_folder(folder, config.shard_tokens, wanted, config.overwrite)
                meta = _Preparation(config, corpus, writer).run()
                shards.take_over(folder)
                say(f"{shards.summary(folder, meta)}; {time.monotonic() - started:.1f} s")
                return folder
            shards.discard_unfinished(folder, wanted)
    say(f"{folder} is complete already")
    return folder


def prepare_missing(data_dir: str, dataset: str, vocab_size: int = 0) -> Path:
    """The folder of a data set, made first if it is stdlib, stdlib-N (N ids) or docstrings.

    UserError if it would be made with other than `vocab_size` ids (0: any).
    """
    folder = Path(data_dir) / dataset
    embedded = re.fullmatch(r"stdlib(?:-([1-9][0-9]*))?|docstrings", dataset)
    unfinished = (folder / shards.NEW).is_dir() and not embedded  # DataSet says what to do
    if (folder / "meta.json").is_file() or unfinished:
        return folder
    if not embedded:
        advice = f"make it with `{_preparing_command(data_dir, dataset)}`, or pass its --data_dir"
        if Path(dataset).name != dataset or dataset == "..":
            advice = f"dataset={dataset!r}: expected the name of a folder in data_dir={data_dir!r}"
        raise UserError(f"there is no data set {folder}: {advice}")
    chat, ids = dataset == "docstrings", int(embedded[1] or 256)
    if vocab_size not in (0, ids):
        words = ["--chat"] * chat + ["--dataset=NAME", "--tokenizer=FILE"]
        stdlib = "" if chat else f"pass --dataset=stdlib-{vocab_size}, or "
        raise UserError(
            f"{folder} would have {ids} ids, expected {vocab_size}: {stdlib}make one with the"
            f" model's tokenizer (`{command('prepare_data.py', *words)}`) and pass --dataset=NAME"
        )
    settings = {"data_dir": data_dir, "dataset": dataset, "chat": chat, "vocab_size": ids}
    return prepare(configurator.build(PrepareConfig, settings))


def _preparing_command(data_dir: str, dataset: str) -> str:
    """The command that prepares a data set: of its config file, if the program has one."""
    words = [] if data_dir == PrepareConfig.data_dir else [f"--data_dir={data_dir}"]
    for file in sorted(configurator.ROOT.glob("config/data_*.py")):
        if configurator.given_values(PrepareConfig, [str(file)]).get("dataset") == dataset:
            return command("prepare_data.py", configurator.from_here(file), *words)
    return command("prepare_data.py", *words, "--files=TEXT.txt", f"--dataset={dataset}")


def _wanted(config: PrepareConfig, corpus: Corpus) -> dict[str, Any]:
    """What decides the bytes of the data set: settings, of n-grams only those given, and files."""
    free_names = configurator.names_where(PrepareConfig, "free_on_resume")
    settings = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in free_names
        and not (field.name.startswith("ngram") and getattr(config, field.name) == field.default)
    }
    settings |= {
        "source": config.kind,
        "files": ",".join(config.entries) if config.kind == "files" else "",
        "vocab_size": config.vocab_size or 256,
    }
    tables = [file for file in (config.tokenizer, config.ngram_file) if os.path.isfile(file)]
    sources = [{"name": file, "sha256": file_sha256(Path(file))} for file in tables]
    return {"settings": settings, "sources": [*describe(corpus.entries), *sources]}


@dataclasses.dataclass
class _Preparation:
    """Writes what is missing of a data set."""

    config: PrepareConfig
    corpus: Corpus
    writer: shards.ShardWriter
    val_below: int = 0  # documents whose hash is below it are for validation
    notes: list[str] = dataclasses.field(default_factory=list)  # on files that are left out

    def run(self) -> dict[str, Any]:
        config, writer = self.config, self.writer
        done = writer.progress["splits"]["train"]["tokens"]
        resumed = f", continuing after {done:,} tokens" if done else ""
        say(f"preparing {Path(config.data_dir) / config.name}{resumed}")
        left = {(e.name, e.left_alone): None for e in self.corpus.entries if e.left_alone}
        for name, besides in left:  # once for all splits of a data set
            say(f"note: not read in {name}: {besides}")
        if config.val_fraction and self.corpus.is_split_by_hash:
            self.val_below, note = find_threshold(self.corpus)
            if note:
                say(f"note: {note}")
        is_given = config.ngram_file or config.vocab_size in (0, 256)  # as beside --tokenizer
        idle = {
            "val_fraction": config.val_source and "beside --val_source",
            "seed": not config.chances and "without --probabilities",
            "text_column": self.corpus.text_files and "on text files",
            "count_characters": is_given and "where no n-grams are counted",
        }
        for name, where in idle.items():
            if where and (value := getattr(config, name)) != getattr(PrepareConfig, name):
                say(f"note: {name}={value} has no effect {where}")
        tokenizer = self.tokenizer()
        self.encode(tokenizer)
        self.check_splits()
        return writer.finish(tokenizer.vocab_size, _wanted(config, self.corpus))

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of an unfinished run, or a new one beside the shards to come."""
        config, writer = self.config, self.writer
        path = writer.folder / "tokenizer.json"
        if sha256 := writer.progress["tokenizer_sha256"]:
            tokenizer = Tokenizer.load(path)
            if tokenizer.sha256 != sha256:
                raise UserError(f"{path} has changed: start over with --overwrite")
            return tokenizer
        if config.tokenizer:
            load = Tokenizer.load if config.tokenizer.lower().endswith(".json") else Tokenizer.named
            tokenizer = load(config.tokenizer)
        else:
            vocab_size = config.vocab_size or 256
            tokenizer = Tokenizer(vocab_size, self.ngrams(vocab_size) if vocab_size > 256 else [])
        tokenizer.save(path)
        writer.progress |= {"tokenizer_sha256": tokenizer.sha256, "dtype": tokenizer.dtype.name}
        writer.save(None)
        return tokenizer

    def ngrams(self, vocab_size: int) -> list[str]:
        """Those of a file, or in the first `count_characters`; partial counts are kept."""
        config = self.config
        if config.ngram_file:
            return read_ngrams(Path(config.ngram_file), vocab_size, config.ngrams)
        job = functools.partial(count_chunk, config.max_ngram, self.val_below, config.chat)
        total, characters, state = self.writer.load_counts()
        results = map_chunks(job, chunks_of(Stream(self.corpus, state)), config.workers)
        parts = [total]
        enough = config.count_characters or sys.maxsize
        bar = progress_bar("counting", characters)
        with bar, contextlib.closing(results):
            while characters < enough and (result := next(results, None)):
                chunk, counts = result
                parts.append(counts)
                characters += chunk.size
                bar.update(chunk.size)
                if (due := self.writer.is_due(config.save_every_s)) or len(parts) == 16:
                    parts = [merge_counts(parts)]
                if due:
                    self.writer.save_counts(parts[0], characters, chunk.state)
        counts, order = merge_counts(parts), config.ngram_order
        return choose_ngrams(counts, vocab_size, config.ngrams, order, config.ngram_within_words)

    def encode(self, tokenizer: Tokenizer) -> None:
        config, writer = self.config, self.writer
        job = functools.partial(encode_chunk, tokenizer, self.val_below, config.chat)
        stream = Stream(self.corpus, writer.progress["stream"])
        results = map_chunks(job, chunks_of(stream), config.workers)
        splits = writer.progress["splits"]
        done = sum(counts["bytes"] for counts in splits.values())
        bar = progress_bar("encoding", done)
        with bar, contextlib.closing(results):
            for chunk, encoded in results:
                for note in filter(None, (item.note for item in chunk.items)):
                    self.notes.append(note)
                    say(f"note: left out: {note}")
                if config.max_tokens:
                    left = config.max_tokens - splits["train"]["tokens"]
                    encoded = until(encoded, left, not self.corpus.is_one_text)
                writer.write(encoded, tokenizer.end_of_text)
                documents = sum(counts["documents"] for counts in splits.values())
                tokens = sum(counts["tokens"] for counts in splits.values())
                bar.set_postfix_str(f"{documents:,} documents, {tokens / 1e6:.1f} M tokens", False)
                bar.update(sum(document.text_bytes for document in encoded))
                if 0 < config.max_tokens <= splits["train"]["tokens"] and encoded[-1].ends:
                    return
                if self.writer.is_due(config.save_every_s):
                    writer.save(chunk.state)
        documents = sum(counts["documents"] for counts in splits.values())
        documents += sum(writer.progress["skipped"].values())
        if stream.used_up:
            say(stream.used_up)
        elif config.separator and documents <= self.corpus.text_files:
            say(f"note: --separator={config.separator!r} divides no file: one document each")

    def check_splits(self) -> None:
        """Refuse a data set without training documents, or without the validation asked for."""
        config, progress = self.config, self.writer.progress
        counts = {split: progress["splits"][split]["documents"] for split in SPLITS}
        if counts["train"] and (counts["val"] or not (config.val_fraction or config.val_source)):
            return
        shards.discard(self.writer.folder)
        unread = any(n for reason, n in progress["skipped"].items() if reason != "empty")
        advice = "docs/data.md says what is read" if unread else "give more text"
        if counts["val"] and not config.val_source:
            advice = f"lower --val_fraction={config.val_fraction}"
        side, advice = "training", "; ".join(self.notes[:1]) or advice
        if counts["train"]:
            ended = 0 < config.max_tokens <= progress["splits"]["train"]["tokens"]
            more = f"raise --max_tokens={config.max_tokens}" if ended else "give more text"
            side, advice = "validation", f"{more}, or pass --val_fraction=0 to hold out none"
            if config.val_source:
                advice = "name other text with --val_source, or leave it out"
        left_out = shards.left_out(progress)
        raise UserError(f"no {side} document for {config.name} (left out: {left_out}): {advice}")


def main(argv: list[str]) -> None:
    given = configurator.given_values(PrepareConfig, argv)
    for name in ("show", "hub"):
        if given.get(name) == "":  # as of a shell's unset variable: not the standard library
            raise UserError(f"{name}='': expected a name, or no --{name}")
    config = configurator.build(PrepareConfig, given)
    if config.show:
        from inputcodes.data import DataSet, show  # with torch, which takes seconds

        print(show(DataSet(Path(config.show))))
        return
    try:
        prepare(config)
    except KeyboardInterrupt:
        print("\ninterrupted: the same command continues from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run_main(main, PrepareConfig, USAGE, output_needed=any("--show" in word for word in sys.argv))
