"""What TensorBoard and Weights & Biases are given of a run, its interruption included."""

import json
import signal
import sys
import types

import pytest

import train
from inputcodes import progress
from inputcodes.configurator import UserError
from tests.helpers import SMALL


def run(text_data, out, *argv: str) -> list[dict]:
    """Train as a user does; the lines of metrics.jsonl."""
    settings = SMALL | {"data_dir": text_data, "out_dir": out, "max_steps": 10}
    train.main([*(f"--{key}={value}" for key, value in settings.items()), *argv])
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


class FakeWandb(types.ModuleType):
    """Keeps what a run sends."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.inits: list[dict] = []
        self.lines: list[tuple[int, dict]] = []
        self.__spec__ = object()  # found by find_spec

    def init(self, **settings):
        self.inits.append(settings)
        return self

    def log(self, line, step):
        self.lines.append((step, line))


def test_wandb_gets_the_lines_and_a_resumed_run_goes_on(text_data, tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    lines = run(text_data, tmp_path, "--log_to=wandb")
    assert [line for _, line in wandb.lines] == lines
    assert [step for step, _ in wandb.lines] == [line["step"] for line in lines]
    assert wandb.inits[0]["config"]["config"]["n_layer"] == SMALL["n_layer"]
    assert "torch" in wandb.inits[0]["config"]
    write = progress.open_dashboard("wandb", tmp_path, last_step=10)
    write({"step": 11})
    assert wandb.inits[1]["id"] == wandb.inits[0]["id"]
    progress.open_dashboard("wandb", tmp_path, last_step=0)
    assert wandb.inits[2]["id"] != wandb.inits[0]["id"]


def test_a_step_whose_evaluation_was_stopped_is_sent_once_with_its_result(
    text_data, tmp_path, monkeypatch
):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    evaluate = train.Trainer.evaluate

    def stopped(trainer, tick):
        trainer.stop.signal = signal.SIGINT
        return evaluate(trainer, tick)

    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "evaluate", stopped)
        with pytest.raises(SystemExit):
            run(text_data, tmp_path, "--log_to=wandb")
    lines = run(text_data, tmp_path, "--log_to=wandb", "--init_from=resume")
    assert [line for _, line in wandb.lines] == lines


def test_a_dashboard_that_does_not_start_is_one_line_and_one_that_breaks_ends_nothing(
    text_data, tmp_path, monkeypatch, capsys
):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    wandb.log = None
    assert len(run(text_data, tmp_path / "broken", "--log_to=wandb")) == 10
    assert capsys.readouterr().out.count("wandb gets no more of this run: ") == 1
    wandb.init = None
    with pytest.raises(UserError, match=r"^log_to='wandb' does not start: "):
        run(text_data, tmp_path / "none", "--log_to=wandb")


def test_tensorboard_holds_the_numbers_of_metrics_jsonl(text_data, tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    lines = run(text_data, tmp_path, "--log_to=tensorboard")
    write = progress.open_dashboard("tensorboard", tmp_path, last_step=8)  # 9 and 10 come again
    write(lines[8] | {"train_loss": 1.5})
    events = reader.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = {event.step: event.value for event in events.Scalars("train_loss")}
    expected = {line["step"]: line["train_loss"] for line in lines[:8]} | {9: 1.5}
    assert losses == pytest.approx(expected, rel=1e-6)
    assert {"val_loss", "lr", "tokens"} <= set(events.Tags()["scalars"])


def test_a_missing_package_is_named_before_anything_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(train.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install wandb"):
        train.main(["--log_to=wandb", f"--out_dir={tmp_path}/run"])
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"expected none, wandb or tensorboard$"):
        train.main(["--log_to=comet", f"--out_dir={tmp_path}/run"])


def test_what_cannot_be_is_not_proposed(text_data, tmp_path, capsys):
    for width, proposed in ((8, True), (4, False)):
        layer = f"--n_embd={width}", "--n_head=1", "--input_layer=learned"
        run(text_data, tmp_path / str(width), *layer)
        assert ("--input_layer=fixed" in capsys.readouterr().out) == proposed  # 8 bits need 8


@pytest.mark.parametrize(("name", "other"), [("run", "run/learned"), ("fixed", "learned")])
def test_a_run_in_a_folder_of_its_input_layer_has_the_matched_one_beside_it(
    text_data, tmp_path, capsys, name, other
):
    run(text_data, tmp_path / name)
    assert f"--input_layer=learned --out_dir={tmp_path / other}\n" in capsys.readouterr().out


def test_what_torchrun_started_is_to_be_started_by_torchrun(
    text_data, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    run(text_data, tmp_path)
    assert "      torchrun --nproc_per_node=2 train.py --" in capsys.readouterr().out


def test_the_curve_is_drawn_at_evaluations_and_never_ends_a_run(
    text_data, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("matplotlib")
    run(text_data, tmp_path / "short")
    assert not (tmp_path / "short" / "curve.png").exists()  # over before there is much to see
    monkeypatch.setattr(progress, "CURVE_SECONDS", 0)
    run(text_data, tmp_path / "drawn")
    assert (tmp_path / "drawn" / "curve.png").read_bytes().startswith(b"\x89PNG")

    def broken(figure, path):
        raise OSError("no space left")

    monkeypatch.setattr("inputcodes.figures.save", broken)
    run(text_data, tmp_path / "broken")
    assert "no space left" in capsys.readouterr().out


def test_control_c_in_the_closing_sample_leaves_the_run_done(
    text_data, tmp_path, monkeypatch, capsys
):
    def interrupted(trainer):
        raise KeyboardInterrupt

    monkeypatch.setattr(progress, "sample", interrupted)
    run(text_data, tmp_path)
    assert "a sample:\n(none: KeyboardInterrupt: )\n\nnext: " in capsys.readouterr().out
