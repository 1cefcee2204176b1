"""Data preparation: the files against a plain reading of the same documents, and its failures."""

import dataclasses
import functools
import gzip
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

import prepare_data
from inputcodes import corpus, documents, readers, shards, workers
from inputcodes.configurator import UserError, configure, help_text
from inputcodes.data import DataSet
from inputcodes.ngrams import merge_counts
from inputcodes.shards import ShardWriter
from inputcodes.tokenizer import Tokenizer
from prepare_data import PrepareConfig, main, prepare, prepare_missing
from tests.helpers import ROOT, prepare_config, write_json_lines, write_parquet

WORDS = ["alpha", "beta", "gamma", "ζήτα", "中文", "שלום", "café", "😀", "<|endoftext|>", "end."]


def texts_of(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randrange(5, 80))) for _ in range(count)]


def read_split(folder: Path, split: str) -> tuple[list[str], list[int]]:
    """The documents and the tokens of a split, by meta.json and the shard format alone."""
    meta = json.loads((folder / "meta.json").read_text())
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    raw = b"".join((folder / file["name"]).read_bytes() for file in meta["splits"][split]["files"])
    tokens = np.frombuffer(raw, dtype="<u2")
    ends = np.flatnonzero(tokens == tokenizer.end_of_text)
    assert len(tokens) == 0 or ends[-1] == len(tokens) - 1
    pieces = np.split(tokens, ends + 1)[:-1]
    return [tokenizer.decode(piece[:-1]) for piece in pieces], tokens.tolist()


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, those in folders within as if they were one."""
    return {
        path.relative_to(folder).parts[0]: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def test_the_default_is_the_standard_library(tmp_path: Path) -> None:
    folder = prepare(PrepareConfig(data_dir=str(tmp_path)))
    assert folder == tmp_path / "stdlib"
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["vocab_size"] == 256
    train, val = (read_split(folder, split)[0] for split in ("train", "val"))
    assert Path(json.__file__).read_text() in train + val
    assert sum(len(text.encode()) for text in train) > 5_000_000
    assert 50_000 < sum(len(text.encode()) for text in val) < 2_000_000
    assert max(map(len, set(train) & set(val)), default=0) < 100  # one-line package files
    assert not any("_sysconfigdata" in path or "/test/" in path for path in corpus.stdlib_files())


def test_near_duplicates_of_the_library_are_on_one_side() -> None:
    paths = corpus.stdlib_files()
    sides = dict(zip(paths, corpus.stdlib_splits(paths, 0.035), strict=True))
    root = Path(json.__file__).parent.parent
    tops = {split: set() for split in ("train", "val")}
    for path, split in sides.items():
        tops[split].add(Path(path).relative_to(root).parts[0])
    assert not tops["train"] & tops["val"]  # whole packages
    for siblings in ("wave sunau", "bz2 lzma gzip", "profile cProfile", "ntpath posixpath"):
        known = [sides[str(file)] for n in siblings.split() if (file := root / f"{n}.py").is_file()]
        assert len(set(known)) == 1
    size = sum(Path(path).stat().st_size for path in paths)
    val = {path: Path(path).stat().st_size for path in paths if sides[path] == "val"}
    assert 0.03 < sum(val.values()) / size < 0.045
    assert max(val.values()) < 0.2 * sum(val.values())
    assert len(tops["val"]) >= 10
    assert set(corpus.stdlib_splits(paths, 0.0)) == {"train"}


@pytest.mark.parametrize("vocab_size", [256, 300, 65536])
def test_meta_states_what_the_files_hold(tmp_path: Path, vocab_size: int) -> None:
    texts = texts_of(300, seed=1)
    files = write_parquet(tmp_path / "a.parquet", texts)
    folder = prepare(
        prepare_config(tmp_path, files=files, vocab_size=vocab_size, shard_tokens=1000)
    )
    assert sorted(contents(folder))[0] == "meta.json"
    assert "progress.json" not in contents(folder)
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["format"] == 1
    assert meta["vocab_size"] == vocab_size
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    assert meta["tokenizer_sha256"] == tokenizer.sha256
    hashes = [tokenizer.sha256]
    for split in ("train", "val"):
        counts = meta["splits"][split]
        documents, tokens = read_split(folder, split)
        assert counts["documents"] == len(documents)
        assert counts["tokens"] == len(tokens) == sum(file["tokens"] for file in counts["files"])
        assert counts["bytes"] == sum(len(text.encode()) for text in documents)
        assert counts["bytes"] == tokenizer.token_bytes()[tokens].sum()
        for number, file in enumerate(counts["files"]):
            assert file["name"] == f"{split}_{number:06d}.bin"
            assert file["tokens"] == 1000 or number == len(counts["files"]) - 1
            raw = (folder / file["name"]).read_bytes()
            assert hashlib.sha256(raw).hexdigest() == file["sha256"]
            hashes.append(file["sha256"])
    assert meta["data_sha256"] == hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    train, val = read_split(folder, "train")[0], read_split(folder, "val")[0]
    chosen = set(val)
    assert train == [text for text in texts if text not in chosen]
    assert val == [text for text in texts if text in chosen]


def test_ngrams_come_from_training_documents_only(tmp_path: Path) -> None:
    texts = [*texts_of(60, seed=2), *(f"{'qzx' * 40} {n}" for n in range(40))]
    val = [t for t in texts if documents.split_hash(t.encode()) < 2**63]
    train = [t for t in texts if t not in val and "qzx" not in t]
    mixed = [t for t in val if "qzx" in t] + train
    files = write_parquet(tmp_path / "a.parquet", mixed)
    folder = prepare(prepare_config(tmp_path, files=files, vocab_size=1000, val_fraction=0.5))
    ngrams = json.loads((folder / "tokenizer.json").read_text())["ngrams"]
    assert "qzx" in "".join(read_split(folder, "val")[0])
    assert "al" in ngrams
    assert not any("q" in ngram for ngram in ngrams)


def test_duplicates_never_cross_the_split_and_order_does_not_matter(tmp_path: Path) -> None:
    texts = texts_of(200, seed=3) * 3
    sides = []
    for seed in (0, 1):
        random.Random(seed).shuffle(texts)
        files = write_parquet(tmp_path / f"{seed}.parquet", texts)
        folder = prepare(prepare_config(tmp_path, files=files, dataset=f"d{seed}"))
        sides.append([set(read_split(folder, split)[0]) for split in ("train", "val")])
    assert sides[0] == sides[1]
    assert not sides[0][0] & sides[0][1]
    assert 5 < len(sides[0][1]) < 40  # 20 expected


def test_long_duplicates_are_on_one_side_wherever_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "PART", 50)
    monkeypatch.setattr(documents, "HASHED", 50)
    fillers = iter(texts_of(200, seed=4))
    texts = [f"{n} {'long ' * 60}" for n in range(20)] * 6
    mixed = [text for long in texts for text in (next(fillers)[: len(long) % 7 + 1], long)]
    (tmp_path / "s.txt").write_text("##\n".join(mixed))
    write_json_lines(tmp_path / "s.jsonl", [{"text": text} for text in mixed])
    sides = []
    for name, separator in (("s.txt", "##"), ("s.jsonl", "")):
        made = {"files": f"{tmp_path}/{name}", "separator": separator, "dataset": f"of-{name[2:]}"}
        folder = prepare(prepare_config(tmp_path, val_fraction=0.4, **made))
        sides.append([set(read_split(folder, split)[0]) & {*texts} for split in ("train", "val")])
    assert sides[0] == sides[1]
    assert len(sides[0][0]) + len(sides[0][1]) == 20
    assert all(sides[0])


def test_an_array_may_begin_anywhere(tmp_path: Path) -> None:
    texts = texts_of(30, seed=3)
    rows = json.dumps([{"text": text} for text in texts], indent=1)
    (tmp_path / "a.json").write_text("\n" * 20_000 + rows)
    folder = prepare(prepare_config(tmp_path, files=f"{tmp_path}/a.json", val_fraction=0.0))
    assert read_split(folder, "train")[0] == texts


def test_all_kinds_of_files(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"one\r\ndocument")
    (tmp_path / "c.md").write_text("# two", encoding="utf-8")
    write_json_lines(tmp_path / "a.jsonl", [{"body": "drei"}, {"body": "vier", "id": 1}])
    write_parquet(tmp_path / "d.parquet", ["fünf"], column="body")
    (tmp_path / "e.csv").write_text('id,body\n1,"a;b;c\td"\n')
    (tmp_path / "f.csv").write_text("id;body\n1;six, 7\n")
    (tmp_path / "g.csv").write_text("id\tbody\n1\tsix, 7\n")
    (tmp_path / "h.csv").write_text('"id, old";new, or not;body\n1;2;six, 7\n')
    (tmp_path / "i.csv").write_bytes(b"\xef\xbb\xbfsep=|\r\n\r\nid|body\r\n1|six, 7\r\n")
    files = f"{tmp_path}/*.jsonl,{tmp_path}/*.txt, {tmp_path}/*.md,{tmp_path}/d*,{tmp_path}/*.csv"
    folder = prepare(prepare_config(tmp_path, files=files, text_column="body", val_fraction=0.0))
    texts = ["drei", "vier", "one\r\ndocument", "# two", "fünf", "a;b;c\td", *["six, 7"] * 4]
    assert read_split(folder, "train")[0] == texts
    assert read_split(folder, "val") == ([], [])


def test_long_texts_in_parts_keep_every_character(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "PART", 50)
    parts = [f"é{i} " * (i % 40 + 1) + "\nx" for i in range(200)]
    (tmp_path / "s.txt").write_text("<|endoftext|>\n".join(parts) + "<|endoftext|>\n")
    settings = {"files": str(tmp_path / "s.txt"), "separator": "<|endoftext|>"}
    folder = prepare(prepare_config(tmp_path, **settings))
    found = [read_split(folder, split)[0] for split in ("train", "val")]
    assert sorted(found[0] + found[1]) == sorted(parts)
    whole = "".join(f"línea {n}\n" for n in range(500))
    (tmp_path / "one.TXT.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + whole.encode()))
    folder = prepare(prepare_config(tmp_path, files=f"{tmp_path}/one.TXT.gz", dataset="one"))
    train, val = read_split(folder, "train")[0], read_split(folder, "val")[0]
    assert len(train) == len(val) == 1
    assert train[0] + val[0] == whole
    assert val[0].startswith("línea")
    assert 0.1 <= len(val[0]) / len(whole) < 0.11
    monkeypatch.setattr(readers, "PART", 5000)
    for lines in (1, 2):  # the last one is half of the text, or nearly all
        whole = "A title\n" + ("word " * 200 + "\n") * lines
        (tmp_path / "long.txt").write_text(whole)
        settings = {"files": f"{tmp_path}/long.txt", "dataset": f"long{lines}"}
        val = read_split(prepare(prepare_config(tmp_path, **settings)), "val")[0]
        assert 0.1 <= len(val[0]) / len(whole) < 0.11


def two_folders(tmp_path: Path) -> tuple[list[str], list[str]]:
    """400 and 200 documents, in two files each; a document says which folder it is from."""
    for name, count in (("a", 400), ("b", 200)):
        texts = [f"{name}{n} {text}" for n, text in enumerate(texts_of(count, seed=4))]
        write_parquet(tmp_path / name / "0.parquet", texts[: count // 2])
        write_parquet(tmp_path / name / "1.parquet", texts[count // 2 :])
    return [f"{tmp_path}/a/*", f"{tmp_path}/b/*"], [f"{tmp_path}/a", f"{tmp_path}/b"]


def test_a_mix_keeps_the_proportions_and_hub_folders_are_the_same(tmp_path: Path) -> None:
    globs, folders = two_folders(tmp_path)
    made = {}
    for name, settings in {
        "files": {"files": ",".join(globs)},
        "hub": {"source": "hub", "hub": ",".join(folders)},
        "seed": {"files": ",".join(globs), "seed": 1},
    }.items():
        made[name] = prepare(
            prepare_config(
                tmp_path, dataset=name, probabilities="0.8,0.2", val_fraction=0.0, **settings
            )
        )
    documents = read_split(made["files"], "train")[0]
    share = sum(text.startswith("a") for text in documents) / len(documents)
    assert 0.74 < share < 0.86  # 500 draws: three standard deviations are 0.054
    for name, total in (("a", 400), ("b", 200)):  # each folder in its own order, none twice
        numbers = [int(text.split()[0][1:]) for text in documents if text.startswith(name)]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) <= total
    assert contents(made["hub"])["train_000000.bin"] == contents(made["files"])["train_000000.bin"]
    assert contents(made["seed"])["train_000000.bin"] != contents(made["files"])["train_000000.bin"]


def test_workers_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "CHUNK_CHARACTERS", 4000)
    globs, _ = two_folders(tmp_path)
    made = [
        contents(
            prepare(
                prepare_config(
                    tmp_path, files=",".join(globs), probabilities="0.5,0.5", workers=number,
                    dataset=f"w{number}", vocab_size=400, shard_tokens=3000,
                )
            )
        )
        for number in (1, 2)
    ]  # fmt: skip
    assert made[0] == made[1]


def test_few_chunks_are_in_memory_and_results_keep_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = 0

    def chunks() -> Iterator[documents.Chunk]:
        nonlocal taken
        for taken in range(1, 41):
            yield documents.Chunk(["x"] * taken, taken, {})

    results = workers.map_chunks(len, chunks(), workers=2)
    for number, (chunk, length) in enumerate(results, start=1):
        assert length == chunk.size == number
        assert taken <= number + 4


def test_a_limit_that_leaves_no_validation_is_named(tmp_path: Path) -> None:
    files = write_parquet(tmp_path / "a.parquet", texts_of(300, seed=5))
    with pytest.raises(UserError, match=r"no validation document .* raise --max_tokens=1, or"):
        prepare(prepare_config(tmp_path, files=files, max_tokens=1))
    (tmp_path / "a.txt").write_text("a few words")
    with pytest.raises(UserError, match=r"no training document .*: lower --val_fraction=0\.999$"):
        prepare(prepare_config(tmp_path, files=str(tmp_path / "a.txt"), val_fraction=0.999))


def test_max_tokens_ends_after_a_whole_document(tmp_path: Path) -> None:
    texts = texts_of(300, seed=5)
    files = write_parquet(tmp_path / "a.parquet", texts)
    every, _ = read_split(prepare(prepare_config(tmp_path, files=files, dataset="all")), "train")
    for limit in (1, 5000):
        folder = prepare(
            prepare_config(
                tmp_path, files=files, dataset=f"m{limit}", max_tokens=limit, val_fraction=0.0
            )
        )
        documents, tokens = read_split(folder, "train")
        assert documents == texts[: len(documents)]
        assert len(tokens) >= limit > len(tokens) - len(documents[-1].encode()) - 1
    assert len(documents) < len(every)


class Interrupted(Exception):
    """Stands for a process that dies."""


def dies(*_: Any) -> None:
    raise Interrupted


@pytest.mark.parametrize("kind", ["parquet", "mixed", "hub", "jsonl"])
def test_going_on_after_interruptions_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The writer dies within every chunk; the same call ends with the same bytes."""
    globs, folders = two_folders(tmp_path)
    rows = [{"text": text} for text in texts_of(300, seed=6)]
    write_json_lines(tmp_path / "a.jsonl", rows[:200])
    write_json_lines(tmp_path / "b.jsonl", rows[200:])
    settings: dict[str, Any] = {
        "parquet": {"files": ",".join(globs)},
        "mixed": {"files": ",".join(globs), "probabilities": "0.7,0.3"},
        "hub": {"source": "hub", "hub": ",".join(folders), "probabilities": "0.7,0.3"},
        "jsonl": {"files": f"{tmp_path}/*.jsonl"},
    }[kind]
    settings |= {"vocab_size": 280, "shard_tokens": 1500, "save_every_s": 0.0}
    monkeypatch.setattr(documents, "CHUNK_CHARACTERS", 9000)
    expected = contents(prepare(prepare_config(tmp_path, dataset="whole", **settings)))
    write = ShardWriter.write
    left = 0

    def dying_write(*arguments: Any) -> None:
        nonlocal left
        if left == 0:
            raise Interrupted
        left -= 1
        write(*arguments)

    monkeypatch.setattr(ShardWriter, "write", dying_write)
    wanted = prepare_config(tmp_path, dataset="cut", **settings)
    deaths, ended = 0, False
    while not ended:
        left = 1  # every life records one chunk and dies at the next
        try:
            prepare(wanted)
            ended = True
        except Interrupted:
            deaths += 1
    assert deaths > 5
    assert contents(tmp_path / "data" / "cut") == expected


