"""bench.py end to end, every kind of row, and its arithmetic; beside a stand-in for nanoGPT."""

import json
import math
import multiprocessing
import re
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import bench
from bench import TABLES, BenchConfig, Line, flops_per_token, rows_of
from inputcodes.configurator import UserError, configure

STAND_IN = '''
import torch

class GPTConfig:
    def __init__(self, **shape):
        self.__dict__.update(shape)

class GPT(torch.nn.Module):
    """A bigram table with the interface that bench.py knows nanoGPT by."""

    def __init__(self, config):
        super().__init__()
        assert config.dropout == 0 and not config.bias
        self.table = torch.nn.Embedding(config.vocab_size, config.vocab_size)
        print("hello")

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.SGD(self.parameters(), lr=learning_rate)

    def forward(self, x, y):
        logits = self.table(x)
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())

    @torch.no_grad()
    def generate(self, x, count):
        for _ in range(count):
            x = torch.cat((x, self.table(x[:, -1]).argmax(-1, keepdim=True)), dim=1)
        return x
'''


@pytest.fixture
def words(text_data, tmp_path):
    """Builds the command line of a tiny measurement."""
    (tmp_path / "model.py").write_text(STAND_IN)
    settings = {
        "data_dir": text_data, "dataset": "tiny", "device": "cpu", "block_size": 16, "n_layer": 1,
        "n_head": 2, "n_embd": 16, "batch_size": 2, "nanogpt": tmp_path,
        "new_tokens": 3, "turn_s": 0, "warmup": 1, "rounds": 2,
    }  # fmt: skip

    def build(**changes) -> list[str]:
        return [f"--{key}={value}" for key, value in (settings | changes).items()]

    return build


@pytest.mark.slow
def test_end_to_end_with_nanogpt(words, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "results" / "bench.json"
    argv = words(only="generate_8", out=out)
    bench.main(argv)
    screen = capsys.readouterr().out
    assert "hello" not in screen
    (record,) = json.loads(out.read_text())["records"]
    assert record["config"]["vocab_size"] == 256
    lines = record["tables"]["generate_8"]
    assert [line["name"] for line in lines] == ["nanoGPT", "float32", "bfloat16"]
    for line in lines:
        median, low, high = line["seconds"]
        assert 0 < low <= median <= high
        assert line["amount"] == 8 * 3
        assert line["peak_mb"] > 50
        assert re.search(rf"^\| {line['name']} +\|.* {8 * 3 / median:,.1f} tokens", screen, re.M)
    assert "AMX" in screen


def test_records_that_are_added_at_once_are_all_kept(tmp_path):
    out = tmp_path / "results" / "bench.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: bench.add_record(out, {"number": number}), range(40)))
    numbers = [record["number"] for record in json.loads(out.read_text())["records"]]
    assert sorted(numbers) == list(range(40))


def test_a_row_whose_parent_has_gone_raises_nothing(words, monkeypatch):
    monkeypatch.setattr(bench, "end_with_parent", lambda: None)
    here, there = multiprocessing.Pipe()
    here.close()
    bench.serve(there, rows_of(configure(BenchConfig, words(vocab_size=256)))[0])


def test_what_a_row_cannot_have_is_one_line(words, monkeypatch):
    monkeypatch.setattr(bench, "end_with_parent", lambda: None)
    made = words(vocab_size=256, nanogpt="", input_layer="compressed", table_of="nowhere")
    with pytest.raises(SystemExit, match=r"^error: there is no checkpoint nowhere/best\.pt"):
        bench.serve(multiprocessing.Pipe()[0], rows_of(configure(BenchConfig, made))[0])


def test_every_row_can_be_built_and_called(words):
    config = configure(BenchConfig, words(vocab_size=256, only=" ,".join(TABLES)))
    rows = rows_of(config)
    assert {row.table for row in rows} == set(TABLES)
    for row in rows:
        if not row.config.compile:
            call, line = row.build(row.config)
            call()
            assert line.amount > 0, row.name
    assert any(row.name == "nanoGPT" for row in rows)


def test_ratios_and_shares_by_hand():
    lines = [
        Line(10, name="nanoGPT"),
        Line(10, name="float32", flops=100),
        Line(1, "products", name="matmul float32", flops=1000),
    ]
    turns = np.array([[4.0, 2, 5], [8, 2, 5], [9, 3, 5]])  # seconds per call
    for i in range(3):
        bench.compare(lines, i, turns, "matmul float32")
    assert lines[1].seconds == [2, 2, 2.5]
    assert lines[1].times_first == [3, 2.5, 3.5]  # of 2, 4, 3
    assert lines[1].of_ceiling[0] == pytest.approx((100 / 2) / (1000 / 5))
    assert lines[2].times_first == []  # products are not tokens
    assert re.search(r"\| +- \| +- \|", bench.markdown(lines))  # no peak is known


def test_accumulation_is_one_unless_given(words, monkeypatch):
    asked = []
    monkeypatch.setattr(bench, "measure", lambda rows: asked.append(rows[0].config) or [])
    monkeypatch.setattr(bench, "markdown", lambda lines: "")
    bench.main(words(only="generate_8"))
    bench.main(words(only="generate_8", gradient_accumulation_steps=3))
    assert [config.gradient_accumulation_steps for config in asked] == [1, 3]


@pytest.mark.parametrize("gpu", ["cuda:1", "mps"])
def test_on_a_gpu_rows_come_one_after_another_on_the_card_that_was_named(words, monkeypatch, gpu):
    asked = []

    def measure_together(rows):
        asked.append([row.config.device for row in rows])
        return [Line(1) for _ in rows], np.ones((3, len(rows)))

    monkeypatch.setattr(bench, "device_of", lambda config: torch.device(gpu))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")
    monkeypatch.setattr(bench, "measure_together", measure_together)
    bench.main(words(only="generate_8", nanogpt=""))
    assert asked == [[gpu], [gpu]]


def test_a_turn_on_a_gpu_waits_for_it(words, monkeypatch):
    monkeypatch.setattr(bench, "end_with_parent", lambda: None)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: done.append(str(device)))
    done = []
    config = configure(BenchConfig, words(device="mps"))
    row = bench.Row("step", "", lambda _: (lambda: done.append("asked"), Line(1)), config)
    here, there = multiprocessing.Pipe()
    here.send(True)
    here.send(False)
    bench.serve(there, row)
    assert done == ["asked", "mps"]


