"""Data preparation in use: two at once, full disks, odd folders, advice that is pasted."""

import ast
import dataclasses
import gzip
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

import prepare_data
from inputcodes import files, shards
from inputcodes.configurator import UserError, configure
from inputcodes.data import DataSet
from inputcodes.documents import split_hash
from inputcodes.readers import matching_files
from prepare_data import PrepareConfig, main, prepare
from tests.helpers import ROOT, documents, prepare_config, write_json_lines, write_parquet


def texts_in(folder: Path, split: str) -> list[str]:
    """The documents of a split, decoded."""
    data = DataSet(folder)
    tokens = np.concatenate([np.empty(0, np.uint16), *getattr(data, split).shards])
    return data.tokenizer.decode(tokens.tolist()).split("<|endoftext|>")[:-1]


def stories(folder: Path, count: int = 60) -> str:
    return write_json_lines(folder / "stories.jsonl", [{"text": t} for t in documents(count)])


@pytest.mark.parametrize("made_meanwhile", [True, False])
def test_a_second_preparation_waits_and_uses_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], made_meanwhile: bool
) -> None:
    config = prepare_config(tmp_path, files=stories(tmp_path))
    folder, elsewhere = tmp_path / "data" / "set", tmp_path / "elsewhere"
    folder.mkdir(parents=True)
    lock = FileLock(folder / "lock")
    lock.acquire()
    thread = threading.Thread(target=prepare, args=(config,))
    thread.start()
    while "waiting for another process" not in capsys.readouterr().err:
        assert thread.is_alive()
        time.sleep(0.01)
    if made_meanwhile:
        made = prepare(dataclasses.replace(config, data_dir=str(elsewhere)))
        for path in made.iterdir():
            if path.name != "lock":
                os.replace(path, folder / path.name)
    lock.release()
    thread.join()
    assert ("is complete already" in capsys.readouterr().out) == made_meanwhile
    assert sorted(texts_in(folder, "train") + texts_in(folder, "val")) == sorted(documents(60))


def test_what_another_process_adds_meanwhile_is_part_of_its_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / shards.NEW).mkdir()
    glob = Path.glob

    def glob_late(folder: Path, pattern: str) -> Iterator[Path]:
        (tmp_path / shards.NEW / "progress.json").touch()
        return glob(folder, pattern)

    monkeypatch.setattr(Path, "glob", glob_late)
    shards.check_folder(tmp_path)