@pytest.mark.parametrize("probabilities", [(), (0.5, 0.5)])
def test_a_stream_of_the_hub_goes_on_from_its_state(
    monkeypatch: pytest.MonkeyPatch, probabilities: tuple[float, ...]
) -> None:
    """Seven documents a life, of data sets that are nowhere on this machine."""
    datasets = pytest.importorskip("datasets")

    def load(path: str, *_: Any, **__: Any) -> Any:
        rows = {"id": list(range(50)), "text": [f"{path} {number}" for number in range(50)]}
        return datasets.Dataset.from_dict(rows).to_iterable_dataset(num_shards=3)

    monkeypatch.setattr(datasets, "load_dataset", load)
    entries = [corpus.Entry("a/b"), corpus.Entry("c/d")]
    read = corpus.Corpus(entries, "text", "", 0.1, probabilities)
    whole = [item.value for item in corpus.Stream(read)]
    assert len(whole) > 50
    parts, state = [], None
    while not parts or len(parts[-1]) == 7:
        stream = corpus.Stream(read, state)
        parts.append([item.value for item in itertools.islice(stream, 7)])
        state = json.loads(json.dumps(stream.state()))
    assert [text for part in parts for text in part] == whole


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """The real program on the standard library, with SIGKILL."""
    settings = {"data_dir": str(tmp_path), "vocab_size": 300, "workers": 1}
    words = [f"--{name}={value}" for name, value in settings.items()]
    words += ["--save_every_s=0", "--count_characters=2000000", "--shard_tokens=1000000"]
    started = time.monotonic()
    expected = contents(prepare(configure(PrepareConfig, [*words, "--dataset=whole"])))
    duration = time.monotonic() - started
    command = [sys.executable, "prepare_data.py", *words, "--dataset=cut"]
    progress = tmp_path / "cut" / ".new" / "progress.json"
    print("seed", seed := random.randrange(2**32))
    draw, killed = random.Random(seed), 0
    while killed < 3:
        process = subprocess.Popen(command, cwd=ROOT)
        while process.poll() is None and not progress.is_file():
            time.sleep(0.01)
        try:
            assert process.wait(timeout=draw.uniform(0.1, 0.9) * duration) == 0
            duration /= 2  # it had ended: kill the next one sooner
            shutil.rmtree(tmp_path / "cut")
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
    subprocess.run(command, cwd=ROOT, check=True)
    assert contents(tmp_path / "cut") == expected


