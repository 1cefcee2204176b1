"""compare.py from end to end on runs of a second, and report.py on runs written by hand."""

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
from inputcodes import report
from inputcodes.configurator import UserError
from tests.test_train import COSTS, SMALL

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
    rows = json.loads((study / "report.json").read_text())["variants"]
    return next(row["val_loss"] for row in rows if row["variant"] == variant)


def written_run(path: Path, loss: float, config: dict, steps: int = 10, **record) -> None:
    """What a run of `steps` steps would leave, with evaluations that end in `loss`."""
    path.mkdir(parents=True)
    hashes = {name: name for name in ("tokenizer_sha256", "data_sha256", "code_sha256")}
    (path / "run.json").write_text(json.dumps({**hashes, "config": config, **record}))
    lines = [
        {
            "step": step,
            "tokens": 100 * step,
            "elapsed_s": step,
            "tokens_per_s": 1000.0,
            "val_loss": loss + (steps - step) / 10,
            "val_bits_per_byte": 2 * loss,
            "peak_mb": 100.0,
        }
        for step in range(1, steps + 1)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


SHAPE = {"vocab_size": 256, "block_size": 8, "n_layer": 1, "n_head": 1, "n_embd": 16}
OTHERS = {"compression": 8, "code_seed": 1, "code_length": 8, "max_steps": 10, "lr": 0.1}


def by_hand(tmp_path: Path, margin: float = 0.01, unmatched: bool = False, **variants) -> str:
    """A report on variants given as losses by seed, or as (losses, changes of the run)."""
    group = []
    for name, those in variants.items():
        those, changes = those if isinstance(those, tuple) else (those, {})
        config = SHAPE | OTHERS | {"input_layer": name.split("_")[0]} | changes.pop("config", {})
        runs = []
        for seed, loss in enumerate(those, 1):
            path = tmp_path / f"{name}-s{seed}"
            written_run(path, loss, config | {"seed": seed}, **changes)
            runs.append(report.read_run(path))
        settings = {"input_layer": config["input_layer"], "code_seed": config["code_seed"]}
        group.append((report.Variant(name, settings), runs))
    seeds = list(range(1, max(len(runs) for _, runs in group) + 1))
    return report.write_report(tmp_path / "report", [group], seeds, margin, unmatched)


def test_a_study_runs_reports_and_does_not_run_again(text_data, tmp_path, capsys, monkeypatch):
    study = tmp_path / "study"
    words = [recipe(tmp_path, text_data), "--seeds=1,2", f"--study_dir={study}"]
    words += ["--variants=learned; affine code_seed=3"]
    compare.main(words)
    printed = capsys.readouterr().out
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
    there, here = report.read_run(alone), report.read_run(study / name)
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
    _, output = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the same command goes on" in output
    first = (study / "learned-s1" / "run.json").stat().st_mtime_ns
    assert not (study / "report.json").exists()
    compare.main(words)
    assert (study / "learned-s1" / "run.json").stat().st_mtime_ns == first
    assert "going on from step" in (study / "fixed-s1" / "log.txt").read_text()
    whole = tmp_path / "whole"
    train.main([str(study / "fixed-s1" / "config.py"), f"--out_dir={whole}"])
    assert report.read_run(whole).last["val_loss"] == losses(study, "fixed")[0]


def test_configs_as_variants_through_torchrun(text_data, tmp_path):
    files = [
        recipe(tmp_path, text_data, name, input_layer=name, n_embd=32)
        for name in ("learned", "compressed")
    ]
    study = tmp_path / "study"
    compare.main([*files, "--seeds=7", "--nproc=2", f"--study_dir={study}", "--jobs=1"])
    (row, other) = json.loads((study / "report.json").read_text())["variants"]
    assert (row["variant"], other["variant"]) == ("learned", "compressed")
    assert (row["input_parameters"], other["input_parameters"]) == (8192, 1024)
    assert other["against_baseline"]["verdict"] == "one seed, no verdict"
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


def test_a_run_that_fails_is_named_and_the_others_are_done(text_data, tmp_path, capsys):
    file = recipe(tmp_path, text_data, grad_clip=0.0, max_steps=40, eval_interval=20)
    words = [file, f"--study_dir={tmp_path / 'study'}", "--seeds=1"]
    variants = "learned learning_rate=1e9; learned; fixed"
    said = r"(?s)learned-learning_rate=1e9-s1 failed, says .*log.txt:\nerror: .*stopped"
    with pytest.raises(UserError, match=said):
        compare.main([*words, f"--variants={variants}"])
    printed = capsys.readouterr().out
    assert "fixed - learned" in printed
    assert "left out: learned learning_rate=1e9, seed 1: no evaluation yet" in printed


def test_another_run_in_the_place_of_one_is_refused(text_data, tmp_path):
    words = ["--seeds=1", f"--study_dir={tmp_path / 'study'}", "--variants=fixed"]
    compare.main([recipe(tmp_path, text_data), *words])
    with pytest.raises(UserError, match=r"holds another run:\nn_embd: 16 \(there\), 32"):
        compare.main([recipe(tmp_path, text_data, n_embd=32), *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds=1,x"], "seeds='1,x': expected whole numbers"),
        (["--seeds=1,1"], "one is there twice"),
        (["--variants=;"], "expected one or more"),
        (["--seeds=1,²"], "expected whole numbers"),
        (["--seed=2"], "--seed=2: every run has its own here; say --seeds"),
        (["--margin=0"], "margin=0.0: expected a share"),
        (["--variants=fixed; fixed"], "none of them twice"),
        (["--variants=fixd"], "input_layer='fixd'"),
        (["--variants=affine codeseed=2"], "unknown setting 'codeseed'"),
        (["--report"], "expected one directory"),
        (["--report", "nowhere"], "no study in nowhere"),
        (["--margin=0.02", "--report", "nowhere"], "no study in nowhere"),
        (["--report=nowhere", "--seeds=1"], "takes --margin and --unmatched, not seeds"),
    ],
)
def test_bad_input_is_named(words, message):
    with pytest.raises(UserError, match=message):
        compare.main(words)


def test_verdicts(tmp_path):
    learned = [1.00, 1.10, 1.20]
    text = by_hand(
        tmp_path,
        learned=learned,
        fixed=[1.001, 1.1012, 1.2011],
        affine=[1.05, 1.151, 1.249],
        compressed=[0.95, 1.049, 1.151],
        random=[1.0, 1.15, 1.18],
    )
    rows = json.loads((tmp_path / "report" / "report.json").read_text())["variants"]
    found = {row["variant"]: row.get("against_baseline") for row in rows}
    assert found["learned"] is None
    assert found["fixed"]["verdict"] == "equivalent within 1%"
    assert found["affine"]["verdict"] == "worse"
    assert found["compressed"]["verdict"] == "better"
    # differences 0, 0.05, -0.02: mean 0.01, standard deviation 0.036, t(2) = 4.303
    assert found["random"]["difference"] == pytest.approx(0.01)
    assert found["random"]["high"] == pytest.approx(0.01 + 4.303 * 0.0361 / 3**0.5, abs=1e-3)
    assert found["random"]["verdict"].startswith("not resolved with 3 seeds (")
    assert found["random"]["seeds_needed"] > 3
    assert found["random"]["margin"] == pytest.approx(0.011)
    assert "+0.0100 [-0.0796, +0.0996]" in text
    row = rows[0]
    assert row["seed_range"] == pytest.approx(0.2 / 1.1)  # (max - min) / mean, as the paper
    assert row["bits_per_byte"] == pytest.approx(2.2)
    assert row["tokens"] == 1000
    assert row["input_bytes"] == {
        "parameters": 4 * 256 * 16,
        "gradients": 4 * 256 * 16,
        "optimizer": 8 * 256 * 16,
        "fixed": 0,
    }


def test_the_paper_would_not_be_resolved_by_three_seeds(tmp_path):
    """Table 1: means 0.893 and 0.859, ranges 4.8% and 4.6%, which nothing says are paired."""
    by_hand(tmp_path, learned=[0.872, 0.892, 0.915], fixed=[0.8792, 0.858, 0.8397])
    rows = json.loads((tmp_path / "report" / "report.json").read_text())["variants"]
    assert [row["mean_val_loss"] for row in rows] == pytest.approx([0.893, 0.859], abs=5e-4)
    assert [row["seed_range"] for row in rows] == pytest.approx([0.048, 0.046], abs=5e-4)
    assert [row["perplexity"] for row in rows] == pytest.approx([2.44, 2.36], abs=5e-3)
    assert rows[1]["against_baseline"]["verdict"].startswith("not resolved with 3 seeds")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"data_sha256": "other"}, r"data: 'data_sha256' \(learned\), 'other' \(fixed\)"),
        ({"base": {"step": 5, "data_sha256": "x"}}, r"fine-tuned from: \(None, None\) \(learned\)"),
        ({"tokenizer_sha256": "other"}, "tokenizer: "),
        ({"config": {"lr": 0.2}}, r"lr: 0.1 \(learned\), 0.2 \(fixed\)"),
        ({"config": {"n_embd": 32, "lr": 0.2}}, r"(?s)n_embd: 16.*lr: 0.1"),
    ],
)
def test_what_is_not_matched_is_refused_with_all_that_differs(tmp_path, changes, line):
    with pytest.raises(UserError, match=line):
        by_hand(tmp_path, learned=[1.0, 1.1], fixed=([1.0, 1.2], changes))


