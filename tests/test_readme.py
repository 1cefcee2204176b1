"""What README.md and docs/ say that a program can check."""

import re
import shlex

import pytest
import torch

import input_layers
from inputcodes.configurator import configure, given_values
from model import GPT
from prepare_data import PrepareConfig
from tests.helpers import ROOT
from train import TrainConfig

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", PAGES[0].read_text(encoding="utf-8"), re.S | re.M
    )


@pytest.fixture
def gray():
    """The input layer that the README adds, for one test."""
    (example,) = blocks("python")
    exec(example, vars(input_layers))
    yield input_layers.INPUT_LAYERS["gray"]
    del input_layers.INPUT_LAYERS["gray"], input_layers.GrayInput


def test_the_example_of_a_new_input_layer(gray):
    config = configure(TrainConfig, ["--input_layer=gray", "--vocab_size=64", "--n_embd=12"])
    vectors = gray(config)(torch.arange(64))
    assert ((vectors[1:] != vectors[:-1]).sum(-1) == 2).all()  # one bit of six, tiled twice
    assert len({tuple(vector) for vector in vectors.tolist()}) == 64
    assert GPT(config)(torch.zeros(1, 3, dtype=torch.int64)).shape == (1, 3, 64)
    assert configure(TrainConfig, ["--input_layer=frozen", "--frozen_of=gray"]).frozen_of == "gray"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_commands_exist(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("http") or (page.parent / link).exists(), link
    joined = text.replace("\\\n", " ")
    for line in re.findall(r"^(?:pip install .* && )?((?:python|torchrun) .*)$", joined, re.M):
        words = shlex.split(line, comments=True)
        script = next((word for word in words if word.endswith(".py")), "")
        assert not script or (ROOT / script).is_file(), line
        options = words[words.index(script) + 1 :] if script else []
        cls = {"train.py": TrainConfig, "prepare_data.py": PrepareConfig}.get(script)
        if cls and "NAME" not in line:
            given_values(cls, [str(ROOT / w) if w.endswith(".py") else w for w in options])