def test_an_unfinished_or_finished_set_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(documents, "CHUNK_CHARACTERS", 9000)
    files = write_parquet(tmp_path / "a.parquet", texts_of(300, seed=7))
    wanted = prepare_config(tmp_path, files=files, save_every_s=0.0)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "finish", dies)
        for overwrite in (True, False):
            with pytest.raises(Interrupted):
                prepare(dataclasses.replace(wanted, overwrite=overwrite))
    other = prepare_config(tmp_path, files=files, val_fraction=0.2)
    with pytest.raises(UserError, match=r"unfinished data set.*val_fraction 0.1 there, 0.2 now"):
        prepare(other)
    folder = prepare(wanted)
    before = contents(folder)
    with pytest.raises(UserError, match=r"a finished data set.*val_fraction 0.1 there, 0.2 now"):
        prepare(other)
    main([f"--files={files}", "--source=files", "--dataset=set", f"--data_dir={folder.parent}",
          "--val_fraction=0.1"])  # fmt: skip
    assert "complete already" in capsys.readouterr().out
    for again in (other, wanted):  # which only the second command needs no more
        with monkeypatch.context() as patch:
            patch.setattr(ShardWriter, "finish", dies)
            with pytest.raises(Interrupted):
                prepare(dataclasses.replace(again, overwrite=True))
        assert prepare(wanted) == folder
        assert (folder / ".new").exists() == (again is other)
    write_parquet(tmp_path / "a.parquet", texts_of(299, seed=7))
    with pytest.raises(UserError, match="input files have changed"):
        prepare(wanted)
    assert contents(folder) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "names",
    [
        ["train_000000.bin"],
        ["dump.partial", "input.txt"],
        ["meta.json", "train_1.bin"],
        ["meta.json", "new/meta.json", "new/notes.txt"],
    ],
)
def test_a_folder_that_is_no_data_set_is_left_as_it_is(
    tmp_path: Path, names: list[str], overwrite: bool
) -> None:
    files = write_parquet(tmp_path / "a.parquet", texts_of(9, seed=7))
    mine = tmp_path / "data" / "mine"
    for name in names:
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).write_text("{}")
    with pytest.raises(UserError):
        prepare(prepare_config(tmp_path, files=files, dataset="mine", overwrite=overwrite))
    left = [str(path.relative_to(mine)) for path in mine.rglob("*") if path.is_file()]
    assert sorted(left) == names


