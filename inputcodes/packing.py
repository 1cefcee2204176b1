"""Conversations as rows of block_size positions, for fine-tuning.

An example of L tokens is L - 1 positions, each with the next token as its target; only targets
that an assistant says have a loss. Examples are packed whole, several to a row where they fit, and
padding fills the row. Examples in one row do not attend to each other, and each counts its
positions from 0 (`segment_layout`), so its loss is what it would be in a row of its own.

An example longer than block_size + 1 tokens loses its end, and one that has no target then (its
prompt fills the context) is left out. Both are counted.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inputcodes.documents import response_mask
from inputcodes.loss import IGNORED
from inputcodes.tokenizer import TokenIds, Tokenizer

PADDING = -1  # the segment of the positions that no example fills


class Layout(NamedTuple):
    """Where the tokens of rows that hold several texts stand, and what they attend to.

    `positions` (B, T) int64, below block_size; `attends` (B, 1, T, T) bool, [b, 0, i, j] being
    whether token i attends to token j.
    """

    positions: Tensor
    attends: Tensor


def segment_layout(segments: Tensor, positions: Tensor) -> Layout:
    """A token attends to what precedes it in its own segment and in segment 0, and to itself.

    segments, positions (B, T) int64. Segment 0 is what the others share: the prompt of several
    answers; texts that have nothing to do with each other are segments 1, 2, ...
    """
    index = torch.arange(segments.shape[1], device=segments.device)
    keys = segments.unsqueeze(1)  # (B, 1, T)
    related = (segments.unsqueeze(2) == keys) | (keys == 0)  # (B, T, T)
    return Layout(positions, (related & (index <= index.unsqueeze(1))).unsqueeze(1))


class ChatRows:
    """The examples of a split in rows of `block_size` positions, the same rows every time.

    Attributes: `count` rows; `examples` in them; `cut` of those, `left_out` besides. `stride`
    is how far apart rows are numbered (see data.BatchOrder).
    """

    stride = 1

    def __init__(self, tokens: TokenIds, tokenizer: Tokenizer, block_size: int) -> None:
        self._tokens, self._padding = tokens, tokenizer.end_of_text
        self.tokens, self.block_size = len(tokens), block_size
        self._says = response_mask(tokenizer, tokens)
        ends = np.flatnonzero(tokens == tokenizer.end_of_text)
        starts = np.concatenate(([0], ends + 1))[:-1]
        positions = np.minimum(ends - starts - 1, block_size)
        bounds = np.stack((starts + 1, starts + 1 + positions), axis=1).ravel()
        targets = np.add.reduceat(self._says, bounds, dtype=np.int64)[::2]
        usable = (positions > 0) & (targets > 0)
        self._starts, self._positions = starts[usable], positions[usable]
        self._numbers = np.flatnonzero(usable)  # of the examples among the split's documents
        self.examples, self.document_count = len(self._starts), len(ends)
        self.cut = int((usable & (ends - starts - 1 > block_size)).sum())
        self.left_out = len(ends) - self.examples
        self._rows = pack(self._positions, block_size)
        self._targets = np.array([targets[usable][row].sum() for row in self._rows], dtype=int)
        self.count = len(self._rows)

    def __str__(self) -> str:
        noun = "conversation" if self.examples == 1 else "conversations"
        return f"{self.examples:,} {noun} ({self.cut:,} cut, {self.left_out:,} left out)"

    def too_few(self, split: str) -> str:
        return (
            f"in none of {self.left_out:,} {split} conversations does a reply begin within"
            f" block_size={self.block_size} tokens: shorten their prompts, or train a new model"
            " with a larger one"
        )

    def read(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        """Inputs, targets, segments and positions, each (len(numbers), block_size) int64."""
        shape = len(numbers), self.block_size
        x, y = np.full(shape, self._padding), np.full(shape, IGNORED)
        segments, positions = np.full(shape, PADDING), np.zeros(shape, dtype=np.int64)
        for row, number in enumerate(numbers):
            first = 0
            for segment, example in enumerate(self._rows[number], start=1):
                start, length = self._starts[example], self._positions[example]
                here, there = slice(first, first + length), slice(start + 1, start + 1 + length)
                x[row, here] = self._tokens[start : start + length]
                y[row, here] = self._tokens[there]
                y[row, here][~self._says[there]] = IGNORED
                segments[row, here], positions[row, here] = segment, np.arange(length)
                first += length
        return x, y, segments, positions

    def documents(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of each target's document in the split, (len(numbers), block_size)."""
        documents = np.zeros((len(numbers), self.block_size), dtype=np.int64)
        for row, examples in zip(documents, (self._rows[n] for n in numbers), strict=True):
            filled = int(self._positions[examples].sum())
            row[:filled] = np.repeat(self._numbers[examples], self._positions[examples])
        return documents

    def targets(self, numbers: NDArray[np.int64]) -> int:
        """How many targets of these rows have a loss."""
        return int(self._targets[numbers].sum())

    def validation(self, max_targets: int) -> NDArray[np.int64]:
        """A fixed choice of rows with at most `max_targets` (0: all of the rows)."""
        # Packed rows are sorted by length; the first ones would be of long examples alone.
        shuffled = np.random.RandomState(0).permutation(self.count)
        return shuffled[np.cumsum(self._targets[shuffled]) <= (max_targets or self.tokens)]


def pack(lengths: NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Rows of indices whose lengths (each 1 to `capacity`) add up to at most `capacity`.

    Best fit, longest first: each goes to the row that it leaves the least room in.
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows by the room they have
    rooms = 0  # bit r is set while a row has room r: the search is one shift
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        if fitting := rooms >> length:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            rooms &= ~(1 << room) if not with_room[room] else ~0
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        if left := room - length:
            with_room[left].append(row)
            rooms |= 1 << left
    return rows
