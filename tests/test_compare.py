"""compare.py from end to end, on runs of a second."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import compare
import train
from inputcodes import runs
from inputcodes.configurator import UserError
from inputcodes.files import locked
from tests.helpers import COSTS, SMALL

ROOT = Path(__file__).parent.parent
SETTINGS = SMALL | {"max_steps": 12, "eval_interval": 4, "warmup_steps": 2}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """For the runs, whose models are tiny, and CI may share its cores."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def recipe(tmp_path: Path, text_data: Path, name: str = "recipe", **changes) -> str:
    """A config file of the small run, with changes."""
    settings = SETTINGS | {"data_dir": str(text_data)} | changes
    file = tmp_path / f"{name}.py"
    file.write_text("".join(f"{key} = {value!r}\n" for key, value in settings.items()))
    return str(file)


def losses(study: Path, variant: str) -> list[float]:
    groups = json.loads((study / "report.json").read_text())["groups"]
    return next(row["losses"] for rows in groups for row in rows if row["variant"] == variant)


def read_run(path: Path) -> runs.Run:
    run = runs.read_run(path, train.TrainConfig)
    assert run is not None
    return run


@pytest.mark.slow
def test_a_study_runs_reports_and_does_not_run_again(text_data, tmp_path, capsys, monkeypatch):
    study = tmp_path / "study"
    words = [recipe(tmp_path, text_data), "--seeds=1,2", f"--study_dir={study}"]
    words += ["--variants=learned; affine code_seed=3"]
    compare.main(words)
    printed, progress = capsys.readouterr()
    assert "0 of 4 runs left, 100% of the tokens\n" in progress  # plain lines, as there is no
    assert "\r" not in progress  # terminal
    assert "| learned " in printed
    assert "affine code_seed=3 - learned" in printed
    assert printed.count("4,096") >= 1  # 256 x 16 trainable input parameters
    for name in ("loss", "differences", "price"):
        assert (study / f"{name}.svg").read_text().startswith("<?xml")
        assert (study / f"{name}.png").read_bytes()[1:4] == b"PNG"
    # The losses are those of train.py, run alone.
    alone = tmp_path / "alone"
    name = "affine-code_seed=3-s2"
    train.main([str(study / name / "config.py"), f"--out_dir={alone}"])
    capsys.readouterr()
    there, here = read_run(alone), read_run(study / name)
    assert there.last["val_loss"] == losses(study, "affine code_seed=3")[1]
    assert [{k: v for k, v in line.items() if k not in COSTS} for line in there.lines] == [
        {k: v for k, v in line.items() if k not in COSTS} for line in here.lines
    ]
    # The same command, and a report alone, run nothing.
    monkeypatch.setattr(subprocess, "Popen", None)
    compare.main(words)
    again = capsys.readouterr().out
    compare.main(["--report", str(study)])
    assert capsys.readouterr().out == again == printed


@pytest.mark.slow
def test_an_interrupted_study_goes_on_where_it_stopped(text_data, tmp_path):
    file = recipe(tmp_path, text_data, max_steps=120, eval_interval=40)
    study = tmp_path / "study"
    words = [file, "--seeds=1", "--variants=learned; fixed", "--jobs=1", f"--study_dir={study}"]
    command = [sys.executable, "compare.py", *words]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    metrics = study / "fixed-s1" / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_text().count("\n") > 10):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, output = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command goes on" in output
    first = (study / "learned-s1" / "run.json").stat().st_mtime_ns
    assert not (study / "report.json").exists()
    compare.main(words)
    assert (study / "learned-s1" / "run.json").stat().st_mtime_ns == first
    assert "resuming at step" in (study / "fixed-s1" / "log.txt").read_text()
    whole = tmp_path / "whole"
    train.main([str(study / "fixed-s1" / "config.py"), f"--out_dir={whole}"])
    assert read_run(whole).last["val_loss"] == losses(study, "fixed")[0]


@pytest.mark.slow
def test_the_runs_of_a_killed_study_save_and_end(text_data, tmp_path):
    file = recipe(tmp_path, text_data, max_steps=100_000, eval_interval=50_000)
    study = tmp_path / "study"
    words = [file, "--seeds=1", "--variants=fixed", f"--study_dir={study}"]
    process = subprocess.Popen([sys.executable, "compare.py", *words], cwd=ROOT)
    run = study / "fixed-s1"
    while not runs.read_metrics(run):
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    with locked(run, wait=True):  # which the run holds until it ends
        stopped = len(runs.read_metrics(run))
        assert (run / "last.pt").is_file()
        assert 0 < stopped < 100_000


def test_a_second_study_in_a_directory_is_refused(text_data, tmp_path):
    words = [recipe(tmp_path, text_data), f"--study_dir={tmp_path / 'study'}"]
    with (
        locked(tmp_path / "study", wait=False),
        pytest.raises(UserError, match=r"another process is writing to .*study"),
    ):
        compare.main(words)


