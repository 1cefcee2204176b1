"""Log-likelihoods of a task's options, and what follows from them.

An item is one row of tokens: the prompt, then its options. Every option sees the prompt and
itself, and counts its positions from the end of the prompt (model.segment_layout), so the keys and
values of the prompt are computed once for all of them, and what an option gets is what it would
get alone. Prompt and options are encoded apart.

A prompt that leaves too little room in the context loses its left end, for each option as much as
that option needs, as in lm-evaluation-harness; options that then see different prompts get a row
each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from inputcodes.distributed import Processes
from inputcodes.loss import token_nats
from inputcodes.tasks import Item
from inputcodes.tokenizer import Tokenizer
from model import GPT, Layout, segment_layout


@dataclass(frozen=True)
class Row:
    """A prompt and options that follow it: their tokens, and each option's place in the result."""

    prompt: tuple[int, ...]
    options: list[tuple[int, tuple[int, ...]]]

    @property
    def length(self) -> int:
        """Positions taken: the last token of an option is a target alone."""
        return len(self.prompt) + sum(len(ids) - 1 for _, ids in self.options)


@dataclass(frozen=True)
class Scores:
    """Nats of every option of every item, the options of an item one after the other.

    `nats` (P,) float64, `tokens` (P,); `truncated` items lost a part of their prompt.
    """

    items: Sequence[Item]
    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]
    truncated: int


@torch.no_grad()
def score(
    model: GPT,
    tokenizer: Tokenizer,
    items: Sequence[Item],
    batch_size: int,
    processes: Processes,
    title: str,
) -> Scores:
    """Score all options of all items, `batch_size` rows at a time, shared by all processes.

    Batches are the same for any number of processes. The caller decides about autocast.
    """
    rows, tokens, truncated = make_rows(tokenizer, items, model.config.block_size)
    rows.sort(key=lambda row: -row.length)  # rows of a batch hardly differ, the longest first
    batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    mine = batches[processes.rank :: processes.world]
    nats = np.zeros(len(tokens))
    bar = tqdm(mine, desc=title, unit="batch", ncols=80, disable=not processes.first, leave=False)
    for batch in bar:
        ids, layout, places, targets, options = to_tensors(batch, processes.device)
        states = model.hidden(ids, layout=layout)[places]  # (N, C)
        found = token_nats(states, model.head.weight, targets)
        nats += np.bincount(options, weights=found.cpu().numpy(), minlength=len(nats))
    if processes.world > 1:
        nats = processes.sum(torch.from_numpy(nats)).cpu().numpy()
    return Scores(items, nats, tokens, truncated)


def make_rows(
    tokenizer: Tokenizer, items: Sequence[Item], block_size: int
) -> tuple[list[Row], NDArray[np.int64], int]:
    """The rows of all items, the tokens of every option, and how many items were truncated."""
    rows: list[Row] = []
    tokens: list[int] = []
    truncated = 0
    for item in items:
        # The harness, too, moves spaces at the end of a prompt to the options.
        text = item.prompt.rstrip()
        prompt = tokenizer.encode(text)
        by_prompt: dict[tuple[int, ...], Row] = {}
        cut = False
        for option in item.options:
            ids = tokenizer.encode(item.prompt[len(text) :] + " " + option)
            whole = (*prompt, *ids)[-(block_size + 1) :]  # the last token is not read
            seen = max(1, len(whole) - len(ids))
            row = by_prompt.setdefault(whole[:seen], Row(whole[:seen], []))
            row.options.append((len(tokens), whole[seen:]))
            cut |= len(whole) < len(prompt) + len(ids)
            tokens.append(len(whole) - seen)
        rows += by_prompt.values()
        truncated += cut
    return rows, np.array(tokens), truncated


def to_tensors(
    batch: Sequence[Row], device: torch.device
) -> tuple[Tensor, Layout, tuple[Tensor, Tensor], Tensor, NDArray[np.int64]]:
    """Rows as ids (B, T) and their layout; the places (N,), (N,) whose states predict the tokens
    of options, those tokens (N,), and the option that each belongs to (N,).
    """
    T = max(row.length for row in batch)
    ids, segments, positions = (torch.zeros(len(batch), T, dtype=torch.int64) for _ in range(3))
    where: list[tuple[int, int, int, int]] = []  # row, place, target, option
    for b, row in enumerate(batch):
        end = len(row.prompt)
        ids[b, :end] = torch.tensor(row.prompt)
        positions[b, :end] = torch.arange(end)
        for segment, (option, tokens) in enumerate(row.options, start=1):
            here = slice(end, end + len(tokens) - 1)
            ids[b, here] = torch.tensor(tokens[:-1], dtype=torch.int64)
            segments[b, here] = segment
            positions[b, here] = torch.arange(len(tokens) - 1) + len(row.prompt)
            places = [len(row.prompt) - 1, *range(here.start, here.stop)]
            where += [
                (b, place, token, option) for place, token in zip(places, tokens, strict=True)
            ]
            end = here.stop
        segments[b, end:] = -1  # padding
    rows, columns, targets, options = torch.tensor(where).T
    ids, segments, positions = (array.to(device) for array in (ids, segments, positions))
    layout = segment_layout(segments, positions)
    return ids, layout, (rows.to(device), columns.to(device)), targets.to(device), options.numpy()


def accuracy(scores: Scores) -> dict[str, Any]:
    """`acc`: how often the gold option is the likeliest; `acc_norm`: in nats a byte of its text.

    With the items, standard errors, and what guessing would give. Ties go to the first option.
    """
    plain, normed, chances = [], [], []
    start = 0
    for item in scores.items:
        nats = scores.nats[start : start + len(item.options)]
        start += len(item.options)
        text_bytes = np.array([max(1, len(option.encode())) for option in item.options])
        plain.append(int(np.argmin(nats)) == item.gold)
        normed.append(int(np.argmin(nats / text_bytes)) == item.gold)
        chances.append(1 / len(item.options))
    return {
        "items": len(scores.items),
        "acc": float(np.mean(plain)),
        "acc_stderr": standard_error(np.array(plain, dtype=float)),
        "acc_norm": float(np.mean(normed)),
        "acc_norm_stderr": standard_error(np.array(normed, dtype=float)),
        "chance": float(np.mean(chances)),
        "truncated": scores.truncated,
    }


def perplexity(scores: Scores) -> dict[str, Any]:
    """e to the mean nats of all answer tokens, with its standard error over the items.

    The error is that of a ratio of sums, taken to the exponential (the delta method).
    """
    mean = float(scores.nats.sum() / scores.tokens.sum())
    residuals = (scores.nats - mean * scores.tokens) / scores.tokens.mean()
    error = standard_error(residuals)
    value = math.exp(min(mean, 700.0))  # the largest that a float holds
    return {
        "items": len(scores.items),
        "tokens": int(scores.tokens.sum()),
        "perplexity": value,
        "perplexity_stderr": None if error is None else value * error,
        "truncated": scores.truncated,
    }


def standard_error(values: NDArray[np.float64]) -> float | None:
    """Of the mean of independent values; None for fewer than two."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