def test_workers_do_not_run_the_script_that_started_them(tmp_path: Path) -> None:
    script = tmp_path / "no_guard.py"
    script.write_text(
        "from inputcodes import documents\n"
        "from prepare_data import PrepareConfig, prepare\n"
        "print('started')\n"
        "documents.CHUNK_CHARACTERS = 5000\n"
        f"prepare(PrepareConfig(files=({stories(tmp_path)!r},), data_dir={str(tmp_path)!r}, "
        "dataset='set', workers=2))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stdout.count("started")) == (0, 1), done.stderr
    assert len(texts_in(tmp_path / "set", "train")) > 30


def test_counting_resumes_where_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inputcodes.documents.CHUNK_CHARACTERS", 1500)
    settings = {"files": stories(tmp_path), "vocab_size": 600, "save_every_s": 0.0}
    count, left, counted = prepare_data.count_chunk, 1000, 0

    def dying(*arguments: Any) -> Any:
        nonlocal left, counted
        if not left:
            raise MemoryError
        left, counted = left - 1, counted + 1
        return count(*arguments)

    monkeypatch.setattr(prepare_data, "count_chunk", dying)
    whole = prepare(prepare_config(tmp_path, dataset="whole", **settings))
    chunks, counted, lives = counted, 0, 0
    cut = tmp_path / "data" / "cut"
    while not (cut / "meta.json").is_file():
        left, lives = 3, lives + 1
        try:
            prepare(prepare_config(tmp_path, dataset="cut", **settings))
        except MemoryError:
            assert (cut / ".new" / "counts.npz").is_file()
    assert lives > 2
    assert counted == chunks  # none twice
    for name in ("tokenizer.json", "train_000000.bin", "val_000000.bin"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()
    assert not (cut / ".new" / "counts.npz").exists()


def test_an_edit_of_the_same_size_is_noticed_before_and_after_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inputcodes.documents.CHUNK_CHARACTERS", 1500)
    path = Path(stories(tmp_path))
    config = prepare_config(tmp_path, files=str(path), save_every_s=0.0)
    with monkeypatch.context() as patch:
        patch.setattr("inputcodes.shards.ShardWriter.finish", None)  # cannot be called
        with pytest.raises(TypeError):
            prepare(config)
    progress = tmp_path / "data" / "set" / ".new" / "progress.json"
    kept, text = progress.read_text(), path.read_text()
    path.write_text(text.replace("the", "eht"))
    os.utime(path, (1, 1))
    with pytest.raises(UserError, match=r"an unfinished data set .*input files have changed"):
        prepare(config)
    record = json.loads(kept)
    record["sources"] = []  # though it is no other input
    progress.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"progress.json is damaged"):
        prepare(config)
    folder = prepare(dataclasses.replace(config, overwrite=True))
    assert not any("the" in text for text in texts_in(folder, "train"))
    path.write_text(text)
    with pytest.raises(UserError, match=r"a finished data set .*input files have changed"):
        prepare(config)


def test_an_input_that_changes_while_it_is_read_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, encode = prepare_config(tmp_path, files=stories(tmp_path)), prepare_data.encode_chunk

    def edit(*arguments: Any) -> Any:
        os.utime(tmp_path / "stories.jsonl", (1, 1))
        return encode(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(prepare_data, "encode_chunk", edit)
        with pytest.raises(UserError, match=r"stories.jsonl: .* changed since they were read: st"):
            prepare(config)
    assert len(texts_in(prepare(config), "train")) > 30


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    config = prepare_config(tmp_path, files=stories(tmp_path, 200))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError) as caught:
            prepare(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    shard = tmp_path / "data" / "set" / ".new" / "train_000000.bin"
    assert str(caught.value) == f"cannot write {shard}: File too large"
    assert not list(shard.parent.glob("*.partial"))
    folder = prepare(config)
    assert len(texts_in(folder, "train") + texts_in(folder, "val")) == 200


def test_an_end_without_its_record_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, value: object) -> None:
        if path.name == "meta.json":
            raise UserError("cannot write meta.json: No space left on device")
        write_json(path, value)

    config = prepare_config(tmp_path, files=stories(tmp_path, 200))
    write_json = files.write_json
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", full)
        with pytest.raises(UserError, match="No space left"):
            prepare(config)
    folder = prepare(config)
    assert len(texts_in(folder, "train") + texts_in(folder, "val")) == 200


def test_a_file_where_a_folder_should_be_is_one_line(tmp_path: Path) -> None:
    files = stories(tmp_path)
    (tmp_path / "link").symlink_to("nothing")
    for settings, message in (
        ({"data_dir": files}, f"cannot write in {files}/set: Not a directory"),
        (
            {"data_dir": str(tmp_path), "dataset": "stories.jsonl"},
            f"cannot write in {files}: {files} is no folder",
        ),
        (
            {"data_dir": str(tmp_path / "link")},
            f"cannot write in {tmp_path}/link/set: {tmp_path}/link is no folder",
        ),
        ({"tokenizer": str(tmp_path / "no.json")}, "cannot load the tokenizer .*No such file"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            prepare(prepare_config(tmp_path, files=files, **settings))
        assert "\n" not in str(caught.value)


def test_show_prints_counts_and_the_first_documents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepare(prepare_config(tmp_path, files=stories(tmp_path), vocab_size=300))
    main([f"--show={folder}"])
    shown = capsys.readouterr().out
    counts = json.loads((folder / "meta.json").read_text())["splits"]
    tokens = np.fromfile(folder / "train_000000.bin", np.uint16).tolist()
    common = Counter(tokens).most_common()
    half = next(n for n in range(len(common)) if 2 * sum(c for _, c in common[:n]) >= len(tokens))
    use = f"{len(common)} of 300 ids are in use, half of the first {len(tokens):,} training tokens"
    assert f"{use} are one of {half}\n" in shown
    for split in ("train", "val"):
        assert re.search(f"{split} +{counts[split]['documents']} documents", shown)
        starts = [ast.literal_eval(line) for line in re.findall(f"{split}: (.*)", shown)]
        texts = texts_in(folder, split)[:3]
        assert len(starts) == 3
        assert all(text.startswith(start) for text, start in zip(texts, starts, strict=True))
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({k: meta[k] for k in meta if k != "skipped"}))
    main([f"--show={folder}"])
    assert "left out: nothing" in capsys.readouterr().out
    marks = write_json_lines(tmp_path / "marks.jsonl", [{"text": "a <|endoftext|> b"}])
    main(
        [f"--show={prepare(prepare_config(tmp_path, files=marks, dataset='m', val_fraction=0.0))}"]
    )
    assert capsys.readouterr().out.endswith("  train: 'a <|endoftext|> b'\n")
    with pytest.raises(UserError, match=r"no data set in .*nothing"):
        main([f"--show={tmp_path}/nothing"])
    with open(folder / "train_000000.bin", "rb+") as file:
        file.write(b"\xff\xff")
    with pytest.raises(UserError, match=r"train_000000\.bin was altered"):
        main([f"--show={folder}"])


def test_overwrite_makes_a_set_anew(tmp_path: Path) -> None:
    files = stories(tmp_path)
    folder = prepare(prepare_config(tmp_path, files=files, shard_tokens=1000))
    DataSet(folder)
    assert (folder / "verified.json").is_file()
    prepare(prepare_config(tmp_path, files=files, overwrite=True, val_fraction=0.3))
    assert not (folder / "verified.json").exists()
    assert not (folder / "train_000001.bin").exists()
    assert len(texts_in(folder, "val")) > 6
    (folder / "train_notes.txt").write_text("precious")
    with pytest.raises(UserError, match=r"holds train_notes\.txt, which is no part"):
        prepare(prepare_config(tmp_path, files=files, overwrite=True))
    assert (folder / "train_notes.txt").read_text() == "precious"


@pytest.mark.parametrize("kind", ["files", "hub"])
def test_the_validation_text_can_be_given(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = documents(30)
    for name, chosen in (("train", texts[:20]), ("validation", texts[20:])):
        (tmp_path / "own").mkdir(exist_ok=True)
        write_json_lines(tmp_path / "own" / f"{name}.jsonl", [{"text": t} for t in chosen])
    folder = str(tmp_path / "own")
    held_out = f"{folder}/validation.jsonl" if kind == "files" else "validation"
    settings = {"source": kind, kind: folder, "val_source": held_out, "seed": 7}
    made = prepare(prepare_config(tmp_path, **settings))
    assert texts_in(made, "train") == texts[:20]
    assert texts_in(made, "val") == texts[20:]
    noted = [line for line in capsys.readouterr().out.splitlines() if "no effect" in line]
    assert noted == ["note: val_fraction=0.1 has no effect beside --val_source",
                     "note: seed=7 has no effect without --probabilities"]  # fmt: skip
    if kind == "hub":  # of several splits
        write_json_lines(tmp_path / "own" / "test.jsonl", [{"text": "a test"}])
        settings |= {"val_source": "test,validation", "dataset": "both"}
        both = prepare(prepare_config(tmp_path, **settings))
        assert texts_in(both, "val") == ["a test", *texts[20:]]


def test_a_validation_text_that_is_none_is_named_with_what_helps(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    settings = {"files": stories(tmp_path), "val_source": f"{tmp_path}/empty.txt"}
    with pytest.raises(UserError, match=r"no validation .* empty\): name other .* --val_source"):
        prepare(prepare_config(tmp_path, **settings))


@pytest.mark.parametrize("side", ["train", "val"])
def test_a_set_whose_hashes_are_on_one_side_is_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], side: str
) -> None:
    texts = [t for t in documents(200) if (split_hash(t.encode()) < 2**63) == (side == "val")][:3]
    files = write_json_lines(tmp_path / "few.jsonl", [{"text": text} for text in texts])
    folder = prepare(prepare_config(tmp_path, files=files, val_fraction=0.5))
    lowest = min(texts, key=lambda text: split_hash(text.encode()))
    assert texts_in(folder, "val") == [lowest]
    assert texts_in(folder, "train") == [text for text in texts if text != lowest]
    empty = {"train": "val", "val": "train"}[side]
    assert f"none for {empty!r} at val_fraction=0.5" in capsys.readouterr().out


def test_a_mixture_says_which_source_ended_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = write_parquet(tmp_path / "long.parquet", [f"long {n}" for n in range(500)])
    short = write_parquet(tmp_path / "short.parquet", [f"short {n}" for n in range(20)])
    folder = prepare(prepare_config(tmp_path, files=f"{long},{short}", probabilities="0.5,0.5"))
    texts = texts_in(folder, "train") + texts_in(folder, "val")
    used = sum(text.startswith("long") for text in texts)
    assert len(texts) == used + 20
    sentence = f"the mixture ends because {short} is used up, after {used} documents of {long}, "
    assert sentence + f"20 documents of {short}" in capsys.readouterr().out
    one = write_parquet(tmp_path / "one.parquet", ["only one"])
    settings = {"probabilities": "0.5,0.5", "dataset": "few", "val_fraction": 0.0}
    prepare(prepare_config(tmp_path, files=f"{long},{one}", **settings))
    assert f" 1 document of {one}" in capsys.readouterr().out


@pytest.mark.parametrize("sep", ["/", "\\"])
@pytest.mark.parametrize("entry", ["", "/**/*.txt", "/**"])
def test_a_file_counts_once_and_loops_of_links_end(
    tmp_path: Path, entry: str, sep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sep", sep)  # Windows takes patterns with slashes, too
    root = tmp_path / "texts"
    (root / "deep" / "er").mkdir(parents=True)
    for name in ("a.txt", "deep/b.txt", "deep/er/c.txt"):
        (root / name).write_text(f"text of {name}\n" * 3)
    for name in ("loop", "deep/loop", "deep/er/up"):
        (root / name).symlink_to(root, target_is_directory=True)
    (root / "again.txt").symlink_to(root / "deep" / "b.txt")
    files = f"{root}{entry},{root}/deep/*.txt"
    folder = prepare(prepare_config(tmp_path, files=files, val_fraction=0.0))
    texts = sorted(text.split("\n")[0] for text in texts_in(folder, "train"))
    assert texts == ["text of a.txt", "text of deep/b.txt", "text of deep/er/c.txt"]
    (root / "itself").symlink_to("itself")
    with pytest.raises(UserError, match=r"cannot read .*itself: Too many levels"):
        main([f"{root}/itself"])


def test_data_sets_within_the_folder_that_is_read_are_no_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stories(tmp_path)
    config = prepare_config(tmp_path, files=str(tmp_path), vocab_size=300)
    with monkeypatch.context() as patch:
        patch.setattr("inputcodes.shards.ShardWriter.finish", None)  # cannot be called
        with pytest.raises(TypeError):
            prepare(config)
    with pytest.raises(UserError, match=r"no text in folder .*, data sets aside"):
        prepare(dataclasses.replace(config, files=(f"{tmp_path}/data/set",)))
    for name in ("set", "set", "other", "set"):
        folder = prepare(dataclasses.replace(config, dataset=name))
        assert sorted(texts_in(folder, "train") + texts_in(folder, "val")) == sorted(documents(60))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are Unicode")
def test_names_that_are_not_utf8_are_read(tmp_path: Path) -> None:
    packed = gzip.compress(b"some line\n" * 300)
    for name, raw in ((b"caf\xe9.txt", b"some line\n" * 300), (b"caf\xe9.txt.gz", packed)):
        path = os.path.join(os.fsencode(tmp_path), name)
        Path(os.fsdecode(path)).write_bytes(raw)
        folder = prepare(prepare_config(tmp_path, files=os.fsdecode(path), overwrite=True))
        assert len(texts_in(folder, "train")) == 1


def test_a_literal_path_wins_over_its_reading_as_a_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~").mkdir()
    for name in ("a[1].txt", "a1.txt", "x,y.txt", "~/b.txt", "~/x,y.txt", " s.txt", "x;y.txt"):
        (tmp_path / name).write_text(name)
    assert matching_files("~/b.txt") == ["~/b.txt"]
    assert prepare_config(tmp_path, files="~/x,y.txt").entries == ["~/x,y.txt"]
    assert matching_files(f"{tmp_path}/a[1].txt") == [f"{tmp_path}/a[1].txt"]
    assert prepare_config(tmp_path, files=f"{tmp_path}/x,y.txt").entries == [f"{tmp_path}/x,y.txt"]
    assert configure(PrepareConfig, ["--files= s.txt; a1.txt"]).entries == [" s.txt", "a1.txt"]
    assert configure(PrepareConfig, ["--files=x;y.txt"]).entries == ["x;y.txt"]
    assert PrepareConfig(files=("a[1].txt",)).name == "a-1"
    assert PrepareConfig(files=("a[1-9].txt",)).name in str(tmp_path)


def test_a_tilde_is_the_home_unless_there_is_such_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    words = ["--data_dir=~/sets", "--tokenizer=~/t.json"]
    for home in (str(tmp_path / "home"), "~"):
        config = configure(PrepareConfig, words)
        assert (config.data_dir, config.tokenizer) == (f"{home}/sets", f"{home}/t.json")
        for name in ("sets", "t.json"):
            (tmp_path / "~" / name).mkdir(parents=True, exist_ok=True)


def test_what_is_no_regular_file_is_said_and_what_a_folder_holds_besides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    os.mkfifo(texts / "pipe")
    with pytest.raises(UserError, match=r"texts/pipe is no regular file"):
        matching_files(f"{texts}/pipe")
    (texts / "README.md").write_text("read me\n" * 300)
    with pytest.raises(UserError, match=r"cannot read .*/README.md/a.txt: Not a directory"):
        matching_files(f"{texts}/README.md/a.txt")
    for name in ("a.tsv", "b.tsv", "c.txt.xz", "LICENSE", ".hidden"):
        (texts / name).touch()
    (texts / "gone.txt").symlink_to("nowhere")
    prepare(prepare_config(tmp_path, files=str(texts)))
    besides = "2 .tsv, 1 .xz, 2 not regular files, 1 without an ending"
    assert f"note: not read in {texts}: {besides}\n" in capsys.readouterr().out
    for name in ("train", "test"):  # of a folder with two formats `datasets` reads one
        write_json_lines(texts / f"{name}.jsonl", [{"text": "a"}])
    (texts / "train.txt").write_text("b")
    hub = {"source": "hub", "hub": str(texts), "dataset": "hub", "val_source": "test"}
    assert texts_in(prepare(prepare_config(tmp_path, **hub)), "train") == ["a"]
    besides = "1 .md, 2 .tsv, 1 .txt, 1 .xz, 2 not regular files, 1 without an ending"
    assert capsys.readouterr().out.count(f"note: not read in {texts}: {besides}\n") == 1


def test_a_folder_that_cannot_be_listed_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts" / "private").mkdir(parents=True)
    (tmp_path / "texts" / "a.txt").write_text("a\n" * 300)
    scan = os.scandir

    def scandir(path: str) -> Any:
        if str(path).endswith("private"):  # root may list everything
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"cannot read .*/texts/private: Permission denied"):
        prepare(prepare_config(tmp_path, files=f"{tmp_path}/texts"))


@pytest.mark.parametrize(
    ("separator", "between"),
    [("\n\n", "\n\n"), (r"\n\n", "\n\n"), (r"\n\n", "\r\n\r\n"), (r"\r\n\r\n", "\r\n\r\n"),
     (r"\t", "\t"), (r"\n#", "\n#\n#")],
)  # fmt: skip
def test_a_separator_may_be_line_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str, between: str
) -> None:
    texts = [text.rstrip("\n") for text in documents(20)]
    (tmp_path / "s.txt").write_text(between.join(texts), newline="")
    settings = {"files": f"{tmp_path}/s.txt", "separator": separator, "val_fraction": 0.0}
    for part in (len(texts[0]) + 1, 1 << 20):  # a block ends between two separators
        monkeypatch.setattr("inputcodes.readers.PART", part)
        assert texts_in(prepare(prepare_config(tmp_path, **settings)), "train") == texts
        settings["overwrite"] = True


def test_a_separator_that_divides_no_file_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.txt").write_text("<|endoftext|>\n".join(documents(20)))
    words = [f"{tmp_path}/s.txt", f"--data_dir={tmp_path}/data", "--val_fraction=0", "--overwrite"]
    for separator, noted in (("<|endoftext|>", False), ("<|endoftxt|>", True)):
        main([*words, f"--separator={separator}", "--text_column=body", "--count_characters=9"])
        note = f"note: --separator={separator!r} divides no file: one document each"
        assert (note in (out := capsys.readouterr().out)) == noted
        assert "note: text_column=body has no effect on text files" in out
        assert "note: count_characters=9 has no effect where no n-grams are counted" in out
    for rows in ([stories(tmp_path)], []):
        with pytest.raises(UserError, match=r"separator='#' divides text files, and none is read"):
            main([*rows, *words[1:], "--separator=#"])


def play(seed: int) -> str:
    """A text of short lines such as nanoGPT's input.txt."""
    return "".join(f"ROMEO:\n{line}\n" for line in documents(200, seed))


@pytest.mark.parametrize("max_tokens", [0, 20_000])
def test_a_single_text_is_cut_at_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_tokens: int
) -> None:
    monkeypatch.setattr("inputcodes.readers.PART", 4000)
    monkeypatch.setattr("inputcodes.documents.CHUNK_CHARACTERS", 10_000)
    text = play(0)
    (tmp_path / "input.txt").write_text(text, encoding="utf-8")
    main([f"{tmp_path}/input.txt", f"--data_dir={tmp_path}", "--val_fraction=0.1",
          f"--max_tokens={max_tokens}"])  # fmt: skip
    (train,), (val,) = (texts_in(tmp_path / "input", split) for split in ("train", "val"))
    assert text.startswith(train)
    assert text.endswith(val)
    assert train.endswith("\n")
    before = text[: -len(val)]
    assert before.endswith("\n")
    assert len(before) <= 0.9 * len(text) < len(before) + 400  # the line that character is in
    if max_tokens:
        assert 20_000 <= len(train.encode()) + 1 < 30_000
    else:
        assert train == before


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("name", ["an old.txt", "an old.csv"])
def test_text_in_another_encoding_is_one_line_whose_command_converts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    rows = "".join(f"café “{n}”\n" for n in range(500))
    Path(name).write_bytes(f"{mark}text\n{rows}".encode(encoding))
    with pytest.raises(UserError) as caught:
        prepare(prepare_config(tmp_path, files=name))
    (line,) = str(caught.value).splitlines()
    if name.endswith("csv") and encoding == "cp1252":  # not known before the byte is read
        assert "an old.csv, line 2: not CSV in UTF-8: 'utf-8' codec" in line
    else:
        known = "" if encoding == "cp1252" else encoding[:6].upper() + ", "
        assert f"{name} is {known}not UTF-8: convert it with `iconv " in line
    assert line.endswith("if it is Windows-1252") == (encoding == "cp1252")
    subprocess.run(line.split("`")[1], shell=True, check=True)
    folder = prepare(prepare_config(tmp_path, files=name.replace(".", "-utf8.")))
    assert "café “" in texts_in(folder, "train")[0]