def test_a_damaged_unfinished_set_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "CHUNK_CHARACTERS", 9000)
    files = write_parquet(tmp_path / "a.parquet", texts_of(300, seed=8))
    wanted = prepare_config(tmp_path, files=files, save_every_s=0.0, vocab_size=300)
    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "finish", dies)
        with pytest.raises(Interrupted):
            prepare(wanted)
    folder = tmp_path / "data" / "set" / ".new"
    shard, tokenizer, progress = (
        folder / name for name in ("train_000000.bin", "tokenizer.json", "progress.json")
    )
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100])
    with pytest.raises(UserError, match="shorter than"):
        prepare(wanted)
    shard.write_bytes(whole[:99] + bytes([whole[99] ^ 1]) + whole[100:])
    with pytest.raises(UserError, match=r"train_000000\.bin was altered \(wrong SHA-256\): start"):
        prepare(wanted)
    shard.write_bytes(whole)
    kept = tokenizer.read_bytes()
    Tokenizer(300).save(tokenizer)
    with pytest.raises(UserError, match=r"tokenizer\.json has changed"):
        prepare(wanted)
    tokenizer.write_bytes(kept)
    record = json.loads(progress.read_text())
    for damaged in ("{", "[]", json.dumps(record | {"splits": {}}), json.dumps(record | {"b": 1})):
        progress.write_text(damaged)
        with pytest.raises(UserError, match=r"progress\.json is damaged"):
            prepare(wanted)


