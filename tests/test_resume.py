"""Going on from a checkpoint: the same run, a changed one, or another one that starts there."""

import json
import random
import signal
import time

import numpy as np
import pytest
import torch

import compare
import train
from inputcodes.checkpoint import read_checkpoint, write_checkpoint
from inputcodes.configurator import UserError
from inputcodes.data import DataSet, TrainingData
from inputcodes.distributed import Processes
from inputcodes.files import file_sha256
from inputcodes.runs import Variant
from inputcodes.tokenizer import Tokenizer
from tests.helpers import (
    Program,
    assert_same_run,
    metrics_of,
    weights_of,
    write_data_set,
    write_run,
)

FIVE = {"max_steps": 5, "warmup_steps": 1, "min_lr": 1e-3}  # a constant rate, whatever max_steps


@pytest.mark.slow
def test_killed_at_random_and_resumed_is_the_uninterrupted_run(words, tmp_path):
    """One command in a restart loop, killed without notice until it gets through."""
    changes = {"max_steps": 200, "eval_interval": 20}
    train.main(words("whole", **changes))
    print("seed", seed := random.randrange(2**32))
    rng, kills = random.Random(seed), 0
    while True:
        process = Program(tmp_path / "log", words("killed", init_from="resume", **changes))
        metrics = tmp_path / "killed" / "metrics.jsonl"
        target = rng.randint(kills * 60, kills * 60 + 50)
        while kills < 2 and process.running:
            if metrics.is_file() and metrics.read_text().count("\n") > target:
                time.sleep(rng.random() * 0.05)
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
        (code,), output = process.finish()
        if code == 0:
            break
        assert code == -signal.SIGKILL, output
        kills += 1
    assert kills == 2
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_an_existing_run_is_not_written_over(words, tmp_path):
    train.main(words(max_steps=5))
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(UserError, match=r"--init_from=resume.*--out_dir=.*delete"):
        train.main(words(max_steps=5))
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize(
    ("init_from", "steps_before"), [("scratch", 0), ("resume", 0), ("resume", 3)]
)
def test_nor_is_one_that_came_meanwhile(words, tmp_path, monkeypatch, init_from, steps_before):
    def prepare_slowly(*_):
        monkeypatch.undo()
        train.main(words(**FIVE, init_from="resume"))  # as another process would

    if steps_before:
        train.main(words(**FIVE | {"max_steps": steps_before}))
    monkeypatch.setattr(train, "prepare_missing", prepare_slowly)
    with pytest.raises(UserError, match=r"written to .*run meanwhile: run the command again"):
        train.main(words(**FIVE | {"max_steps": 6}, init_from=init_from))
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [1, 2, 3, 4, 5]


