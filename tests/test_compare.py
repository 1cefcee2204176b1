"""compare.py from end to end, on runs of a second."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

import compare
import export
import prepare_data
import train
from inputcodes import runs
from inputcodes.checkpoint import read_checkpoint, write_checkpoint
from inputcodes.configurator import UserError
from inputcodes.files import locked, read_json_lines
from inputcodes.tokenizer import Tokenizer
from tests.helpers import SMALL, Program, metrics_of, write_run

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


def signalled(metrics: Path, lines: int) -> threading.Thread:
    """Sends this process SIGTERM once there are so many lines of metrics."""

    def wait() -> None:
        while not (metrics.is_file() and metrics.read_text().count("\n") > lines):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_study_is_interrupted_goes_on_reports_and_does_not_run_again(
    text_data, tmp_path, capsys, monkeypatch
):
    file = recipe(tmp_path, text_data, max_steps=120, eval_interval=40)
    study = tmp_path / "study"
    words = [file, "--seeds=1,2", "--variants=learned; affine code_seed=3"]
    words.append(f"--study_dir={study}")
    name = "affine-code_seed=3-s"
    killer = signalled(study / f"{name}1" / "metrics.jsonl", 10)
    with pytest.raises(SystemExit) as stopped:
        compare.main([*words, "--jobs=1"])
    killer.join()
    assert stopped.value.code == 128 + signal.SIGTERM
    assert "the same command goes on" in capsys.readouterr().err
    first = (study / "learned-s1" / "run.json").stat().st_mtime_ns
    assert not (study / "report.json").exists()
    train.main([file, "--input_layer=learned", "--seed=2", f"--out_dir={study / 'learned-s2'}"])
    capsys.readouterr()
    compare.main(words)
    printed, progress = capsys.readouterr()
    assert (study / "learned-s1" / "run.json").stat().st_mtime_ns == first
    assert "resuming at step" in (study / f"{name}1" / "log.txt").read_text()
    assert "0 of 2 runs left: 100%" in progress  # plain lines, as there is no
    assert "\r" not in progress  # terminal
    assert "| learned " in printed
    assert "| affine code_seed=3 " in printed
    assert " 4,096 |" in (study / "report.md").read_text()  # 256 x 16 trained at the input
    for figure in ("loss", "differences", "price"):
        assert (study / f"{figure}.svg").read_text().startswith("<?xml")
        assert (study / f"{figure}.png").read_bytes()[1:4] == b"PNG"
    # The losses are those of train.py run alone, with an interruption and without.
    for seed in (1, 2):
        alone = tmp_path / f"alone-{seed}"
        train.main([str(study / f"{name}{seed}" / "config.py"), f"--out_dir={alone}"])
        loss = metrics_of(alone)[-1]["val_loss"]
        assert loss == losses(study, "affine code_seed=3")[seed - 1]
        assert metrics_of(study / f"{name}{seed}") == metrics_of(alone)
    capsys.readouterr()
    # The same command, and a report alone, run nothing.
    monkeypatch.setattr(subprocess, "Popen", None)
    compare.main(words)
    again = capsys.readouterr().out
    compare.main(["--report", str(study)])
    assert capsys.readouterr().out == again == printed
    # Other runs of these names are not this study's.
    other = recipe(tmp_path, text_data, max_steps=120, eval_interval=40, n_embd=32)
    with pytest.raises(UserError, match=r"holds another run:\nn_embd: 16 \(there\), 32"):
        compare.main([other, *words[1:]])


@pytest.mark.slow
def test_the_runs_of_a_killed_study_save_and_end(text_data, tmp_path):
    file = recipe(tmp_path, text_data, max_steps=100_000, eval_interval=50_000)
    study = tmp_path / "study"
    words = [file, "--seeds=1", "--variants=fixed", f"--study_dir={study}"]
    process = Program(tmp_path / "log", words, "compare.py")
    run = study / "fixed-s1"
    while not read_json_lines(run / "metrics.jsonl"):
        assert process.running, process.finish()
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.finish()
    with locked(run, wait=True):  # which the run holds until it ends
        stopped = len(read_json_lines(run / "metrics.jsonl"))
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
    train.main([files[1], "--seed=7", f"--out_dir={study / 'compressed-s7'}"])  # there already
    compare.main([*files, "--seeds=7", "--nproc=2", f"--study_dir={study}", "--jobs=1"])
    made = json.loads((study / "report.json").read_text())
    (row, other), (gap,) = made["groups"][0], made["gaps"][0]
    assert (row["variant"], other["variant"]) == ("learned", "compressed")
    assert (row["input_parameters"], other["input_parameters"]) == (8192, 1024)
    assert gap["verdict"] == "one seed, no verdict"
    assert "torch.distributed" not in (study / "learned-s7" / "log.txt").read_text()
    assert not (study / "compressed-s7" / "log.txt").exists()


@pytest.mark.slow
def test_one_directory_by_two_names_and_a_run_that_is_deleted(text_data, tmp_path, monkeypatch):
    file = recipe(tmp_path, text_data, max_steps=300, eval_interval=300)
    (tmp_path / "link").symlink_to("study")
    metrics = tmp_path / "study" / "learned-s1" / "metrics.jsonl"

    def delete() -> None:
        while not (metrics.is_file() and metrics.read_text()):
            time.sleep(0.02)
        shutil.rmtree(metrics.parent, ignore_errors=True)

    threading.Thread(target=delete, daemon=True).start()
    words = [file, "--seeds=1", "--variants=fixed; learned", f"--study_dir={tmp_path / 'study'}"]
    words.append(f"--runs_dir={tmp_path / 'link'}")
    with pytest.raises(UserError, match=r"learned-s1 has been deleted while it ran"):
        compare.main([*words, "--jobs=2"])
    assert len(losses(tmp_path / "study", "fixed")) == 1
    assert not (tmp_path / "study" / "runs").exists()


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


def test_what_files_of_one_study_do_not_share_is_named(text_data, tmp_path):
    first, named = (recipe(tmp_path, text_data, name, seeds="1,2") for name in ("a", "named"))
    (tmp_path / "named.py").write_text((tmp_path / "a.py").read_text() + "variants = ['fixed']\n")
    with pytest.raises(UserError, match=r"^variants: one config file has them"):
        compare.configure_study([first, named])
    with pytest.raises(UserError, match=r"^seeds: set alike in all files, or on the command line$"):
        compare.configure_study([first, recipe(tmp_path, text_data, "b")])


@pytest.mark.slow
def test_variants_may_differ_in_what_across_names(text_data, tmp_path):
    file = recipe(tmp_path, text_data, max_steps=4, variants=["learned", "fixed n_layer=3"])
    runs_dir, found = f"--runs_dir={tmp_path / 'runs'}", {}
    for across in ("", "n_layer"):
        study = tmp_path / f"study{across}"
        words = [file, "--seeds=1", f"--across={across}", f"--study_dir={study}", runs_dir]
        compare.main(words)
        compare.main([f"--report={study}"])
        found[across] = json.loads((study / "report.json").read_text())
    assert [len(group) for group in found[""]["groups"]] == [1, 1]  # nothing is compared
    (learned, fixed), (gap,) = found["n_layer"]["groups"][0], found["n_layer"]["gaps"][0]
    assert gap["variant"] == fixed["variant"] == "fixed n_layer=3"
    assert gap["nats"] == pytest.approx(fixed["losses"][0] - learned["losses"][0])
    with pytest.raises(
        UserError, match=r"across='n_layr': expected settings of train\.py, not n_layr"
    ):
        compare.main([file, "--across=n_layr"])


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_are_done(text_data, tmp_path, capsys):
    file = recipe(tmp_path, text_data, grad_clip=0.0, max_steps=40, eval_interval=20)
    study = tmp_path / "study"
    train.main([file, "--input_layer=learned", f"--out_dir={study / 'learned-s1'}"])
    variants = "learned learning_rate=1e9; learned; fixed"
    said = r"(?s)learned-learning_rate=1e9-s1 failed, says .*log.txt:\nstep .*stopped"
    with pytest.raises(UserError, match=said):
        compare.main([file, f"--study_dir={study}", "--seeds=1", f"--variants={variants}"])
    printed = capsys.readouterr().out
    assert "| fixed " in printed
    assert "Left out, not complete: learned learning_rate=1e9." in printed


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
        (["--variants=learned fixed"], "'learned fixed' names a setting twice: .* by semicolons"),
        (["--variants=fixd"], "input_layer='fixd'"),
        (["--variants=affine codeseed=2"], "unknown setting 'codeseed'"),
        (["--variants=fixed; fixed seed=2"], "every run has its own seed"),
        (
            ["--variants=fixed; fixed code_length=60"],
            "'fixed code_length=60': fixed input has no code_length; leave it out",
        ),
        (["--across=max_steps"], "compared runs must have the same max_steps"),
        (["tests"], "--report=FOLDER reports a study .* by python evaluate.py --out_dir=tests"),
        (["--report"], "cannot read '--report'"),
        (["--report", "nowhere"], "no study in nowhere"),
        (["--margin=0.02", "--report", "nowhere"], "no study in nowhere"),
        (["--report=nowhere", "--seeds=1"], "takes --margin alone, not seeds"),
    ],
)
def test_bad_input_is_named(words, message):
    with pytest.raises(UserError, match=message):
        compare.main(words)


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        (["fixed", ""], "variants: '' changes nothing: name an input layer"),
        ([], r"variants \(\): expected one or more"),
    ],
)
def test_variants_that_name_nothing_are_refused(text_data, tmp_path, variants, message):
    with pytest.raises(UserError, match=message):
        compare.configure_study([recipe(tmp_path, text_data, variants=variants)])


def test_variants_that_agree_are_compared_whichever_says_so():
    said = {}
    for words in ("learned; fixed n_layer=4", "learned; fixed n_layer=2; spelling n_layer=4"):
        study = compare.configure_study(["config/default.py", f"--variants={words}"])
        said[words] = [variant.group for variant in study.variants]
    assert list(said.values()) == [["n_layer=4"] * 2, ["n_layer=4", "n_layer=2", "n_layer=4"]]


@pytest.mark.slow
def test_runs_of_another_base_or_of_data_made_again_are_not_reported(text_data, tmp_path):
    data_dir, study = tmp_path / "data", tmp_path / "study"
    shutil.copytree(text_data / "tiny", data_dir / "tiny")
    file = recipe(tmp_path, data_dir, max_steps=2, warmup_steps=0)
    for name in ("base", "base2"):
        train.main([file, f"--out_dir={tmp_path / name}"])
    words = ["--seeds=1", f"--study_dir={study}", f"--runs_dir={tmp_path / 'runs'}"]
    tuned = [file, *words, "--variants=fixed"]
    compare.main([*tuned, f"--init_from={tmp_path / 'base'}"])
    with pytest.raises(UserError, match=r"holds another run:\nfine-tuned from: .*base.* \(there\)"):
        compare.main([*tuned, f"--init_from={tmp_path / 'base2'}"])
    for folder in ("base", "runs"):
        shutil.rmtree(tmp_path / folder)
    # A run that has begun in the place of a complete one takes neither that nor its record.
    kept = study / "runs" / "fixed-s1"
    text, lines = (study / "report.md").read_text(), (kept / "metrics.jsonl").read_text()
    (tmp_path / "runs" / "fixed-s1").mkdir(parents=True)
    shutil.copy(kept / "run.json", tmp_path / "runs" / "fixed-s1")
    compare.main([f"--report={study}"])
    assert (study / "report.md").read_text() == text
    assert (kept / "metrics.jsonl").read_text() == lines
    with pytest.raises(UserError, match="pass another --study_dir"):
        compare.main([*tuned, f"--init_from={tmp_path / 'base2'}"])
    shutil.rmtree(tmp_path / "runs")
    compare.main([file, *words, "--variants=learned"])
    again = [f"--files={__file__}", f"--data_dir={data_dir}", "--dataset=tiny", "--overwrite"]
    prepare_data.main(again)
    with pytest.raises(UserError, match=r"holds another run:\n.*tiny has been made again"):
        compare.main([file, *words, "--variants=learned"])


def test_an_export_is_a_base_like_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_run(tmp_path / "run", Tokenizer(256), n_layer=3)
    export.main([f"--out_dir={tmp_path / 'run'}", f"--to={tmp_path / 'export'}"])
    for base in ("run", "export"):
        words = ["config/sft_default.py", "--variants=fixed", f"--init_from=~/{base}"]
        study = compare.configure_study(words)
        assert compare.base_of(study.variants[0]) == str(tmp_path / base)  # as its record has it
        assert study.run_config(study.variants[0], 1).n_layer == 3
    study = compare.configure_study([*words, "--variants=fixed n_layer=2"])
    with pytest.raises(UserError, match=r"n_layer=2, but .*export has 3: leave it out"):
        study.run_config(study.variants[0], 1)
    with pytest.raises(UserError, match="expected scratch, resume or the directory of a run"):
        compare.main(["--variants=fixed", f"--init_from={tmp_path / 'nowhere'}"])


def test_bases_of_different_steps_are_refused_before_training(text_data, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    files = []
    for step, name in enumerate(("a", "b"), 7):
        base = tmp_path / name / "best.pt"
        write_run(base.parent, Tokenizer(256))
        tensors, record = read_checkpoint(base)
        write_checkpoint(base, tensors, record | {"step": step})
        files.append(tmp_path / f"{name}.py")
        settings = {"dataset": "tiny", "data_dir": str(text_data), "init_from": str(base.parent)}
        files[-1].write_text("".join(f"{k} = {v!r}\n" for k, v in settings.items()))
    with pytest.raises(UserError, match=r"fine-tuned from: \(7, 'd+'\) \(a\), \(8, 'd+'\) \(b\)"):
        compare.main([*map(str, files), "--max_steps=2", f"--study_dir={tmp_path / 'study'}"])


def test_missing_cores_of_a_platform_do_not_matter(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert runs.jobs_at_once("cpu", 1) == 1


def test_on_a_gpu_runs_go_one_at_a_time(monkeypatch):
    monkeypatch.setattr(runs, "cores", lambda: 4)
    assert runs.jobs_at_once("auto", 1) == 4
    assert runs.jobs_at_once("cpu", 2) == 2
    assert runs.jobs_at_once("mps", 1) == 1
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert runs.jobs_at_once("auto", 1) == 1


def test_steps_that_a_resumed_run_repeats_are_not_taken_back(tmp_path):
    (metrics := tmp_path / "run" / "metrics.jsonl").parent.mkdir()
    metrics.write_text('{"tokens": 500}\n')
    runner, shown = runs.Runner({tmp_path / "run": ("", 900)}, 1, 1), []
    runner.waiting, runner.active = [], {tmp_path / "run": (process := Running())}
    for tokens in (300, 400, 700):
        metrics.write_text(f'{{"tokens": {tokens}}}\n')
        runner.look_after()
        shown.append(runner.tokens[tmp_path / "run"])
    assert shown == [500, 500, 700]
    (tmp_path / "run" / "log.txt").write_text("step 7: loss 5.5\n")
    process.returncode = -9
    runner.look_after()
    assert "run was killed (out of memory? try --jobs=1), says" in runner.failed[0]


class Running:
    returncode: int | None = None

    def poll(self) -> int | None:
        return self.returncode


def test_fewer_runs_than_jobs_share_all_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(runs, "cores", lambda: 8)
    plans = {tmp_path / name: ("", 1) for name in "ab"}
    assert runs.Runner(plans, 8, 1).environment["OMP_NUM_THREADS"] == "4"


@pytest.mark.parametrize("error", [UserError("nothing"), ZeroDivisionError("a bug")])
def test_failed_runs_do_not_hide_an_error_of_the_report(tmp_path, monkeypatch, error):
    monkeypatch.setattr(compare, "check_before", lambda study: None)
    monkeypatch.setattr(compare, "run_missing", lambda study: ["a run failed"])
    monkeypatch.setattr(compare.Study, "report", lambda study: throw(error))
    said = "^nothing\na run failed$" if type(error) is UserError else "a bug"
    with pytest.raises(type(error), match=said):
        compare.main([f"--study_dir={tmp_path}"])


def test_torchrun_is_for_runs(monkeypatch):
    """Its second process found the study locked by its first, and the runs had a RANK to join."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"run compare\.py with python .* --nproc=2"):
        compare.main(["--variants=fixd"])