def test_off_a_terminal_progress_is_plain_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([stories(tmp_path), f"--data_dir={tmp_path}", "--vocab_size=300"])
    shown = capsys.readouterr().err
    assert "\r" not in shown
    assert re.search(r"^counting: .*B/s\]$", shown, re.M)
    assert re.search(r"^encoding: .*60 documents", shown, re.M)


def number_column(folder: Path) -> list[str]:
    pq.write_table(pa.table({"text": [1, 2], "body": ["one", "two"]}), folder / "t.parquet")
    return [str(folder / "t.parquet")]


def other_column(folder: Path) -> list[str]:
    return [write_parquet(folder / "t.parquet", documents(9), column="body")]


def other_settings(folder: Path) -> list[str]:
    main(words := [stories(folder), "--val_fraction=0.1", f"--data_dir={folder}"])
    return [words[0], "--val_fraction=0.5"]


def changed_file(folder: Path) -> list[str]:
    words = other_settings(folder)
    os.utime(words[0], (1, 1))
    (folder / "stories" / ".DS_Store").touch()  # as the Finder does in a folder that it shows
    return [words[0], "--val_fraction=0.1"]


def damaged_record(folder: Path) -> list[str]:
    words = other_settings(folder)
    (folder / "stories" / "meta.json").write_text('{"format": 1}')
    return words