@pytest.mark.parametrize("place", [8, 10])  # the flags, the method of compression
def test_damaged_counts_are_none(tmp_path: Path, place: int) -> None:
    writer = ShardWriter(tmp_path, 1000, {})
    writer.save_counts(merge_counts([]), 7, {})
    raw = bytearray((tmp_path / "counts.npz").read_bytes())
    raw[raw.index(b"PK\1\2") + place] ^= 1
    (tmp_path / "counts.npz").write_bytes(raw)
    assert writer.load_counts()[1:] == (0, None)


def test_overwrite_removes_nothing_before_the_new_set_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong settings, bad rows wherever they are, and deaths at any time."""

    def whole(folder: Path) -> dict[str, bytes]:
        return {name: raw for name, raw in contents(folder).items() if name != shards.NEW}

    monkeypatch.setattr(documents, "CHUNK_CHARACTERS", 9000)
    files = write_parquet(tmp_path / "a.parquet", texts_of(300, seed=8))
    folder = prepare(prepare_config(tmp_path, files=files, shard_tokens=2000))
    before = contents(folder)
    rows = [json.dumps({"text": text}) for text in texts_of(300, seed=9)]
    late = tmp_path / "late.jsonl"
    late.write_text("\n".join([*rows, "{"]))
    (tmp_path / "empty.txt").write_text("")
    for wrong in (
        {"files": files, "text_column": "body"},
        {"files": files, "tokenizer": "none.json"},
        {"files": str(tmp_path / "empty.txt")},
        {"files": str(late), "save_every_s": 0.0},
    ):
        with pytest.raises(UserError):
            prepare(prepare_config(tmp_path, overwrite=True, **wrong))
        assert whole(folder) == before
    late.write_text("\n".join(rows))
    settings = {"files": str(late), "vocab_size": 280, "save_every_s": 0.0, "shard_tokens": 1500}
    expected = contents(prepare(prepare_config(tmp_path, dataset="other", **settings)))
    write, written = ShardWriter.write, 0

    def dying_write(*arguments: Any) -> None:
        nonlocal written
        written += 1
        if written % 2 == 0:  # every life records one chunk and dies at the next
            raise Interrupted
        write(*arguments)

    monkeypatch.setattr(ShardWriter, "write", dying_write)
    wanted = prepare_config(tmp_path, overwrite=True, **settings)
    deaths = 0
    while True:
        try:
            prepare(wanted)
            break
        except Interrupted:
            deaths += 1
            assert whole(folder) == before
    assert deaths > 5
    assert contents(folder) == expected


def test_a_process_that_dies_while_a_new_set_takes_over_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever file it was at, the next command ends with the new set."""
    files = write_parquet(tmp_path / "a.parquet", texts_of(20, seed=8))
    settings = {"files": files, "shard_tokens": 3000, "val_fraction": 0.2}
    expected = contents(prepare(prepare_config(tmp_path, dataset="other", **settings)))
    steps = {name: getattr(os, name) for name in ("replace", "unlink")}
    take_over, left = shards.take_over, 0

    def die(name: str, *arguments: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise Interrupted
        return steps[name](*arguments, **named)

    def dying_take_over(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for name in steps:
                patch.setattr(os, name, functools.partial(die, name))
            take_over(folder)

    for last in range(100):
        prepare(prepare_config(tmp_path, files=files, shard_tokens=1000, overwrite=True))
        left = last
        with monkeypatch.context() as patch:
            patch.setattr(shards, "take_over", dying_take_over)
            try:
                folder = prepare(prepare_config(tmp_path, overwrite=True, **settings))
                break
            except Interrupted:
                folder = tmp_path / "data" / "set"
        if (folder / ".new" / "meta.json").is_file():
            with pytest.raises(UserError, match="set is unfinished: repeat the command"):
                DataSet(prepare_missing(str(folder.parent), "set"))
        folder = prepare(prepare_config(tmp_path, **settings))
        assert contents(folder) == expected
    assert last > len(expected)


def test_documents_that_are_not_text_are_counted(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for name, raw in {
        "empty": b"", "blank": b" \n\t", "binary": b"\x7fELF\0\0\xff", "nul": b"a\0b",
        "latin": b"caf\xe9", "utf16": "hi".encode("utf-16"), "half": "é".encode()[:1],
        "good": b"yes", "cesu": b"\xed\xa0\x80", "bom": b"\xef\xbb\xbfbom",
    }.items():  # fmt: skip
        (texts / f"{name}.txt").write_bytes(raw)
    lines = tmp_path / "lines.jsonl"
    rows = ["\ud800 alone", None, 5, "\0", ["a"], "😀 pair"]
    lines.write_text("\n\n".join(json.dumps({"text": row}) for row in rows))
    table = write_parquet(tmp_path / "t.parquet", ["", None, "row"])
    folder = prepare(prepare_config(tmp_path, files=f"{texts}/*,{lines},{table}", val_fraction=0.0))
    assert read_split(folder, "train")[0] == ["bom", "yes", "😀 pair", "row"]
    skipped = json.loads((folder / "meta.json").read_text())["skipped"]
    assert {reason: number for reason, number in skipped.items() if number} == {
        "empty": 5, "binary": 3, "not_utf8": 4, "surrogate": 1, "not_text": 2,
    }  # fmt: skip


def test_parquet_with_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    column = pa.array([b"fine", b"\xff\xfe"], type=pa.binary())
    for kind in (pa.binary(), pa.string()):
        typed = pa.Array.from_buffers(kind, 2, column.buffers())
        pq.write_table(pa.table({"text": typed}), tmp_path / "a.parquet")
        wanted = prepare_config(
            tmp_path, files=f"{tmp_path}/a.parquet", dataset=f"{kind}", val_fraction=0.0
        )
        if kind == pa.binary():
            assert read_split(prepare(wanted), "train")[0] == ["fine"]
        else:
            with pytest.raises(UserError, match=r"cannot read .*a\.parquet"):
                prepare(wanted)


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"text": "\xff"}\n', r"a\.jsonl, line 1: not JSON in UTF-8"),
        ("a.jsonl", b'{"body": "x"}\n', r"a\.jsonl, line 1: no column 'text'; there are body"),
        ("a.jsonl", b"5\n", r"a\.jsonl, line 1: expected an object, found int"),
        ("a.jsonl", b"\n" + b"[" * 10**5 + b"1" + b"]" * 10**5, r"cannot read .*a\.jsonl: Recurs"),
        ("a.jsonl", b"{}\n" + b"[" * 10**5, r"a\.jsonl, line 1: no column 'text'; there are none"),
        ("a.jsonl", b'{"text": "x"}\n' + b"[" * 10**5, r"a\.jsonl, line 2: not JSON in UTF-8"),
        ("a.csv", b"text,text\n1,2\n", r"a\.csv: several columns are called 'text'"),
        ("a.csv", b"text,id\nwell, yes,1\n", r"a\.csv, line 2: more values than columns"),
        ("a.csv", b"text,id\nit ends\nhere,1\n", r"a\.csv, line 2: fewer values than columns"),
        ("a.csv", b"sep=,\n\ntext,id\nit ends\n", r"a\.csv, line 4: fewer values than columns"),
        ("a.csv", b'text\na\n"b\nc\n', r"a\.csv, line 3: not CSV in UTF-8: unexpected end of data"),
        ("a.csv", b"text\ra\rcaf\xe9\r", r"a\.csv, line 3: not CSV in UTF-8: 'utf-8' codec"),
        ("a.csv", b"", r"a\.csv: no column 'text'; there are none"),
        ("a.parquet", b"", r"cannot read .*a\.parquet"),
        ("a.parquet", b"PAR1 not really PAR1", r"cannot read .*a\.parquet"),
        ("a.arrow", b"", r"cannot read .*a\.arrow: ArrowInvalid"),
        ("a.arrow", b"ARROW1 not really", r"cannot read .*a\.arrow: ArrowInvalid"),
        ("a.doc", b"text\nx\n", r"cannot read .*a\.doc: expected one of"),
        ("a.csv", b"body\nx\n", r"a\.csv: no column 'text'; there are body"),
        ("a.json", b'[{"text": "x"}, 5]', r"a\.json, object 2: expected an object, found int"),
        ("a.json", b'{\n"text": "x"}', r"line 1: not JSON in UTF-8, an array or a row per line"),
        ("a.json", b'[{"text"', r"cannot read .*a\.json: JSONDecodeError"),
        ("a.txt.gz", gzip.compress(b"text")[:-6], r"cannot read .*a\.txt\.gz: OSError: Truncated"),
        ("a.jsonl.zst", b"text", r"cannot read .*a\.jsonl\.zst"),
        ("a.txt", b"", r"no training document.*: give more text$"),
        ("a.json", b'{"text": {"0": "x"}}', r"1 not_text\): docs/data.md says what is read$"),
        ("a.txt", b"1", r"no training document"),
        ("a.jsonl", b'{"text": "only one"}', r"no validation document"),
    ],
)
def test_inputs_that_cannot_be_read_are_named(
    tmp_path: Path, name: str, raw: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(UserError, match=message):
        prepare(prepare_config(tmp_path, files=str(tmp_path / name)))
    (tmp_path / name).unlink()
    good = write_parquet(tmp_path / "good.parquet", texts_of(100, seed=9))
    prepare(prepare_config(tmp_path, files=good))  # the failure does not stand in the way


def test_a_broken_parquet_body_is_named(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.parquet"
    write_parquet(path, texts_of(300, seed=10))
    raw = bytearray(path.read_bytes())
    raw[200:4000] = bytes(3800)
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"cannot read .*a\.parquet"):
        prepare(prepare_config(tmp_path, files=str(path)))
    with pytest.raises(UserError, match=r"cannot read .*a\.parquet"):
        prepare(prepare_config(tmp_path, source="hub", hub=str(path.parent)))


def test_a_flipped_bit_of_a_parquet_file_with_checksums_is_named(tmp_path: Path) -> None:
    table, path = pa.table({"text": texts_of(300, seed=10)}), tmp_path / "a.parquet"
    pq.write_table(table, path, compression="none", write_page_checksum=True)
    path.write_bytes(path.read_bytes().replace(b"alpha", b"alpia", 1))
    with pytest.raises(UserError, match=r"cannot read .*a\.parquet: .*checksum"):
        prepare(prepare_config(tmp_path, files=str(path)))


def test_wrong_columns_and_missing_data_sets_are_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "folder" / "a.parquet", texts_of(20, seed=11))
    for settings in ({"files": path}, {"source": "hub", "hub": str(tmp_path / "folder")}):
        with pytest.raises(UserError, match="no column 'body'; there are id, text"):
            prepare(prepare_config(tmp_path, text_column="body", **settings))
    table = pa.table({"text": [1], "none": pa.nulls(1), "body": ["a"], "my view": ["b"]})
    pq.write_table(table, tmp_path / "numbers.parquet")
    with pytest.raises(UserError, match=r"--text_column=body or '--text_column=my view'$"):
        prepare(prepare_config(tmp_path, files=f"{tmp_path}/numbers.parquet"))
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "double.parquet")
    with pytest.raises(UserError, match="several columns are called 'text'"):
        prepare(prepare_config(tmp_path, files=f"{tmp_path}/double.parquet"))
    for twice in ({"files": f"{path},{path}", "probabilities": "0.5,0.5"},
                  {"files": path, "val_source": path}):  # fmt: skip
        with pytest.raises(UserError, match=r"a\.parquet: its files are all named before it"):
            prepare(prepare_config(tmp_path, **twice))
    (tmp_path / "tabs").mkdir()
    (tmp_path / "tabs" / "train.tsv").write_text("id\ttext\n1\ta\n")
    for settings in ({"files": f"{tmp_path}/tabs/*"}, {"source": "hub", "hub": f"{tmp_path}/tabs"}):
        with pytest.raises(UserError, match=r"cannot read .*train\.tsv: expected one of"):
            prepare(prepare_config(tmp_path, **settings))
    with pytest.raises(UserError, match="no file matches '/nowhere/"):
        prepare(prepare_config(tmp_path, files="/nowhere/*.txt"))
    with pytest.raises(UserError, match="cannot open the data set 'no/such-set:part'"):
        prepare(prepare_config(tmp_path, source="hub", hub="no/such-set:part"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--source=web"], "source='web': expected"),
        (["--source=files"], "source='files' needs --files="),
        (["--files=x.txt", "--hub=a"], "hub is given, but source='files': leave out files or hub"),
        (["--files=x.txt", "--source=file"], r"^source='file': expected stdlib, files or hub$"),
        (["--source=stdlib", "--files=x.txt"], "pass --source=files"),
        (["--files=/"], "dataset='': expected the plain name"),
        (["--val_source=x.txt"], "split by family"),
        (["--hub=a", "--val_source=test,train"], "training reads train: name another"),
        (["--files=x", "--chat", "--text_column=turns"], "is for texts: leave out it or chat"),
        (["--probabilities=0.5"], "1 probabilities for 0 entries"),
        (["--source=hub", "--hub=a,b", "--dataset=c", "--probabilities=1,x"], "expected numbers"),
        (["--source=hub", "--hub=a,b", "--dataset=c", "--probabilities=.8,.8"], "sum to 1"),
        (["--source=hub", "--hub=a,b", "--dataset=c", "--probabilities=2,-1"], "positive"),
        (["--source=hub", "--hub=a", "--dataset=c", "--probabilities=nan"], "positive"),
        (["--vocab_size=255"], "expected 256"),
        (["--val_fraction=1"], "val_fraction=1.0"),
        (["--shard_tokens=1"], "shard_tokens=1: expected at least 1,000"),
        (["--max_tokens=-1"], "max_tokens=-1"),
        (["--dataset=../up"], "plain name"),
        (["--datset=x"], "did you mean 'dataset'"),
        (["--show="], "show='': expected a name, or no --show"),
        (["--source=hub", "--hub="], "hub='': expected a name, or no --hub"),
    ],
)
def test_impossible_settings_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(words)