def test_a_single_seed_that_is_not_matched_is_refused(tmp_path):
    for seed in (1, 2):
        path = tmp_path / f"a-s{seed}"
        config = SHAPE | OTHERS | {"input_layer": "learned", "seed": seed, "lr": 0.1 * seed}
        written_run(path, 1.0, config)
    runs = [report.read_run(tmp_path / f"a-s{seed}") for seed in (1, 2)]
    group = [(report.Variant("a", {"input_layer": "learned"}), runs)]
    with pytest.raises(UserError, match=r"lr: \[0.1, 0.2\] \(a\)"):
        report.write_report(tmp_path / "report", [group], [1, 2], 0.01)


def test_a_sweep_compares_each_at_its_best_and_stands_unfinished_groups(tmp_path):
    losses = {
        ("learned", 0.1): [1.0, 1.1, 1.2],
        ("fixed", 0.1): [1.2, 1.3, 1.4],
        ("learned", 0.2): [1.1, 1.2, 1.3],
        ("fixed", 0.2): [1.05, 1.151, 1.249],
        ("learned", 0.4): [1.1, 1.2],
        ("fixed", 0.4): [1.1],
        ("learned", 0.8): [],
    }
    groups = {}
    for (layer, rate), those in losses.items():
        runs = []
        for seed, loss in enumerate(those, 1):
            path = tmp_path / f"{layer}-{rate}-s{seed}"
            config = SHAPE | OTHERS | {"input_layer": layer, "seed": seed, "learning_rate": rate}
            written_run(path, loss, config)
            runs.append(report.read_run(path))
        runs += [None] * (3 - len(runs))
        settings = {"input_layer": layer, "learning_rate": rate}
        name = f"learning_rate={rate}"
        variant = report.Variant(f"{layer} {name}", settings, name, layer)
        groups.setdefault(rate, []).append((variant, runs))
    text = report.write_report(tmp_path / "report", list(groups.values()), [1, 2, 3], 0.01)
    (best,) = json.loads((tmp_path / "report" / "report.json").read_text())["best"]
    assert best["variant"] == "fixed learning_rate=0.2"
    assert best["against"] == "learned learning_rate=0.1"
    assert best["difference"] == pytest.approx(0.05)
    assert best["verdict"] == "worse"
    assert "left out: fixed learning_rate=0.4, seed 2" in text
    assert "sweep.png" in text


