"""bench.py end to end, every kind of row, and its arithmetic; beside a stand-in for nanoGPT."""

import json
import math

import numpy as np
import pytest

import bench
import workloads
from inputcodes.configurator import UserError, configure
from workloads import TABLES, BenchConfig, Work, flops_per_token, rows_of

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
        "new_tokens": 3, "tokenize_mb": 0.001, "turn_s": 0, "warmup": 1, "rounds": 2,
    }  # fmt: skip

    def build(**changes) -> list[str]:
        return [f"--{key}={value}" for key, value in (settings | changes).items()]

    return build


def test_end_to_end_with_nanogpt(words, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "results" / "bench.json"
    argv = words(only="generate_8", out=out)
    bench.main(argv)
    screen = capsys.readouterr().out
    assert "hello" not in screen
    (record,) = json.loads(out.read_text())
    assert record["config"]["vocab_size"] == 256
    lines = record["tables"]["generate_8"]
    assert [line["name"] for line in lines] == ["nanoGPT", "float32", "bfloat16"]
    for line in lines:
        median, low, high = line["seconds"]
        assert 0 < low <= median <= high
        assert line["per_s"] == pytest.approx(8 * 3 / median, rel=1e-2)
        assert line["peak_mb"] > 50
        assert f"| {line['name']} |" in screen


def test_every_row_can_be_built_and_called(words):
    config = configure(BenchConfig, words(vocab_size=256, quick=True))
    rows = rows_of(config)
    assert {row.table for row in rows} == set(TABLES)
    for row in rows:
        work = row.build(row.config)
        work.call()
        assert work.amount > 0, row.name
    assert any(row.name == "nanoGPT as it is" for row in rows)
    assert not any(row.config.compile for row in rows)


def test_waiting_for_data_is_noticed(words):
    config = configure(BenchConfig, words(vocab_size=256))
    work = workloads.our_step(config)
    seconds, share = bench.take_turn(work, config)
    assert seconds > 0
    assert 0 < share < 1


def test_a_turn_lasts_as_long_as_was_asked(words):
    config = configure(BenchConfig, words(turn_s=0.05))
    calls: list[int] = []
    seconds, share = bench.take_turn(Work(lambda: calls.append(1), 1), config)
    assert seconds * len(calls) >= 0.05
    assert share == 0


def test_ratios_and_shares_by_hand(words):
    config = configure(BenchConfig, words(vocab_size=256))
    steps = {row.name: row for row in rows_of(config) if row.table == "step"}
    rows = [steps[name] for name in ("nanoGPT as it is", "float32", "matmul float32")]
    known = [
        {"name": row.name, "amount": 10, "unit": unit, "flops": flops, "peak_mb": peak}
        for row, unit, flops, peak in zip(
            rows, ("t", "t", "p"), (0, 100, 1000), (200, 50, 1), strict=True
        )
    ]
    turns = np.zeros((3, 3, 2))
    turns[:, :, 0] = [[4, 2, 5], [8, 2, 5], [9, 3, 5]]  # seconds a call
    turns[:, 1, 1] = [0.1, 0.2, 0.3]
    line = bench.summary(known, turns, 1, rows[1])
    assert line["seconds"] == [2, 2, 2.5]
    assert line["times_first"] == [3, 2.5, 3.5]  # of 2, 4, 3
    assert line["of_ceiling"][0] == pytest.approx((100 / 2) / (1000 / 5))
    assert line["peak_of_first"] == 0.25
    assert line["data_share"] == pytest.approx(0.2)
    assert "times_first" not in bench.summary(known, turns, 2, rows[2])


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
        ({"only": "steps"}, "unknown steps"),
        ({"rounds": 0}, "rounds=0"),
        ({"nanogpt": "/nowhere"}, "nanogpt='/nowhere'"),
        ({"dataset": "nothing"}, "no data set in"),
    ],
)
def test_bad_requests_are_refused(words, changes, words_of_error):
    with pytest.raises(UserError, match=words_of_error):
        bench.main(words(**changes))