def damaged_json(folder: Path) -> list[str]:
    words = other_settings(folder)
    (folder / "stories" / "meta.json").write_text("{")
    return words


def damaged_name(folder: Path) -> list[str]:
    words, path = [stories(folder), "--val_fraction=0.1"], folder / "stories" / "meta.json"
    main([*words, f"--data_dir={folder}"])
    path.write_text(path.read_text().replace('"train_000000.bin"', "0"))
    return words


def cut_shard(folder: Path) -> list[str]:
    words = other_settings(folder)
    os.truncate(folder / "stories" / "train_000000.bin", 10)
    return [words[0], "--val_fraction=0.1"]


def lost_tokenizer(folder: Path) -> list[str]:
    words = other_settings(folder)
    (folder / "stories" / "tokenizer.json").unlink()
    return [words[0], "--val_fraction=0.1"]


def one_document(folder: Path) -> list[str]:
    return [write_json_lines(folder / "stories.jsonl", [{"text": "only one"}])]


def wrong_source(folder: Path) -> list[str]:
    return [stories(folder), "--source=stdlib"]


def no_name(folder: Path) -> list[str]:
    return [stories(folder), "--dataset=../up"]


@pytest.mark.parametrize(
    ("arrange", "advice"),
    [
        (number_column, "--text_column=body"),
        (other_column, "--text_column=NAME"),
        (other_settings, "--dataset=NAME"),
        (other_settings, "--overwrite"),
        (changed_file, "--overwrite"),
        (damaged_record, "--overwrite"),
        (damaged_json, "--overwrite"),
        (damaged_name, "--overwrite"),
        (cut_shard, "--overwrite"),
        (lost_tokenizer, "--overwrite"),
        (one_document, "--val_fraction=0"),
        (wrong_source, "--source=files"),
        (no_name, "--dataset=NAME"),
    ],
)
def test_the_advice_of_an_error_works_when_pasted(
    tmp_path: Path, arrange: Callable[[Path], list[str]], advice: str
) -> None:
    words = [*arrange(tmp_path), f"--data_dir={tmp_path}"]
    with pytest.raises(UserError) as caught:
        main(words)
    printed = re.findall(r"--\w+(?:=\w+)?", str(caught.value))
    assert advice in printed, caught.value
    column = "body" if "column" in advice else "other"
    pasted = advice.replace("NAME", column)
    main([*words, pasted])
    assert list(tmp_path.glob("*/meta.json"))