def test_control_c_of_a_report_speaks_of_no_runs(tmp_path, monkeypatch):
    (tmp_path / "study.json").write_text('{"compare": {}, "variants": []}')
    monkeypatch.setattr(compare.Study, "report", lambda study: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        compare.main([f"--report={tmp_path}"])


def throw(error):
    raise error


def test_a_damaged_study_is_refused_by_its_report_in_one_line(tmp_path):
    whole = {"compare": {"seeds": "1"}, "variants": [{"label": "fixed", "settings": {}}]}
    damages = (
        {"variants": 5},
        {"variants": [{"label": 5, "settings": {}}]},
        {"variants": [{"label": "fixed", "settings": []}]},
        {"variants": [{"label": "fixed", "settings": {"n_embd": "16"}}]},
        {"variants": [{"label": "fixed", "settings": {}, "group": []}]},
        {"compare": {"seeds": "x"}},
        {"compare": {"seeds": 1}},
        {"compare": {"runs_dir": "\ud800"}},
        {"variants": [{"label": "fixed", "settings": {"n_embd": 0}}] * 2},
    )
    for damage in damages:
        (tmp_path / "study.json").write_text(json.dumps(whole | damage))
        with pytest.raises(UserError, match=r"study\.json") as caught:
            compare.main([f"--report={tmp_path}"])
        assert len(str(caught.value).splitlines()) == 1
    older = {"label": "fixed", "settings": {"n_layer": 3, "tf32": False}}  # renamed since
    (tmp_path / "study.json").write_text(json.dumps(whole | {"variants": [older]}))
    assert compare.read_study({"report": str(tmp_path)}).variants[0].settings == {"n_layer": 3}
    with pytest.raises(UserError, match=r"^margin=2"):
        compare.main([f"--report={tmp_path}", "--margin=2"])