def test_a_shape_whose_data_is_missing_is_measured_on_the_embedded_text(
    words, text_data, monkeypatch, capsys
):
    """`python bench.py config/fixed32.py` needs no 34 GB of tokens."""
    asked = []
    monkeypatch.setattr(
        bench, "prepare_missing", lambda _, name: asked.append(name) or text_data / "tiny"
    )
    monkeypatch.setattr(bench, "measure", lambda rows: asked.append(rows[0].config.dataset))
    monkeypatch.setattr(bench, "markdown", lambda lines: "")
    bench.main(words(only="generate_8", dataset="nothing", vocab_size=256))
    assert asked == ["stdlib-256", "stdlib-256"]
    assert "measuring on stdlib-256" in capsys.readouterr().out


def test_flops_of_the_papers_model():
    config = configure(BenchConfig, ["config/fixed32.py"])
    assert flops_per_token(config) == pytest.approx(3.22e9, rel=1e-3)
    learned = configure(BenchConfig, ["config/learned32.py"])
    assert flops_per_token(learned) == flops_per_token(config)
    by_hand = 6 * (32 * 12 * 1024**2 + 65_536 * 1024) + 12 * 32 * 1024 * 1024
    assert math.isclose(flops_per_token(config), by_hand)


@pytest.mark.parametrize(
    ("changes", "words_of_error"),
    [
        ({"only": "steps"}, "only='steps'"),
        ({"rounds": 0}, "rounds=0"),
        ({"rounds": 10**15}, "rounds=1000000000000000: expected at least 1 and at most 100,000"),
        ({"only": ""}, "only='': expected some of step, "),
        ({"nanogpt": "/nowhere"}, "nanogpt='/nowhere'"),
        ({"nanogpt": "."}, r"nanogpt='\.': no model\.py of nanoGPT there"),  # but this program's
        ({"dataset": "nothing"}, "there is no data set"),
        ({"compression": 5}, r"compressed: compression=5 does not divide .*with --only"),
        ({"input_layer": "fixed", "code_length": 99}, r"^codeword: code_length=99: expected"),
    ],
)
def test_bad_requests_are_refused(words, changes, words_of_error):
    with pytest.raises(UserError, match=words_of_error):
        bench.main(words(**changes))


@pytest.mark.parametrize("there", ["{}", '{"records": {}}', "a text"])
def test_a_file_of_something_else_is_refused_before_measuring(words, tmp_path, there):
    out = tmp_path / "other.json"
    out.write_text(there)
    with pytest.raises(UserError, match=r"out=.*other\.json.: expected no file, or one that"):
        configure(BenchConfig, words(out=out))


@pytest.mark.parametrize("built", [False, True])
def test_ctrl_c_is_for_the_program_and_not_for_its_workers(words, monkeypatch, built):
    """It ends them; of their own they showed where they were, in a traceback each.

    One that is killed, while it builds its row or after that, is one line.
    """
    heard = []

    class Context:
        Pipe = multiprocessing.Pipe

        class Process:
            def __init__(self, args, **_):
                self.pipe = args[0]

            def start(self):
                self.terminate()
                if built:
                    self.pipe.send(Line(1))

            def terminate(self):
                heard.append(signal.getsignal(signal.SIGINT))

    monkeypatch.setattr(multiprocessing, "get_context", lambda _: Context)
    row = rows_of(configure(BenchConfig, words(only="step", vocab_size=256)))[0]
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(UserError, match="a row failed"):
        bench.measure_together([row])
    assert heard == [signal.SIG_IGN, before]
