"""The training loop: against a plain loop, across processes, interruptions and bad input."""

import dataclasses
import itertools
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train
from inputcodes import validation
from inputcodes.checkpoint import code_sha256, read_checkpoint, write_checkpoint
from inputcodes.configurator import UserError, run_main
from inputcodes.data import DataSet, TrainingData
from inputcodes.distributed import Processes, peak_mb
from inputcodes.files import locked
from inputcodes.resume import for_data
from model import GPT, count_parameters
from tests.helpers import (
    ROOT,
    SMALL,
    Program,
    assert_same_run,
    finish,
    metrics_of,
    torchrun,
    weights_of,
)
from train import TrainConfig


def plain_run(config: TrainConfig, data_dir: Path, steps: int) -> dict[str, list[float]]:
    """The run as a textbook would write it: whole batches, plain loss, unfused AdamW.

    The metrics of its steps.
    """
    data = DataSet(data_dir / "tiny")
    order = TrainingData(data.rows("train", config.block_size), 1, config.seed).order
    gpt = GPT(dataclasses.replace(config, vocab_size=256), config.seed)
    matrices = [w for w in gpt.parameters() if w.dim() == 2]
    scales = [w for w in gpt.parameters() if w.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": scales, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=False, foreach=False)
    metrics: dict[str, list[float]] = {"train_loss": [], "lr": [], "grad_norm": []}
    for step in range(steps):
        lr = 1e-3 * (step + 1) / 4
        if step >= 4:
            lr = 1e-4 + 0.5 * (1e-3 - 1e-4) * (1 + math.cos(math.pi * (step - 4) / 16))
        for group in optimizer.param_groups:
            group["lr"] = lr
        tokens = torch.from_numpy(data.train.windows(order.rows(8 * step, 8), 17))
        logits = gpt(tokens[:, :-1]).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.stack([w.grad.norm() for w in gpt.parameters()]).norm()
        for weight in gpt.parameters():
            weight.grad *= min(1.0, config.grad_clip / norm.item())
        optimizer.step()
        for values, value in zip(metrics.values(), (loss.item(), lr, norm.item()), strict=True):
            values.append(value)
    return metrics


def plain_losses(changes: dict, data_dir: Path) -> list[float]:
    return plain_run(TrainConfig(**SMALL | changes), data_dir, 20)["train_loss"]


def test_training_is_the_plain_loop_and_learns(words, text_data, tmp_path):
    # Clipped so far that AdamW, which divides by the gradient's size, can tell: by its epsilon.
    changes = {"grad_clip": 1e-5, "seed": 3}
    train.main(words(**changes))
    lines = metrics_of(tmp_path / "run")
    for name, expected in plain_run(TrainConfig(**SMALL, **changes), text_data, 20).items():
        assert [line[name] for line in lines] == pytest.approx(expected, rel=1e-5), name
    assert lines[-1]["val_loss"] < lines[4]["val_loss"] < math.log(256)
    assert [line["step"] for line in lines if "val_loss" in line] == [5, 10, 15, 20]
    last = lines[-1]
    assert last["tokens"] == 20 * 4 * 16 * 2
    assert last["val_perplexity"] == pytest.approx(math.exp(last["val_loss"]))
    # one byte a token and no end of text in these windows: bits per byte are bits per token
    assert last["val_bits_per_byte"] == pytest.approx(last["val_loss"] / math.log(2))
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["config"]["vocab_size"] == 256
    assert len(run["data_sha256"]) == len(run["code_sha256"]) == 64
    assert run["torch"] == torch.__version__


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(words, tmp_path):
    process = Program(tmp_path / "log", words("two"), processes=2)
    train.main(words("one"))
    codes, output = process.finish()
    assert codes == [0, 0], output
    one, two = metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two")
    assert len(one) == 20
    for a, b in zip(one, two, strict=True):
        for key in a:
            np.testing.assert_allclose(b[key], a[key], rtol=1e-5, err_msg=key)


@pytest.mark.slow
def test_gradients_are_reduced_once_a_step_and_during_the_backward_pass(text_data, tmp_path):
    out = tmp_path / "events.json"
    process = Program(tmp_path / "log", [text_data, out], "tests/allreduce.py", processes=2)
    codes, output = process.finish()
    assert codes == [0, 0], output
    record = json.loads(out.read_text())
    events, (before, after) = record["events"], record["places"]
    assert before == after  # set to zero in place: still views of the buckets, not copies
    assert len(set(after)) == sum(what == "reduce" for what, _ in events)
    config = TrainConfig(vocab_size=256, n_layer=2, n_head=2, n_embd=256)
    gradients = [size for what, size in events if what == "gradient"]
    reduced = [size for what, size in events if what == "reduce"]
    assert sum(gradients) == 3 * count_parameters(config)[0]  # three micro-steps
    assert sum(reduced) == count_parameters(config)[0]
    assert len(reduced) > 1
    first = next(i for i, (what, _) in enumerate(events) if what == "reduce")
    before = sum(size for what, size in events[:first] if what == "gradient")
    assert 2 / 3 * sum(gradients) < before < sum(gradients)  # in the last, and not at its end


@pytest.mark.slow
def test_the_peak_of_memory_is_this_process_own():
    code = (
        "import torch; from inputcodes.distributed import peak_mb; cpu = torch.device('cpu');"
        "before = peak_mb(cpu); x = torch.ones(25_000_000); print(before, peak_mb(cpu) - before)"
    )
    held = bytearray(200_000_000)  # by the parent, besides its own
    held[::4096] = b"x" * len(held[::4096])
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    before, more = map(float, shown.stdout.split())
    assert before < peak_mb(torch.device("cpu")) - 100
    assert 95 < more < 140


def test_bfloat16_training_is_near_the_plain_loop(words, text_data, tmp_path):
    train.main(words(dtype="bfloat16"))
    expected = plain_losses({}, text_data)
    losses = [line["train_loss"] for line in metrics_of(tmp_path / "run")]
    assert losses == pytest.approx(expected, rel=1e-3)
    assert losses != expected


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_training_is_the_plain_loop(words, text_data, tmp_path):
    shallow = {"n_layer": 1, "eval_interval": 20}
    process = Program(tmp_path / "log", words(compile=True, **shallow), processes=2)
    codes, output = process.finish()
    assert codes == [0, 0], output
    losses = [line["train_loss"] for line in metrics_of(tmp_path / "run")]
    expected = plain_losses(shallow, text_data)
    assert losses == pytest.approx(expected, rel=1e-5)


def test_compile_without_a_compiler_is_refused_before_the_first_step(words, tmp_path, monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with pytest.raises(UserError, match=r"^compile needs a C\+\+ compiler \(.*no-such-compiler"):
        train.main(words(compile=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("changes", "rel"), [({}, 1e-4), ({"dtype": "bfloat16", "compile": True}, 5e-3)]
)
def test_training_on_a_gpu_is_the_plain_loop(words, text_data, tmp_path, changes, rel):
    train.main(words(device="cuda", **changes))
    losses = [line["train_loss"] for line in metrics_of(tmp_path / "run")]
    assert losses == pytest.approx(plain_losses({}, text_data), rel=rel)


def test_the_code_is_hashed_before_data_is_prepared(words, monkeypatch):
    """Which takes minutes, in which a user may edit the files that were loaded."""
    code_sha256.cache_clear()

    def prepare(*_):
        raise UserError(f"hashed {code_sha256.cache_info().currsize}")

    monkeypatch.setattr(train, "prepare_missing", prepare)
    with pytest.raises(UserError, match="hashed 1"):
        train.main(words())


def test_a_second_writer_is_refused(words, tmp_path):
    with locked(tmp_path / "run", wait=False):
        with pytest.raises(
            UserError, match=r"another process is writing to .*run: wait for it to end"
        ):
            train.main(words())
        assert not (tmp_path / "run" / "run.json").exists()
    train.main(words())


def test_a_signal_stops_within_a_step_and_an_evaluation(words, tmp_path, monkeypatch, capsys):
    """Whatever was half done is dropped, and done again by the resumed run."""
    accumulate = {"gradient_accumulation_steps": 4, "max_steps": 10}
    train.main(words("whole", **accumulate))
    for module, name, stop_at, step in (
        (train.GPT, "forward", 4 * 6 + 2, 6),
        (validation, "target_nats", 2, 5),
    ):
        calls, function = itertools.count(1), getattr(module, name)

        def kill(*args, calls=calls, function=function, stop_at=stop_at):
            if next(calls) == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return function(*args)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, kill)
            with pytest.raises(SystemExit) as ended:
                train.main(words(name, **accumulate))
        assert ended.value.code == 128 + signal.SIGTERM
        assert "--init_from=resume" in capsys.readouterr().out
        record = read_checkpoint(tmp_path / name / "last.pt")[1]
        assert record["step"] == step
        last = metrics_of(tmp_path / name)[-1]
        assert (last["step"] == 5 and "val_loss" not in last) == (name == "target_nats")
        if name == "target_nats":  # killed before it has made up for the evaluation
            with monkeypatch.context() as patch:
                patch.setattr(module, name, lambda *args: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    train.main(words(name, **accumulate, init_from="resume"))
        train.main(words(name, **accumulate, init_from="resume"))
        assert_same_run(tmp_path / name, tmp_path / "whole")


@pytest.mark.slow
def test_torchrun_stops_in_a_step_longer_than_its_patience_and_when_it_is_killed(words, tmp_path):
    """Steps of 20 s, with ten to save in; then torchrun is killed; the rest of the run is done."""
    changes = {"gradient_accumulation_steps": 40, "max_steps": 8}
    whole = Program(tmp_path / "log", words("whole", **changes), processes=2)
    process = torchrun(words("stopped", **changes), "tests/slow_steps.py", grace=10)
    while process.stdout.readline() != "slow\n":
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    output = finish(process)
    assert process.returncode != 0
    assert output.count("SIGTERM: saving") == 1
    assert output.count("stopped after step 3 and saved") == 1
    again = words("stopped", **changes, init_from="resume")
    process = torchrun(again, "tests/slow_steps.py")
    while process.stdout.readline() != "slow\n":
        assert process.poll() is None
    process.kill()
    assert "stopped after step 6 and saved" in finish(process)  # at the end of both
    assert read_checkpoint(tmp_path / "stopped" / "last.pt")[1]["step"] == 6
    codes, output = Program(tmp_path / "rest", again, processes=2).finish()
    assert codes == [0, 0], output
    assert whole.finish()[0] == [0, 0]
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_checkpoints_come_by_the_clock_too(words, monkeypatch):
    saved = []
    monkeypatch.setattr(
        train, "write_checkpoint", lambda path, _, record: saved.append((path.stem, record["step"]))
    )
    train.main(words(save_interval=1e-9, max_steps=6, eval_interval=6, log_interval=3))
    assert saved[:7] == [("last", step) for step in range(1, 7)] + [("best", 6)]


def test_speed_is_that_of_the_steps_between_two_lines(words, tmp_path, monkeypatch):
    """Each look at the clock is a second later, so a step of 4 x 16 x 2 tokens takes one."""
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)
    monkeypatch.setattr(train, "time", clock)
    train.main(words(log_interval=5, max_steps=10))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["tokens_per_s"] for line in lines] == [128, 128]


def test_evaluating_changes_no_weight(words, tmp_path):
    train.main(words("often", eval_interval=3))
    train.main(words("once", eval_interval=20))
    often, once = weights_of(tmp_path / "often"), weights_of(tmp_path / "once")
    assert all(torch.equal(often[key], once[key]) for key in once)


def test_all_variants_see_the_same_batches(words, monkeypatch):
    seen: dict[str, list] = {}

    class Recorder(train.GPT):
        def forward(self, ids, targets=None, layout=None):
            if torch.is_grad_enabled():
                seen.setdefault(self.config.input_layer, []).append((ids, targets))
            return super().forward(ids, targets, layout)

    monkeypatch.setattr(train, "GPT", Recorder)
    for name in ("learned", "fixed", "affine", "compressed"):
        train.main(words(name, input_layer=name, max_steps=5, warmup_steps=1))
    assert len(seen["fixed"]) == 10
    for name, batches in seen.items():
        for (x, y), (fx, fy) in zip(batches, seen["fixed"], strict=True):
            assert torch.equal(x, fx), name
            assert torch.equal(y, fy), name


@pytest.mark.slow
def test_nan_stops_both_processes_before_the_update(words, tmp_path):
    train.main(words(max_steps=10))
    last = tmp_path / "run" / "last.pt"
    tensors, record = read_checkpoint(last)
    record["config"]["max_steps"] = 20
    tensors["model"]["blocks.1.mlp.fc.weight"][3, 2] = 1e38  # its square is not finite
    write_checkpoint(last, tensors, record)
    before = last.read_bytes()
    codes, output = Program(tmp_path / "log", words(init_from="resume"), processes=2).finish()
    assert 0 not in codes
    assert "step 11: the loss is not finite" in output
    assert f"the last checkpoint is {last}" in output
    assert last.read_bytes() == before


def test_what_is_not_finite_is_told_from_where_it_was_made(words, tmp_path):
    diverging = {"learning_rate": 1e30, "warmup_steps": 0, "grad_clip": 0.0}
    with pytest.raises(UserError, match=r"step 2: the loss is .*; a lower learning_rate or weight"):
        train.main(words("diverging", **diverging))
    train.main(words(max_steps=5))
    best = tmp_path / "run" / "best.pt"
    tensors, record = read_checkpoint(best)
    for value, message in (
        (1e38, "step 1: the gradient is .*; no update came before: check init_from"),
        (math.nan, r"best.pt: norm\.weight has numbers that are not finite"),
    ):
        tensors["model"]["norm.weight"][3] = value
        write_checkpoint(best, tensors, record)
        with pytest.raises(UserError, match=message):
            train.main(words("tuned", init_from=tmp_path / "run"))


def test_the_end_says_what_to_try_next(words, tmp_path, capsys):
    train.main(words(max_steps=5))
    out = capsys.readouterr().out
    assert re.search(r"^done after \d+ s: val loss", out, re.M)
    assert all(len(line) <= 80 for line in out.split("next: ")[0].splitlines() if " byte" in line)
    assert f"next: python sample.py --out_dir={tmp_path / 'run'}\n" in out
    (command,) = re.findall(r"python train.py (.*)", out)
    assert "--init_from" not in command
    train.main(shlex.split(command))
    assert (tmp_path / "run" / "learned" / "best.pt").is_file()


def test_learning_rate_at_its_corners():
    config = TrainConfig(max_steps=110, warmup_steps=10, learning_rate=1.0, min_lr=0.2)
    rates = [train.learning_rate(step, config) for step in range(110)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10] == max(rates) == 1.0
    assert rates[60] == pytest.approx(0.6)  # half-way down the cosine
    assert rates[109] == pytest.approx(0.2, abs=1e-3)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))