def test_a_single_text_named_twice_is_split_as_if_named_once(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("a line of a text\n" * 300)
    folders = [
        prepare(prepare_config(tmp_path, files=files, dataset=name))
        for name, files in (("once", str(text)), ("twice", f"{text},{text}"))
    ]
    hashes = [json.loads((folder / "meta.json").read_text())["data_sha256"] for folder in folders]
    assert hashes[0] == hashes[1]


def test_texts_stored_as_categories_are_read(tmp_path: Path) -> None:
    texts = [f"text number {n}" for n in range(60)]
    pq.write_table(pa.table({"text": pa.array(texts).dictionary_encode()}), tmp_path / "a.parquet")
    folder = prepare(prepare_config(tmp_path, files=str(tmp_path / "a.parquet")))
    assert sorted(texts_in(folder, "train") + texts_in(folder, "val")) == sorted(texts)


def test_a_configuration_of_a_local_folder_is_read_as_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    for name in ("en", "de"):
        write_json_lines(folder / f"{name}.jsonl", [{"text": f"{name} {n}"} for n in range(60)])
    configs = "".join(f"- config_name: {c}\n  data_files: {c}.jsonl\n" for c in ("en", "de"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    settings = {"source": "hub", "val_fraction": 0.0}
    with pytest.raises(UserError, match=r"\['en', 'de'\] \(--hub=PATH:CONFIG\)$"):
        prepare(prepare_config(tmp_path, hub=str(folder), **settings))
    with pytest.raises(UserError, match=r"own is a folder and has no revision: leave out @v1$"):
        prepare(prepare_config(tmp_path, hub=f"{folder}:de@v1", **settings))
    made = prepare_config(tmp_path, hub=f"{folder}:de", **settings)
    assert texts_in(prepare(made), "train") == [f"de {n}" for n in range(60)]
    os.utime(folder / "de.jsonl", (1, 1))
    with pytest.raises(UserError, match="the input files have changed"):
        prepare(made)


def test_a_split_that_a_folder_does_not_have_is_refused_with_those_it_has(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write_json_lines(tmp_path / "set" / "train.jsonl", [{"text": "a"}])
    config = {"source": "hub", "hub": str(tmp_path / "set"), "val_source": "validation"}
    with pytest.raises(UserError, match="no split 'validation'; there are train"):
        prepare(prepare_config(tmp_path, **config))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no /dev/full")
def test_show_fails_where_its_output_is_lost(text_data: Path) -> None:
    command = [sys.executable, "prepare_data.py", f"--show={text_data}/tiny"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "cannot write the output: No space left" in done.stderr