def test_a_run_stopped_early_is_left_out_or_reported_without_a_verdict(tmp_path):
    early = {"learned": [1.0, 1.1], "affine": ([1.0, 1.2], {"steps": 9})}
    with pytest.raises(UserError, match="affine, seed 1: at step 9 of 10"):
        by_hand(tmp_path / "a", **early)
    text = by_hand(tmp_path / "b", unmatched=True, **early)
    assert "NOT MATCHED, tokens: 1000 (learned), 900 (affine)" in text
    assert "| not matched |" in text.replace("  ", "")


def test_the_tokens_from_which_on_all_is_equivalent():
    verdicts = ["equivalent within 1%", "worse", "equivalent within 1%", "equivalent within 1%"]
    points = [{"tokens": 10 * i, "verdict": verdict} for i, verdict in enumerate(verdicts, 1)]
    assert report.entered(points) == 30
    assert report.entered(points[:2]) is None


def test_recodings_that_differ_by_more_than_seeds_explain(tmp_path):
    text = by_hand(
        tmp_path,
        fixed=[1.0, 1.1, 1.2],
        affine=([1.10, 1.20, 1.30], {"config": {"code_seed": 1}}),
        affine_2=([1.12, 1.21, 1.33], {"config": {"code_seed": 2}}),
        affine_3=([1.05, 1.16, 1.25], {"config": {"code_seed": 3}}),
    )
    found = json.loads((tmp_path / "report" / "report.json").read_text())["recodings"][0]
    assert (found["recodings"], found["seeds"]) == (3, 3)
    assert found["p"] < 0.01
    assert "3 recodings x 3 seeds" in text


def test_missing_cores_of_a_platform_do_not_matter(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    study = compare.configure_study([f"--study_dir={tmp_path}"])
    assert compare.Runner(study).jobs == 1
