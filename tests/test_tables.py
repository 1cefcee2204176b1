"""The table of one run compressed for another: principal components, and who needs which run."""

import hashlib
import shutil

import numpy as np
import pytest
import torch

import compare
import train
from inputcodes.checkpoint import load_model
from inputcodes.configurator import UserError, configure
from inputcodes.data import DataSet
from inputcodes.resume import starting_table
from inputcodes.tokenizer import Tokenizer
from model import count_parameters
from tests.helpers import weights_of, write_run
from train import TrainConfig

PCA = {"input_layer": "compressed", "compression": 4}  # 4 of 16 numbers


@pytest.mark.parametrize("layer", ["learned", "compressed"])
def test_the_table_is_the_truncated_singular_value_decomposition(layer, words, text_data, tmp_path):
    base = write_run(tmp_path / "base", Tokenizer(256), input_layer=layer)
    changes = PCA | {"table_of": tmp_path / "base", "table_std": 0.3, "n_embd": 24}
    config, data = configure(TrainConfig, words(**changes)), DataSet(text_data / "tiny")
    table, _ = starting_table(config, data)
    vectors = base.input_layer(torch.arange(256)).detach().numpy().astype(np.float64)
    U, S, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    expected = (U * S)[:, :6]
    expected *= 0.3 / expected.std(ddof=1)
    assert table.shape == (256, 6)
    assert table.std().item() == pytest.approx(0.3)
    assert table.mean(0).abs().max() < 1e-6
    signs = np.sign((table.numpy() * expected).sum(axis=0))  # which are arbitrary
    assert np.abs(table.numpy() * signs - expected).max() < 1e-5


@pytest.mark.parametrize("trained", [True, False])
def test_a_run_starts_from_it_and_then_needs_no_other(trained, words, text_data, tmp_path):
    base = tmp_path / "base"
    write_run(base, Tokenizer(256), input_layer="learned")
    changes = PCA | {"table_of": base, "train_table": trained, "max_steps": 5}
    config = configure(TrainConfig, words(**changes))
    start, sha256 = starting_table(config, DataSet(text_data / "tiny"))
    assert sha256 == hashlib.sha256((base / "best.pt").read_bytes()).hexdigest()
    train.main(words(**changes))
    shutil.rmtree(base)
    table = weights_of(tmp_path / "run")["input_layer.weight"]
    assert torch.equal(table, start) == (not trained)
    train.main([*words(**changes | {"max_steps": 7}), "--init_from=resume"])
    model, record, _ = load_model(tmp_path / "run" / "last.pt")
    assert (record["step"], record["table_sha256"]) == (7, sha256)
    assert torch.equal(model.input_layer.weight, start) == (not trained)
    assert count_parameters(model.config)[1] == 256 * 4 * trained
    train.main(words("tuned", init_from=tmp_path / "run", max_steps=5, **PCA))


@pytest.mark.parametrize(
    ("tokenizer", "changes", "message"),
    [
        (None, {}, r"no checkpoint .*base/best\.pt"),
        (Tokenizer(300, ["ab"]), {}, r"table_of='.*base'.*another tokenizer than .*tiny"),
        (Tokenizer(256), {"n_embd": 520}, r"64 do not have 130 .*raise --compression, to 9 or"),
    ],
)
def test_a_run_that_does_not_fit_is_refused_in_one_line(
    tokenizer, changes, message, words, tmp_path
):
    if tokenizer:
        write_run(tmp_path / "base", tokenizer)
    command = words(**PCA, table_of=tmp_path / "base", **changes)
    study = [word for word in command if not word.startswith("--out_dir")]
    study += [f"--study_dir={tmp_path / 'study'}", "--variants=learned;compressed"]
    for main, argv in ((train.main, command), (compare.main, study)):
        with pytest.raises(UserError, match=message) as caught:
            main(argv)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "study").exists()
    assert not (tmp_path / "run").exists()