def test_what_the_data_or_the_processes_make_impossible(text_data):
    data = DataSet(text_data / "tiny")
    config = TrainConfig(batch_size=3)
    with pytest.raises(UserError, match="batch_size=3 cannot be shared by 2 processes"):
        for_data(config, data, processes=2)
    with pytest.raises(UserError, match=r"vocab_size=4096, but .*tiny has 256"):
        for_data(TrainConfig(vocab_size=4096), data)
    with pytest.raises(UserError, match="256 tokens need 8 bits"):
        for_data(TrainConfig(n_embd=6, n_head=1), data)
    assert for_data(config, data, processes=3).vocab_size == 256


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--tf32=True"], ["unknown setting 'tf32'", "--matmul_precision=high"]),
        (["--n_layers=3"], ["unknown setting 'n_layers'", "did you mean 'n_layer'?"]),
        (["--max_steps=many"], ["max_steps='many'", "expected a whole number"]),
        (
            ["--dataset=nowhere"],
            ["no data set data/nowhere", "prepare_data.py --files=TEXT.txt", "its --data_dir"],
        ),
        (
            ["--dataset=data/nowhere"],
            ["dataset='data/nowhere': expected the name of a folder in data_dir='data'"],
        ),
        (["--dataset=.."], ["dataset='..': expected the name of a folder in data_dir='data'"]),
        (["--device=quantum"], ["device='quantum' cannot be used here"]),
        (["--beta2=1", "--seed=-1"], ["beta2=1.0", "seed=-1"]),
        (
            ["config/fixd32.py"],
            ["'config/fixd32.py': did you mean one of config/fixed32.py, "],
        ),
        (["scale.py"], ["no config file 'scale.py'", " config/studies/scale.py"]),
    ],
)
def test_bad_input_is_one_clear_line_and_writes_nothing(tmp_path, monkeypatch, argv, words):
    out_dir = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["train.py", *argv, f"--out_dir={out_dir}"])
    with pytest.raises(SystemExit) as ended:
        run_main(train.main, TrainConfig, train.USAGE)
    output = str(ended.value.code)  # Python prints it and exits with 1
    assert all(word in output for word in words), output
    assert all(line.startswith("error: ") for line in output.splitlines()), output
    assert not out_dir.exists()


def test_processes_alone_add_nothing():
    processes = Processes(torch.device("cpu"))
    assert processes.first
    processes.wait()
    assert processes.sum(torch.ones(2)).tolist() == [1, 1]