def test_a_tokenizer_can_be_used_again(tmp_path: Path) -> None:
    files = write_parquet(tmp_path / "a.parquet", texts_of(100, seed=12))
    first = prepare(prepare_config(tmp_path, files=files, vocab_size=500, dataset="first"))
    other = write_parquet(tmp_path / "b.parquet", texts_of(100, seed=13))
    copy = shutil.copy(first / "tokenizer.json", tmp_path / "COPY.JSON")
    second = prepare(prepare_config(tmp_path, files=other, tokenizer=str(copy), dataset="second"))
    assert contents(second)["tokenizer.json"] == contents(first)["tokenizer.json"]
    assert json.loads((second / "meta.json").read_text())["vocab_size"] == 500


def test_the_papers_stream_is_configured() -> None:
    made = configure(PrepareConfig, [str(ROOT / "config" / "data_fineweb_cosmopedia.py")])
    assert made.vocab_size == 65536
    assert made.entries[0] == "HuggingFaceFW/fineweb-edu:sample-10BT"
    assert made.chances[0] == 0.8
    assert sum(made.chances[1:]) == pytest.approx(0.2)
    assert made.max_tokens >= 5216 * 16 * 200 * 1025


def test_what_the_user_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    files = write_parquet(Path("a.parquet"), texts_of(300, seed=14))
    main(["--source=files", f"--files={files}", "--dataset=set", "--vocab_size=300"])
    shown = capsys.readouterr()
    assert max(map(len, shown.out.splitlines())) <= 80
    assert max(map(len, re.split(r"[\r\n]", shown.err))) <= 80
    assert "data/set: 300 ids" in shown.out
    assert re.search(r"encoding.*B/s, 300 documents, [\d.]+ M tokens", shown.err)
    print(help_text(PrepareConfig, "usage", {}))
    shown = capsys.readouterr()
    assert all(f"  {field.name} = " in shown.out for field in dataclasses.fields(PrepareConfig))
    monkeypatch.setattr(prepare_data, "prepare", interrupt)
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 130
    assert "continues from here" in capsys.readouterr().err


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_folder_of_save_to_disk_is_its_rows(tmp_path: Path) -> None:
    splits = {"train": texts_of(300, seed=15), "validation": texts_of(20, seed=16)}
    rows = {name: Dataset.from_dict({"text": texts}) for name, texts in splits.items()}
    DatasetDict(rows).save_to_disk(tmp_path / "saved")
    pyarrow.feather.write_feather(rows["train"].data.table, tmp_path / "a.arrow")
    whole = [{"text": text} for texts in splits.values() for text in texts]
    lines = write_json_lines(tmp_path / "a.jsonl", whole)
    made = {
        name: contents(prepare(prepare_config(tmp_path, dataset=name, **settings)))
        for name, settings in {
            "lines": {"files": lines},
            "all": {"files": f"{tmp_path}/saved"},
            "own": {"hub": f"{tmp_path}/saved", "source": "hub", "val_source": "validation"},
            "feather": {"files": f"{tmp_path}/a.arrow", "val_fraction": 0.0},
        }.items()
    }
    assert made["all"]["train_000000.bin"] == made["lines"]["train_000000.bin"]
    assert made["all"]["val_000000.bin"] == made["lines"]["val_000000.bin"]
    assert made["own"]["train_000000.bin"] == made["feather"]["train_000000.bin"]
    assert read_split(tmp_path / "data" / "own", "val")[0] == splits["validation"]