@pytest.mark.slow
def test_configs_as_variants_through_torchrun(text_data, tmp_path):
    files = [
        recipe(tmp_path, text_data, name, input_layer=name, n_embd=32)
        for name in ("learned", "compressed")
    ]
    study = tmp_path / "study"
    compare.main([*files, "--seeds=7", "--nproc=2", f"--study_dir={study}", "--jobs=1"])
    made = json.loads((study / "report.json").read_text())
    (row, other), (gap,) = made["groups"][0], made["gaps"][0]
    assert (row["variant"], other["variant"]) == ("learned", "compressed")
    assert (row["input_parameters"], other["input_parameters"]) == (8192, 1024)
    assert gap["verdict"] == "one seed, no verdict"
    assert "torch.distributed" not in (study / "learned-s7" / "log.txt").read_text()


def test_configs_that_are_not_matched_are_refused_before_anything_runs(text_data, tmp_path):
    files = [
        recipe(tmp_path, text_data, "a", input_layer="learned"),
        recipe(tmp_path, text_data, "b", n_layer=1, learning_rate=2e-3),
    ]
    with pytest.raises(
        UserError, match=r"(?s)n_layer: 2 \(a\), 1 \(b\)\n.*learning_rate: 0.001 \(a\)"
    ):
        compare.main([*files, f"--study_dir={tmp_path / 'study'}"])
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_are_done(text_data, tmp_path, capsys):
    file = recipe(tmp_path, text_data, grad_clip=0.0, max_steps=40, eval_interval=20)
    words = [file, f"--study_dir={tmp_path / 'study'}", "--seeds=1"]
    variants = "learned learning_rate=1e9; learned; fixed"
    said = r"(?s)learned-learning_rate=1e9-s1 failed, says .*log.txt:\nerror: .*stopped"
    with pytest.raises(UserError, match=said):
        compare.main([*words, f"--variants={variants}"])
    printed = capsys.readouterr().out
    assert "fixed - learned" in printed
    assert "Left out, not complete: learned learning_rate=1e9." in printed


def test_another_run_in_the_place_of_one_is_refused(text_data, tmp_path):
    words = ["--seeds=1", f"--study_dir={tmp_path / 'study'}", "--variants=fixed"]
    compare.main([recipe(tmp_path, text_data), *words])
    with pytest.raises(UserError, match=r"holds another run:\nn_embd: 16 \(there\), 32"):
        compare.main([recipe(tmp_path, text_data, n_embd=32), *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds=1,x"], "seeds='1,x': expected whole numbers"),
        (["--seeds=1,1"], "expected each seed once"),
        (["--variants=;"], "expected one or more"),
        (["--seeds=1,²"], "expected whole numbers"),
        (["--seed=2"], "--seed: every run has its own; pass --seeds"),
        (["--margin=0"], "margin=0.0: expected above 0 and below 1"),
        (["--variants=fixed; fixed"], "none of them twice"),
        (["--variants=fixd"], "input_layer='fixd'"),
        (["--variants=affine codeseed=2"], "unknown setting 'codeseed'"),
        (["--report"], "cannot read '--report'"),
        (["--report", "nowhere"], "no study in nowhere"),
        (["--margin=0.02", "--report", "nowhere"], "no study in nowhere"),
        (["--report=nowhere", "--seeds=1"], "takes --margin alone, not seeds"),
    ],
)
def test_bad_input_is_named(words, message):
    with pytest.raises(UserError, match=message):
        compare.main(words)


def test_missing_cores_of_a_platform_do_not_matter(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert runs.jobs_at_once("cpu", 1, 5) == 1


def test_on_a_gpu_runs_go_one_at_a_time(monkeypatch):
    monkeypatch.setattr(runs, "cores", lambda: 4)
    assert runs.jobs_at_once("auto", 1, 9) == 4
    assert runs.jobs_at_once("cpu", 2, 9) == 2
    assert runs.jobs_at_once("mps", 1, 9) == 1
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert runs.jobs_at_once("auto", 1, 9) == 1


def test_a_damaged_study_is_refused_by_its_report_in_one_line(tmp_path):
    whole = {"compare": {"seeds": "1"}, "variants": [{"label": "fixed", "settings": {}}]}
    damages = (
        {"variants": 5},
        {"variants": [{"label": 5, "settings": {}}]},
        {"variants": [{"label": "fixed", "settings": []}]},
        {"compare": {"seeds": "x"}},
        {"compare": {"seeds": 1}},
    )
    for damage in damages:
        (tmp_path / "study.json").write_text(json.dumps(whole | damage))
        with pytest.raises(UserError, match=r"study\.json") as caught:
            compare.main([f"--report={tmp_path}"])
        assert len(str(caught.value).splitlines()) == 1
