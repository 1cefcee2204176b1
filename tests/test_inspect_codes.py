"""The measures of inspect_codes against plain formulas, and the command on tiny models."""

import os
import runpy
import sys

import numpy as np
import pytest
import torch

from inputcodes import inspect_codes
from inputcodes.configurator import UserError
from inputcodes.inspect_codes import copying, linear_cka, nearest, ridge_r2, token_states
from inputcodes.tokenizer import Tokenizer
from model import GPT, GPTConfig
from tests.helpers import write_run


def test_cka_is_that_of_the_centred_gram_matrices():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5)), rng.normal(size=(40, 7))
    centre = np.eye(40) - 1 / 40
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    expected = (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())
    assert linear_cka(torch.tensor(x), torch.tensor(y)) == pytest.approx(expected)
    turned = x @ np.linalg.qr(rng.normal(size=(5, 5)))[0] * 3 + 1
    assert linear_cka(torch.tensor(x), torch.tensor(turned)) == pytest.approx(1)


def test_r2_of_a_linear_map_is_one_and_of_noise_not_above_zero():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=generator)
    y = x @ torch.randn(6, 3, generator=generator)
    assert ridge_r2(x, y) > 0.999
    assert ridge_r2(torch.nn.functional.pad(x, (0, 1)), y) > 0.999  # a dimension that is not filled
    assert ridge_r2(x, torch.randn(500, 3, generator=generator)) < 0.02


def test_states_are_those_of_the_model_read_step_by_step():
    model = GPT(GPTConfig(vocab_size=256, block_size=8, n_layer=2, n_embd=32)).eval()
    ids = torch.tensor([3, 77])
    states = token_states(model, ids, 255)
    assert len(states) == 3
    assert torch.equal(states[0], model.input_layer(ids))
    final = model.hidden(torch.tensor([[255, 3], [255, 77]]))[:, -1]
    assert torch.allclose(model.norm(states[2]), final, atol=1e-6)


def test_the_nearest_have_the_largest_cosines():
    states = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0], [-0.9, -0.1]])
    assert nearest(states, 0, 2) == [1, 3]


class Copier(torch.nn.Module):
    """A model that is sure of the token that followed this one before, if it came before."""

    def __init__(self, V: int, block_size: int) -> None:
        super().__init__()
        self.config = GPTConfig(vocab_size=V, block_size=block_size)
        self.head = torch.nn.Linear(V, V, bias=False)
        torch.nn.init.eye_(self.head.weight)

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*ids.shape, self.config.vocab_size)
        for row, text in enumerate(ids.tolist()):
            for i, token in enumerate(text):
                for before in (j for j in range(i) if text[j] == token):
                    logits[row, i, text[before + 1]] = 50
        return logits


def test_copying_is_seen_where_tokens_come_again():
    first, again = copying(Copier(4096, 8), torch.arange(4096))
    assert first == pytest.approx(np.log(4096), rel=1e-3)
    assert again == pytest.approx(0, abs=0.05)
    model = GPT(GPTConfig(vocab_size=256, block_size=16, n_layer=2, n_embd=32)).eval()
    first, again = copying(model, torch.arange(20))
    assert again == pytest.approx(first, abs=0.1)  # random weights copy nothing


def test_the_command_prints_its_tables(tmp_path, capsys):
    for name in ("learned", "fixed"):
        write_run(tmp_path / name, Tokenizer(256), input_layer=name)
    inspect_codes.main([str(tmp_path / "learned"), str(tmp_path / "fixed"), "--tokens=a"])
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()]
    first = next(row for row in rows if row and row[0].endswith("learned"))
    assert first[1:] == ["input", "1.000", first[3]]
    assert sum(row[:1] == ["'a'"] for row in rows) == 6
    assert [row[0][-5:] for row in rows[-2:]] == ["arned", "fixed"]
    assert float(rows[-1][1]) - float(rows[-1][2]) == pytest.approx(float(rows[-1][3]), abs=2e-3)
    inspect_codes.main([str(tmp_path / "learned")])
    assert "'0'" in capsys.readouterr().out  # of the examples the only byte
    with pytest.raises(UserError, match="no runs"):
        inspect_codes.main([])


def test_tables_that_cannot_be_written_are_an_error(tmp_path, monkeypatch):
    write_run(tmp_path, Tokenizer(256))
    monkeypatch.setattr(sys, "argv", ["inspect_codes.py", str(tmp_path)])
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit, match="cannot write the output: No space left"):
            runpy.run_path(inspect_codes.__file__, run_name="__main__")


def test_tokens_have_their_spaces_and_unknown_ones_are_named(tmp_path, capsys):
    write_run(tmp_path, Tokenizer(300, [" in", "in"]))
    inspect_codes.main([str(tmp_path), "--tokens= in; "])
    printed = capsys.readouterr().out
    assert "| ' in' |" in printed
    assert "| ' '   |" in printed
    with pytest.raises(UserError, match=r"tokens='zebra; i': expected tokens of"):
        inspect_codes.main([str(tmp_path), "--tokens=zebra;in; i"])
    inspect_codes.main([str(tmp_path), os.fsdecode(b"--tokens=\xc3")])
    assert "| '\N{REPLACEMENT CHARACTER}'   |" in capsys.readouterr().out


def test_a_context_of_one_token_will_do(tmp_path, capsys):
    write_run(tmp_path, Tokenizer(256), block_size=1)
    inspect_codes.main([str(tmp_path), "--tokens=a"])
    assert "block 2" in capsys.readouterr().out