def test_a_directory_without_a_checkpoint_is_free(words, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{")
    train.main(words(**FIVE))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["max_steps"] == 5


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_a_folder_in_the_place_of_a_checkpoint_is_found_before_the_first_step(
    words, tmp_path, name
):
    (tmp_path / "run" / name).mkdir(parents=True)
    for init_from in ("scratch", "resume"):
        with pytest.raises(UserError, match=rf"{name} is no file"):
            train.main(words(**FIVE, init_from=init_from))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]


def test_what_was_decided_before_the_first_step_cannot_change(words, tmp_path):
    train.main(words(**FIVE))
    before = (tmp_path / "run" / "last.pt").read_bytes()
    with pytest.raises(UserError) as caught:
        train.main(words(**FIVE, init_from="resume", seed=2, n_layer=3))
    path = tmp_path / "run" / "last.pt"
    assert str(caught.value).splitlines() == [
        f"n_layer=3, but {path} has 2: resuming cannot change it",
        f"seed=2, but {path} has 1: resuming cannot change it",
    ]
    with pytest.raises(UserError, match=r"their product must stay 8, as in"):
        train.main(words(**FIVE, init_from="resume", batch_size=8))
    with pytest.raises(UserError, match=r"max_steps=4: .* is at step 5 already"):
        train.main(words(**FIVE | {"max_steps": 4}, init_from="resume"))
    assert path.read_bytes() == before


def test_only_resuming_may_write_where_a_run_is(words, tmp_path):
    train.main(words("base"))
    train.main(words(init_from=tmp_path / "base"))
    for init_from in (tmp_path / "base", "scratch"):
        with pytest.raises(UserError, match="holds a run already"):
            train.main(words(init_from=init_from))


def test_a_base_is_found_whatever_its_name(words, tmp_path, monkeypatch, capsys):
    """A sweep's folders have commas in their names, and one may begin with the word resume."""
    monkeypatch.chdir(tmp_path)
    train.main(words("resumed,lr=0.1", **FIVE))
    base = "resumed,lr=0.1"
    train.main(words(**FIVE, init_from=base))
    train.main(words(**FIVE | {"max_steps": 6}, init_from=f"resume,{base}"))
    record = read_checkpoint(tmp_path / "run" / "last.pt")[1]
    assert (record["step"], record["base"]["out_dir"]) == (6, base)
    assert compare.base_of(Variant("", {"init_from": base})) == base

    def stop(trainer, batches):
        raise train.Stopped

    monkeypatch.setattr(train.Trainer, "train_step", stop)
    train.main(words("stopped", **FIVE, init_from=base))
    assert "--init_from=resume\n" in capsys.readouterr().out


def test_a_run_that_was_never_evaluated_can_be_fine_tuned(words, tmp_path, capsys):
    train.main(words("base", **FIVE))
    base = tmp_path / "base"
    (base / "best.pt").unlink()
    train.main(words(**FIVE, init_from=base))
    assert f"note: there is no {base}/best.pt: taking {base}/last.pt" in capsys.readouterr().err
    base_of_run = read_checkpoint(tmp_path / "run" / "last.pt")[1]["base"]
    assert base_of_run["sha256"] == file_sha256(base / "last.pt")


def test_another_data_set_of_the_name_is_refused(words, tmp_path):
    train.main(words(**FIVE))
    tokens = np.arange(2000) % 256
    write_data_set(tmp_path / "data" / "tiny", [tokens], [tokens])
    advice = f"is another data set than it had; .* \\(--init_from={tmp_path / 'run'} --out_dir"
    with pytest.raises(UserError, match=advice):
        train.main(words(**FIVE, init_from="resume", data_dir=tmp_path / "data"))
    train.main(words("new", **FIVE, init_from=tmp_path / "run", data_dir=tmp_path / "data"))


def test_a_run_goes_on_longer_as_if_it_had_been_longer(words, tmp_path, capsys):
    """With a constant rate the first steps do not know how many follow: all weights are equal."""
    train.main(words("whole", **FIVE | {"max_steps": 10}))
    train.main(words("more", **FIVE))
    tensors, record = read_checkpoint(tmp_path / "more" / "last.pt")
    write_checkpoint(tmp_path / "more" / "last.pt", tensors, record | {"elapsed_s": 1000.0})
    out_dir = f"--out_dir={tmp_path / 'more'}"
    train.main([out_dir, "--init_from=resume", "--max_steps=10"])  # all else is the checkpoint's
    shown = capsys.readouterr().out
    assert "change: max_steps 5 up to step 5, 10 from there on" in shown
    assert_same_run(tmp_path / "more", tmp_path / "whole")
    record = read_checkpoint(tmp_path / "more" / "last.pt")[1]
    assert record["elapsed_s"] > 1000  # the time before counts
    change = {"step": 5, "name": "max_steps", "from": 5, "to": 10}
    assert record["changes"] == [change]
    assert json.loads((tmp_path / "more" / "run.json").read_text())["changes"] == [change]
    train.main([out_dir, "--init_from=resume", "--max_steps=12", "--learning_rate=2e-3"])
    assert metrics_of(tmp_path / "more")[-1]["lr"] == pytest.approx(1.1e-3, rel=0.1)
    names = [c["name"] for c in read_checkpoint(tmp_path / "more" / "last.pt")[1]["changes"]]
    assert names == ["max_steps", "learning_rate", "max_steps"]


@pytest.mark.parametrize("logged", [1, 50])
def test_a_run_can_end_where_it_was_stopped(words, tmp_path, monkeypatch, logged):
    step, settings = train.Trainer.train_step, FIVE | {"max_steps": 10, "log_interval": logged}

    def stop(trainer, batches):
        if trainer.step == 4:
            raise train.Stopped
        return step(trainer, batches)

    monkeypatch.setattr(train.Trainer, "train_step", stop)
    train.main(words(**settings))
    assert not (tmp_path / "run" / "best.pt").exists()
    train.main(words(**settings | {"max_steps": 4}, init_from="resume"))
    lines, record = metrics_of(tmp_path / "run"), read_checkpoint(tmp_path / "run" / "best.pt")[1]
    assert [line["step"] for line in lines] == ([1, 2, 3, 4] if logged == 1 else [4])
    assert lines[-1]["val_loss"] == record["best_val_loss"]
    assert ("train_loss" in lines[-1]) == (logged == 1)
    made_by = json.loads((tmp_path / "run" / "run.json").read_text())
    assert made_by["config"]["max_steps"] == record["config"]["max_steps"] == 4


def test_a_config_file_alone_changes_nothing(words, tmp_path):
    train.main(words(**FIVE))
    file = tmp_path / "longer.py"
    file.write_text("max_steps = 9\nweight_decay = 0.2\n")
    out_dir = f"--out_dir={tmp_path / 'run'}"
    with pytest.raises(UserError) as caught:
        train.main([str(file), out_dir, "--init_from=resume", "--weight_decay=0.2"])
    (line,) = str(caught.value).splitlines()
    assert "add --max_steps=5 to keep that, or --max_steps=9 to change it from step 5 on" in line
    train.main([str(file), out_dir, "--init_from=resume", "--weight_decay=0.2", "--max_steps=9"])
    tensors, record = read_checkpoint(tmp_path / "run" / "last.pt")
    assert record["step"] == 9
    assert tensors["optimizer"]["param_groups"][0]["weight_decay"] == 0.2


def test_a_directory_may_be_called_like_a_config_file(words, tmp_path):
    out_dir = ["--out_dir", str(tmp_path / "run.py")]
    train.main([*words(**FIVE), *out_dir])
    train.main([*out_dir, "--init_from=resume", "--max_steps=6"])
    assert read_checkpoint(tmp_path / "run.py" / "last.pt")[1]["step"] == 6


def test_a_batch_may_be_split_in_another_way(words, text_data, tmp_path):
    """The sequences of a step are the same, and so are the losses up to rounding."""
    rows = DataSet(text_data / "tiny").rows("train", 16)
    alone = Processes(torch.device("cpu"))
    coarse = TrainingData(rows, 8, seed=1).batches(5, alone)  # of step 5
    fine = TrainingData(rows, 2, seed=1).batches(5 * 4, alone)
    for _ in range(3):
        parts = [next(fine) for _ in range(4)]
        batch = next(coarse)
        assert torch.equal(torch.cat([part.x for part in parts]), batch.x)
        assert torch.equal(torch.cat([part.y for part in parts]), batch.y)
    train.main(words("whole", **FIVE | {"max_steps": 10}))
    train.main(words("split", **FIVE))
    more = ["--init_from=resume", "--max_steps=10", "--batch_size=2"]
    more += ["--gradient_accumulation_steps=4", f"--out_dir={tmp_path / 'split'}"]
    train.main(more)
    whole, split = metrics_of(tmp_path / "whole"), metrics_of(tmp_path / "split")
    for a, b in zip(whole, split, strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-5)
        assert b["tokens"] == a["tokens"]
    assert split[-1]["val_bigram"] == whole[-1]["val_bigram"]  # counts of the same tokens


def test_best_is_measured_again_on_other_validation_tokens(words, tmp_path):
    """The best weights are, here those of a longer run, and not the ones that go on."""
    train.main(words("longer", **FIVE | {"max_steps": 10}, eval_tokens=512))
    train.main(words(**FIVE, eval_tokens=64))
    best = tmp_path / "run" / "best.pt"
    record = read_checkpoint(best)[1]
    write_checkpoint(best, {"model": weights_of(tmp_path / "longer")}, record)
    more = ["--init_from=resume", "--max_steps=6", "--eval_tokens=512", "--learning_rate=0"]
    train.main([*more, "--min_lr=0", f"--out_dir={tmp_path / 'run'}"])
    last = read_checkpoint(tmp_path / "run" / "last.pt")[1]
    assert last["best_val_loss"] == metrics_of(tmp_path / "longer")[-1]["val_loss"]
    assert last["best_val_loss"] < metrics_of(tmp_path / "run")[-1]["val_loss"]


def test_a_run_without_its_last_checkpoint_is_not_begun_again(words, tmp_path):
    train.main(words(**FIVE))
    best = (tmp_path / "run" / "best.pt").read_bytes()
    (tmp_path / "run" / "last.pt").unlink()
    with pytest.raises(UserError, match=r"no .*last\.pt to resume; start another run") as caught:
        train.main(words(**FIVE, init_from="resume"))
    advice = str(caught.value).split("`")[1].split()
    assert advice[:2] == ["python", "train.py"]
    train.main(advice[2:])  # takes the configuration of the checkpoint
    assert (tmp_path / "run" / "best.pt").read_bytes() == best
    record = read_checkpoint(tmp_path / "run-again" / "last.pt")[1]
    assert (record["step"], record["config"]["dataset"]) == (5, "tiny")
    assert record["base"]["out_dir"] == str(tmp_path / "run")


def test_a_damaged_line_of_metrics_is_warned_of_once(words, tmp_path, capsys):
    train.main(words(**FIVE))
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"step": 2,', '"step" 2,'))
    train.main(["--init_from=resume", "--max_steps=6", f"--out_dir={tmp_path / 'run'}"])
    assert capsys.readouterr().err.count("line 2 is damaged") == 1
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [1, 3, 4, 5, 6]


@pytest.mark.parametrize("damage", ["damaged", "of a later step"])
def test_a_damaged_best_checkpoint_is_made_again(words, tmp_path, damage):
    train.main(words(**FIVE | {"max_steps": 4}))
    best = tmp_path / "run" / "best.pt"
    if damage == "damaged":
        best.write_bytes(best.read_bytes()[:-1])
    else:  # a killed run wrote it, or an earlier last.pt was put back
        tensors, record = read_checkpoint(best)
        write_checkpoint(best, tensors, record | {"step": 10})
    worse = ["--init_from=resume", "--max_steps=5", "--learning_rate=9"]
    train.main([*worse, f"--out_dir={tmp_path / 'run'}"])
    losses = [line["val_loss"] for line in metrics_of(tmp_path / "run") if "val_loss" in line]
    assert read_checkpoint(best)[1]["best_val_loss"] == losses[-1] > losses[0]


def test_a_run_killed_while_its_first_evaluation_is_saved_keeps_its_best(
    words, tmp_path, monkeypatch
):
    write, written = train.write_checkpoint, list[str]()

    def write_or_end(path, *content):
        written.append(path.name)
        assert len(written) != 3, "killed"
        write(path, *content)

    monkeypatch.setattr(train, "write_checkpoint", write_or_end)
    with pytest.raises(AssertionError, match="killed"):
        train.main(words(**FIVE))
    assert written == ["last.pt", "best.pt", "last.pt"]
    worse = ["--init_from=resume", "--max_steps=6", "--learning_rate=9"]
    train.main([*worse, f"--out_dir={tmp_path / 'run'}"])
    assert read_checkpoint(tmp_path / "run" / "best.pt")[1]["step"] == 5


def test_a_finished_run_makes_a_damaged_best_checkpoint_again_as_advised(words, tmp_path):
    train.main(words(**FIVE))
    lines, best = metrics_of(tmp_path / "run"), tmp_path / "run" / "best.pt"
    best.write_bytes(best.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"best\.pt is damaged .* go on training") as caught:
        read_checkpoint(best)
    train.main(str(caught.value).split("`")[1].split()[2:])
    assert metrics_of(tmp_path / "run") == lines
    assert read_checkpoint(best)[1]["best_val_loss"] == lines[-1]["val_loss"]


def test_weights_that_do_not_fit_their_settings_are_one_line(words, tmp_path):
    write_run(tmp_path / "wide", Tokenizer(256))
    tensors, record = read_checkpoint(tmp_path / "wide" / "best.pt")
    record["config"]["n_embd"] = 32
    write_checkpoint(tmp_path / "wide" / "best.pt", tensors, record)
    argv = [w for w in words(init_from=tmp_path / "wide") if not w.startswith(("--n_", "--block"))]
    with pytest.raises(UserError, match=r"best\.pt is damaged: weights and settings differ"):
        train.main(argv)


@pytest.mark.parametrize("name", ["n_embd", "learning_rate", "log_to", "compile", "vocab_size"])
def test_recorded_settings_of_other_types_are_one_line(words, tmp_path, name):
    write_run(tmp_path / "wide", Tokenizer(256))
    tensors, record = read_checkpoint(tmp_path / "wide" / "best.pt")
    record["config"][name] = [1.5]
    write_checkpoint(tmp_path / "wide" / "best.pt", tensors, record)
    with pytest.raises(UserError, match=rf"^{name}=\[1.5\] in .*best\.pt: expected "):
        train.main([f"--init_from={tmp_path / 'wide'}", f"--out_dir={tmp_path / 'tuned'}"])


def test_a_checkpoint_of_before_a_setting_existed_resumes(words, tmp_path):
    train.main(words(**FIVE))
    last = tmp_path / "run" / "last.pt"
    tensors, record = read_checkpoint(last)
    for name in ("table_std", "grad_clip"):
        del record["config"][name]
    del record["changes"]
    write_checkpoint(last, tensors, record)
    train.main(words(**FIVE | {"max_steps": 6}, init_from="resume"))
    assert read_checkpoint(last)[1]["config"]["grad_clip"] == 1.0


def test_resume_without_a_checkpoint_starts_from_scratch_and_says_so(words, capsys):
    train.main(words(**FIVE, init_from="resume"))
    assert "no checkpoint to resume yet: starting from scratch" in capsys.readouterr().out


def test_a_base_without_a_name_is_none(words):
    with pytest.raises(UserError, match="init_from='': expected scratch, resume or the directory"):
        train.main(words(**FIVE, init_from=""))  # of a variable of the shell that is not set


def test_a_run_that_was_stopped_in_its_first_step_is_resumed(words, tmp_path, monkeypatch, capsys):
    def stop(trainer, batches):
        raise train.Stopped

    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "train_step", stop)
        train.main(words(**FIVE))
    assert "config: the defaults\n" in capsys.readouterr().out
    train.main([f"--out_dir={tmp_path / 'run'}", "--init_from=resume", "--grad_clip=0.5"])
    shown = capsys.readouterr().out
    assert "config: the checkpoint's\n" in shown
    assert f"from there on\nresuming at step 0 in {tmp_path / 'run'}\n" in shown


def test_resuming_a_finished_run_leaves_it_alone(words, tmp_path, capsys):
    train.main(words(**FIVE))
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    train.main(words(**FIVE, init_from="resume"))
    train.main(words(**FIVE, init_from="resume", eval_tokens=64))
    shown = capsys.readouterr().out
    assert "holds this run already, up to step 5\n" in shown
    assert "holds this run already, up to step 5; eval_tokens=64 comes too late\n" in shown
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    (tmp_path / "run" / "run.json").write_text("{")
    train.main(words(**FIVE, init_from="resume"))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["started_at_step"] == 5
    assert weights_of(tmp_path / "run").keys()
