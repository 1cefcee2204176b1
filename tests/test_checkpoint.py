"""Files of a run: every bit of a checkpoint counts, and none is lost when something goes wrong."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from inputcodes import checkpoint as checkpoints
from inputcodes import files
from inputcodes.checkpoint import Metrics, load_model, read_checkpoint, write_checkpoint
from inputcodes.configurator import UserError
from inputcodes.files import (
    PARTIAL,
    atomic_write,
    file_sha256,
    locked,
    read_json,
    read_json_lines,
    write_text,
)
from inputcodes.resume import find_start
from model import GPT, GPTConfig
from tests.helpers import WRONG_PARTS, record_of

CONFIG = {"vocab_size": 16, "block_size": 8, "n_layer": 1, "n_head": 1, "n_embd": 8}
CONFIG["input_layer"] = "learned"


@pytest.fixture
def checkpoint(tmp_path):
    """A small checkpoint, last.pt."""
    path = tmp_path / "last.pt"
    write_checkpoint(path, {"model": GPT(GPTConfig(**CONFIG), 1).state_dict()}, record_of(CONFIG))
    return path


def test_what_is_written_is_read(checkpoint):
    tensors, record = read_checkpoint(checkpoint)
    expected = GPT(GPTConfig(**CONFIG), 1).state_dict()
    assert tensors["model"].keys() == expected.keys()
    assert all(torch.equal(tensors["model"][key], expected[key]) for key in expected)
    assert record["config"] == record_of(CONFIG)["config"]
    assert not list(checkpoint.parent.glob(f"*{PARTIAL}"))


def test_what_was_checked_is_what_is_loaded(checkpoint, monkeypatch):
    check, moments = checkpoints.check_bytes, iter([True])

    def check_slowly(path):
        sha256 = check(path)
        if next(moments, False):  # the time for a run to save
            write_checkpoint(path, {"model": {}}, record_of(CONFIG) | {"step": 8})
        return sha256

    monkeypatch.setattr(checkpoints, "check_bytes", check_slowly)
    record = read_checkpoint(checkpoint)[1]
    assert (record["step"], record["checkpoint_sha256"]) == (8, file_sha256(checkpoint))


def test_no_flipped_bit_passes(checkpoint):
    """Bits of everything: tensors, zip directory, record, and the line with the SHA-256."""
    whole = checkpoint.read_bytes()
    seed = random.randrange(2**32)
    print("seed", seed)
    draw = random.Random(seed).randrange
    places = [draw(len(whole)) for _ in range(200)] + [len(whole) - draw(75) - 1 for _ in range(75)]
    places += list(range(whole.index(b"PK\x01\x02"), len(whole) - 74, 7))  # the zip directory
    for place in places:
        raw = bytearray(whole)
        raw[place] ^= 1 << draw(8)
        checkpoint.write_bytes(raw)
        with pytest.raises(UserError, match=r"last\.pt is (damaged|refused)"):
            read_checkpoint(checkpoint)


def test_a_checkpoint_cut_short_is_refused(checkpoint):
    whole = checkpoint.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 74, len(whole) - 1):
        checkpoint.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"last\.pt is damaged"):
            read_checkpoint(checkpoint)


def test_a_checkpoint_that_cannot_be_read_is_not_called_damaged(checkpoint, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("inputcodes.checkpoint.check_bytes", refuse)
    with pytest.raises(UserError, match=r"^cannot read .*last\.pt: Permission denied$"):
        read_checkpoint(checkpoint)


def test_no_pickle_is_run_and_the_refusal_is_one_line(tmp_path):
    class Evil:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    write_checkpoint(tmp_path / "sealed.pt", {"model": Evil()}, {})
    for name, is_zip in (("zip.pt", True), ("old.pt", False)):
        torch.save({"model": Evil()}, tmp_path / name, _use_new_zipfile_serialization=is_zip)
    for path in tmp_path.glob("*.pt"):
        with pytest.raises(UserError, match=r"\.pt is (damaged|refused)") as caught:
            read_checkpoint(path)
        assert len(str(caught.value).splitlines()) == 1
        assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_without_best_the_last_is_loaded_and_said(checkpoint, capsys, monkeypatch):
    load_model(checkpoint.with_name("best.pt"))
    assert f"taking {checkpoint}" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    load_model(checkpoint.with_name("best.pt"))
    assert not capsys.readouterr().err  # one of several processes says it
    with pytest.raises(UserError, match=r"last\.pt is a file: name the folder of a run"):
        load_model(checkpoint / "best.pt")
    checkpoint.rename(checkpoint.with_name("best.pt"))
    with pytest.raises(UserError, match=r"no checkpoint .*last\.pt: .* \(--checkpoint=best\)"):
        load_model(checkpoint)  # to train there again would be refused
    checkpoint.with_name("best.pt").unlink()
    with pytest.raises(UserError, match=r"no checkpoint .*best\.pt: .*python train\.py") as caught:
        load_model(checkpoint.with_name("best.pt"))
    assert len(str(caught.value).splitlines()) == 1


def test_a_full_disk_is_one_line_and_leaves_the_old_checkpoint(checkpoint):
    """A limit on the size of files fails as a full disk does, within torch's writer."""
    before, (soft, hard) = checkpoint.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        write_checkpoint(checkpoint, {"model": {"w": torch.ones(10**6)}}, {})
    except UserError as error:
        message = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert message == f"cannot write {checkpoint}: File too large"
    assert checkpoint.read_bytes() == before
    assert [path.name for path in checkpoint.parent.iterdir()] == ["last.pt"]


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"cannot write .*pipe: not a regular file"):
        write_text(tmp_path / "pipe", "")


