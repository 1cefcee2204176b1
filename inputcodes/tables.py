"""Tables of input vectors: that of a model, and what a new run makes of another run's."""

from pathlib import Path

import torch
from torch import Tensor

from inputcodes.checkpoint import load_model
from inputcodes.configurator import UserError
from inputcodes.data import DataSet
from model import GPT, GPTConfig


@torch.no_grad()
def input_table(model: GPT) -> Tensor:
    """The vectors (V, C) of all ids."""
    ids = torch.arange(model.config.vocab_size, device=model.head.weight.device)
    return torch.cat([model.input_layer(part) for part in ids.split(8192)])


def starting_table(config: GPTConfig, data: DataSet) -> Tensor | None:
    """The table (V, n_embd / compression) that a new run starts with, if `table_of` says so.

    It holds the first principal components of the input vectors of the run `table_of`, whichever
    input layer that has: of its best checkpoint, centred over the vocabulary, float32. They keep
    their ratios, and are scaled together to the standard deviation `table_std`. Raises UserError
    if there is no such run, or if its tokenizer or its width do not fit.
    """
    if config.input_layer != "compressed" or not config.table_of:
        return None
    model, record = load_model(Path(config.table_of) / "best.pt")
    width, there = config.n_embd // config.compression, model.config.n_embd
    if record["tokenizer_sha256"] != data.tokenizer.sha256:
        raise UserError(
            f"table_of={config.table_of!r}: that run has another tokenizer than {data.path};"
            " name a run that was trained on this data set"
        )
    if width > there:
        raise UserError(
            f"table_of={config.table_of!r}: vectors of width {there} do not have {width} principal"
            f" components; raise --compression, to {-(-config.n_embd // there)} or more"
        )
    vectors = input_table(model).double()
    vectors -= vectors.mean(dim=0)
    axes = torch.linalg.eigh(vectors.T @ vectors).eigenvectors  # by variance, the least first
    table = vectors @ axes[:, -width:].flip(1)
    return (table * (config.table_std / table.std())).float()
