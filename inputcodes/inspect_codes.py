"""What trained models make of their input: likeness to a trained table, neighbours, copying.

    python -m inputcodes.inspect_codes out/learned out/fixed out/spelling --tokens=" in;the;("

The vectors of each token are its states when the model reads it alone behind an end of text: at the
input and after each block. For every model and depth the command prints how alike they are to the
table of the first model (normally one with a learned table), over all ids but special tokens:

- CKA: linear centred kernel alignment (Kornblith et al. 2019), 1 for equal up to rotation and scale
- R2: the share of the table's variance that a ridge regression on the vectors gives, on ids that
  the regression was not fitted on

Then the nearest neighbours of some tokens, and whether a model copies: its loss on random tokens,
and on the same ones when they come again. Induction heads, which find what followed a token before,
make that one lower (Olsson et al. 2022).

Shapes: N ids, C width of a model.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from inputcodes.checkpoint import load_model
from inputcodes.configurator import Settings, UserError, configure, run_main, setting
from inputcodes.loss import token_nats
from inputcodes.stats import markdown_table
from model import GPT

USAGE = "usage: python -m inputcodes.inspect_codes RUN [RUN ...] [--name=value ...]"
EXAMPLES = (" in", "ing", "(s", "0")
RIDGE = 0.01  # over the mean variance of a vector's numbers
TEXTS = 32  # of random tokens, each half a context long


@dataclass(frozen=True)
class InspectConfig(Settings):
    runs: tuple[str, ...] = setting((), "folders of runs, the first to compare to", positional=True)
    tokens: tuple[str, ...] = setting(
        (),
        f"tokens whose neighbours to print; empty: those that there are of {'; '.join(EXAMPLES)}",
        spaces_count=True,
    )
    neighbours: int = setting(6, "how many neighbours", least=1)

    def problems(self) -> list[str]:
        return super().problems() + ([] if self.runs else ["no runs: pass their directories"])


@torch.no_grad()
def token_states(model: GPT, ids: Tensor, start: int) -> list[Tensor]:
    """States (N, C) of ids (N,) behind `start` (if two fit): at the input, after each block."""
    states: list[Tensor] = [model.input_layer(ids)]
    hooks = [
        block.register_forward_hook(lambda _, __, x: states.append(x[:, -1]))
        for block in model.blocks
    ]
    pairs = torch.stack((torch.full_like(ids, start), ids), dim=1)
    model.hidden(pairs[:, -model.config.block_size :])
    for hook in hooks:
        hook.remove()
    return states


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of x (N, C) and y (N, C'), between 0 and 1 (Kornblith et al. 2019, section 3)."""
    x, y = x - x.mean(0), y - y.mean(0)
    cross = (x.T @ y).square().sum()
    return float(cross / ((x.T @ x).norm() * (y.T @ y).norm()))


def ridge_r2(x: Tensor, y: Tensor) -> float:
    """The share of y's variance that a ridge regression on x explains, a fifth of rows held out."""
    x, y = x - x.mean(0), y - y.mean(0)
    fold = torch.arange(len(x)) % 5
    missed = torch.zeros(())
    for k in range(5):
        a, b = x[fold != k], y[fold != k]
        gram = a.T @ a
        gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
        weights = torch.linalg.solve(gram, a.T @ b)
        missed += (y[fold == k] - x[fold == k] @ weights).square().sum()
    return float(1 - missed / y.square().sum())


def nearest(states: Tensor, row: int, count: int) -> list[int]:
    """The rows with the largest cosine to row `row` of states (N, C), their mean taken off."""
    unit = torch.nn.functional.normalize(states - states.mean(0), dim=1)
    order = (unit @ unit[row]).argsort(descending=True).tolist()
    return [other for other in order if other != row][:count]


@torch.no_grad()
def copying(model: GPT, ids: Tensor) -> tuple[float, float]:
    """Nats per token of random ones of `ids` (N,), and of the same ones when they come again.

    The same texts for every model of a context. The first token of either time does not count.
    """
    half = model.config.block_size // 2
    drawn = torch.randint(len(ids), (TEXTS, half), generator=torch.Generator().manual_seed(0))
    tokens = ids[drawn].repeat(1, 2)
    states = model.hidden(tokens[:, :-1]).flatten(0, 1)
    nats = token_nats(states, model.head.weight, tokens[:, 1:].flatten()).view(TEXTS, -1)
    return nats[:, : half - 1].mean().item(), nats[:, half:].mean().item()


def compare(config: InspectConfig) -> tuple[str, str, str]:
    """Tables: likeness to the first run's input by depth, neighbours of the tokens, copying."""
    models = [load_model(Path(run) / "best.pt") for run in config.runs]
    tokenizer = models[0][2]
    for run, (_, record, _) in zip(config.runs, models, strict=True):
        if record["tokenizer_sha256"] != models[0][1]["tokenizer_sha256"]:
            raise UserError(f"{run} has another tokenizer than {config.runs[0]}")
    texts = tokenizer.texts()
    ids = torch.tensor([n for n, text in enumerate(texts) if text])
    if unknown := [text for text in config.tokens if os.fsencode(text) not in texts]:
        raise UserError(
            f"tokens={';'.join(unknown)!r}: expected tokens of {config.runs[0]}, with their spaces"
        )
    wanted = [os.fsencode(text) for text in config.tokens or EXAMPLES]
    rows = {text: texts.index(text) for text in wanted if text in texts}
    alike, neighbours, copied = list[list[str]](), list[list[str]](), list[list[str]]()
    table = token_states(models[0][0], ids, tokenizer.end_of_text)[0]
    table = table - table.mean(0)
    for run, (model, _, _) in zip(config.runs, models, strict=True):
        for depth, states in enumerate(token_states(model, ids, tokenizer.end_of_text)):
            name = f"block {depth}" if depth else "input"
            cka, r2 = linear_cka(states, table), ridge_r2(states, table)
            alike.append([run, name, f"{cka:.3f}", f"{r2:.3f}"])
            for text, token_id in rows.items() if depth < 3 else ():
                row = int((ids == token_id).nonzero())
                near = [texts[ids[n]] for n in nearest(states, row, config.neighbours)]
                shown = " ".join(repr(other.decode(errors="replace")) for other in near)
                neighbours.append([repr(text.decode(errors="replace")), run, name, shown])
        if model.config.block_size >= 4:  # two tokens, twice
            first, again = copying(model, ids)
            copied.append([run, f"{first:.3f}", f"{again:.3f}", f"{first - again:+.3f}"])
    neighbours.sort(key=lambda row: row[0])  # stable: runs and depths of a token stay in order
    return (
        markdown_table("run | depth | CKA | R2", alike),
        markdown_table("token | run | depth | nearest", neighbours),
        markdown_table("run | random tokens: loss | again | copying gains", copied),
    )


def main(argv: list[str]) -> None:
    print("\n\n".join(compare(configure(InspectConfig, argv))))


if __name__ == "__main__":
    run_main(main, InspectConfig, USAGE, output_needed=True)