def test_what_is_not_text_is_written_as_escapes(tmp_path):
    write_text(tmp_path / "report.md", "é " + os.fsdecode(b"x-\xff"))
    assert (tmp_path / "report.md").read_bytes() == b"\xc3\xa9 x-\\udcff"


def test_two_processes_may_write_a_file_at_once(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    with atomic_write(path) as file:
        file.write(b"whole")
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1)
            write_text(path, "the other's")
        assert path.read_text() == "the other's"
    assert path.read_text() == "whole"


def test_what_a_killed_run_left_half_written_is_removed_at_the_next_start(tmp_path):
    (tmp_path / f"last.pt{PARTIAL}").write_bytes(b"half")
    with locked(tmp_path, wait=False):
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_metrics_keep_every_line_but_those_to_be_repeated(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path, 0, lambda line: None)
    for step in range(1, 6):
        metrics.write({"step": step})
    lines = path.read_text().splitlines()
    lines[1] = '{"step": '
    path.write_text("\n".join(lines) + '\n{"step": 6')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 is damaged"):
        read_json_lines(path)
    metrics = Metrics(path, 4, lambda line: None)
    assert f"warning: {path}, line 2 is damaged" in capsys.readouterr().err
    assert path.read_text() == '{"step": 1}\n{"step": 3}\n{"step": 4}\n'
    metrics.write({"step": 4, "val_loss": 2.0})  # the evaluation that the line lacked
    metrics.write({"step": 5})
    assert [line.get("val_loss") for line in read_json_lines(path)] == [None, None, 2.0, None]


def test_a_metrics_line_of_other_types_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "val_documents": [[1.0, 2]]}\n{"step": 2, "val_loss": "low"}\n')
    with pytest.raises(UserError, match=r"line 2 is damaged: val_loss='low' is no number: delete"):
        read_json_lines(path)
    for documents in ("5", "[[1.0, 2], 3]", '[["a", 2]]', "[[1.0]]"):
        path.write_text(f'{{"step": 1, "val_documents": {documents}}}\n')
        with pytest.raises(UserError, match=r"line 1 is damaged: val_documents has .*: delete"):
            read_json_lines(path)


def test_a_record_that_lacks_a_part_is_one_line(checkpoint):
    """Whatever program sealed it: resuming, sampling and evaluating were tracebacks."""
    tensors, record = {"model": {}}, record_of(CONFIG)
    for name, damage in WRONG_PARTS:
        write_checkpoint(checkpoint, tensors, record | {name: damage})
        with pytest.raises(UserError, match=rf"last\.pt is damaged \(it lacks {name}\); there is"):
            read_checkpoint(checkpoint)


def test_a_checkpoint_without_a_seal_is_refused(tmp_path):
    """nanoGPT's, and those of this program before it sealed them."""
    file = tmp_path / "best.pt"
    record = json.dumps(record_of(CONFIG))
    for unsealed in ({"model": {}, "iter_num": 3}, {"model": {}, "record": record}, torch.zeros(2)):
        torch.save(unsealed, file)
        with pytest.raises(UserError, match=r"damaged \(no SHA-256 at its end.*another program\)"):
            read_checkpoint(file)


def test_weights_that_do_not_fit_their_record_are_refused(tmp_path):
    file, record = tmp_path / "best.pt", record_of({**CONFIG, "n_embd": 16})
    write_checkpoint(file, {"model": GPT(GPTConfig(**CONFIG), 1).state_dict()}, record)
    with pytest.raises(UserError, match=r"best\.pt is damaged: weights and settings differ"):
        load_model(file)


def test_a_checkpoint_without_the_optimizer_is_not_resumed(checkpoint):
    with pytest.raises(UserError, match=r"last\.pt lacks the state of the optimizer; there is no"):
        find_start("resume", checkpoint.parent)


def test_json_is_read_from_regular_files_alone():
    """/dev/full has no end: `bench.py --out=/dev/full` filled the memory."""
    with pytest.raises(UserError, match="cannot read /dev/null: not a regular file"):
        read_json(Path("/dev/null"))


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_the_commit_is_recorded_though_a_tag_names_it(tmp_path, monkeypatch):
    identity = ["-c", "user.name=me", "-c", "user.email=me@here"]
    for words in (["init"], ["commit", "--allow-empty", "-m", "x"], ["tag", "-a", "é1", "-m", "x"]):
        git = ["git", "-C", tmp_path, *identity, *words]
        subprocess.run(git, check=True, capture_output=True)
    monkeypatch.setattr(files, "ROOT", tmp_path)
    assert re.fullmatch("[0-9a-f]{40}", files.git_commit())
