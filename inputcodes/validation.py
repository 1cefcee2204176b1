"""The validation loss of a model, by document, beside what counting would give.

A loss is judged against two others on the same targets: chance (ln V), and a bigram made of counts
of the very tokens that the run has been trained on so far, each once (Witten and Bell 1991: a pair
that was rarely or never seen falls back on the frequency of its second token, and that on 1 / V).

Windows hold block_size targets each, and the first target of a window is predicted from one token
alone: losses are those of a model that reads block_size tokens at a time, without overlap.

The loss is divided, too: over targets that have followed the same token earlier in their window (of
conversations: in their own, prompts included), which a model can copy (Olsson et al. 2022), and
over all others.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inputcodes.configurator import UserError
from inputcodes.data import Batch, DataSet, TrainingData, validation_batches
from inputcodes.distributed import Processes, Stop, autocast
from inputcodes.loss import token_nats
from model import GPT

MOST_COUNTED = 2**25  # training tokens that the bigram counts at most
MOST_DOCUMENTS = 256  # entries of val_documents; in larger sets neighbours share one
CHUNK_TOKENS = 2**20  # training tokens read at a time


@dataclass(frozen=True)
class Evaluation:
    """The validation result of some weights; losses are in nats per token.

    `documents` are the (nats, tokens) of each validation document with a target, in their order.
    """

    loss: float
    bits_per_byte: float
    chance: float = math.nan
    bigram: float | None = None  # None if there is no training data to count
    documents: tuple[tuple[float, int], ...] = ()
    new: float | None = None  # the loss on targets that are new behind their token, in the window
    again: float | None = None  # and on those that are not; None if there are no such targets

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))  # the largest that a float holds

    def as_metrics(self) -> dict[str, Any]:
        names = ("loss", "perplexity", "bits_per_byte", "chance", "bigram", "new", "again")
        values = {f"val_{name}": getattr(self, name) for name in names}
        known = {name: value for name, value in values.items() if value is not None}
        return known | {"val_documents": [[round(n, 3), count] for n, count in self.documents]}

    def __str__(self) -> str:
        counted = "" if self.bigram is None else f" (bigram {self.bigram:.4f})"
        return f"val loss {self.loss:.4f}{counted}, {self.bits_per_byte:.4f} bits per byte"


class Bigram:
    """Counts of the token pairs (input, target) that a run has been trained on.

    Pairs are kept as sorted numbers input * V + target beside their counts, so memory follows the
    text, not V squared.
    """

    def __init__(self, training: TrainingData, vocab_size: int) -> None:
        self._training, self.vocab_size = training, vocab_size
        self._pairs = np.empty(0, dtype=np.int64)
        self._counts: NDArray[Any] = np.empty(0)
        self._sequences = 0  # counted so far

    def count(self, sequences: int) -> None:
        """Count on to the first `sequences` of the run: of its first epoch, up to MOST_COUNTED."""
        rows, order = self._training.rows, self._training.order
        sequences = min(sequences, order.count, MOST_COUNTED // rows.block_size)
        step = max(1, CHUNK_TOKENS // rows.block_size)
        fresh = []
        for first in range(self._sequences, sequences, step):
            numbers = order.rows(first, min(step, sequences - first))
            x, y = rows.read(numbers)[:2]
            fresh.append((x * self.vocab_size + y)[y >= 0])
        if fresh:
            self._add(*np.unique(np.concatenate(fresh), return_counts=True))
        self._sequences = max(self._sequences, sequences)

    def _add(self, pairs: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        all_counts = np.concatenate((self._counts, counts))
        self._pairs, places = np.unique(np.concatenate((self._pairs, pairs)), return_inverse=True)
        self._counts = np.bincount(places, all_counts)
        # What every probability needs: by context its occurrences and its kinds of successors.
        V = self.vocab_size
        contexts, successors = self._pairs // V, self._pairs % V
        self._seen = np.bincount(contexts, weights=self._counts, minlength=V)
        self._kinds = np.bincount(contexts, minlength=V)
        single = np.bincount(successors, weights=self._counts, minlength=V)
        kinds = np.count_nonzero(single)
        self._unigram = (single + kinds / V) / (single.sum() + kinds)

    def nats(self, x: NDArray[np.int64], y: NDArray[np.int64]) -> float:
        """The sum of -log p(y | x) over pairs of tokens, each (N,)."""
        p = np.full(len(x), 1 / self.vocab_size)
        if len(self._pairs):
            pairs = x * self.vocab_size + y
            places = np.minimum(np.searchsorted(self._pairs, pairs), len(self._pairs) - 1)
            counts = np.where(self._pairs[places] == pairs, self._counts[places], 0)
            # (count + kinds * unigram) / (seen + kinds); an unseen context leaves the unigram.
            kinds = np.maximum(self._kinds[x], 1)
            p = (counts + kinds * self._unigram[y]) / (self._seen[x] + kinds)
        return float(rounded(-np.log(p)).sum())


@torch.no_grad()
def validate(
    model: GPT,
    data: DataSet,
    max_tokens: int,
    batch_size: int,
    processes: Processes,
    dtype: str = "float32",
    bigram: Bigram | None = None,
    stop: Stop | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluate on `max_tokens` (0: all) validation tokens, `batch_size` windows at a time.

    Of conversations the tokens that an assistant says count. All processes share the work; sums and
    counts are reduced separately and divided at the end. `tick` is called for each batch.
    """
    rows = data.rows("val", model.config.block_size)
    bytes_of = data.tokenizer.token_bytes()  # (V,)
    documents = rows.document_count
    entries = min(documents, MOST_DOCUMENTS)
    sums = np.zeros((2, entries + 2))  # nats and tokens: by document, of new targets, of others
    text_bytes, counted_nats = 0, 0.0
    for batch in validation_batches(rows, max_tokens, batch_size, processes):
        if stop and stop.asked():
            break
        tick()
        with autocast(dtype, processes.device):
            nats = target_nats(model, batch)
        assert batch.documents is not None, "validation batches name their documents"
        x, y, whose = (ids.cpu().numpy() for ids in (batch.x, batch.y, batch.documents))
        kept = (y >= 0).ravel()
        seen_with = whose if batch.layout else np.arange(len(x))[:, None]  # else the whole row
        again = entries + came_before(x, y, seen_with).ravel()[kept]
        x, y = x.ravel()[kept], y.ravel()[kept]
        whose = whose.ravel()[kept] * entries // documents
        for total, weights in zip(sums, (nats[kept], None), strict=True):
            total += np.bincount(whose, weights, minlength=entries + 2)
            total += np.bincount(again, weights, minlength=entries + 2)
        text_bytes += int(bytes_of[y].sum())
        counted_nats += bigram.nats(x, y) if bigram else 0.0
    if stop:
        stop.check()
        stop.check()  # hears the answer to the first
    parts = torch.from_numpy(np.concatenate((sums.ravel(), [text_bytes, counted_nats])))
    *both, total_bytes, counted_nats = processes.sum(parts).tolist()
    *nats_of, nats_new, nats_again = both[: entries + 2]
    *tokens_of, tokens_new, tokens_again = both[entries + 2 :]
    total_nats, total_tokens = sum(nats_of), sum(tokens_of)
    if not math.isfinite(total_nats):
        raise UserError(
            f"the validation loss on {data.path} is {total_nats / total_tokens}: the weights are"
            " damaged, or training has diverged (a lower learning_rate or weight_decay may help)"
        )
    return Evaluation(
        loss=total_nats / total_tokens,
        bits_per_byte=total_nats / math.log(2) / max(total_bytes, 1),
        chance=math.log(model.config.vocab_size),
        bigram=counted_nats / total_tokens if bigram else None,
        documents=tuple((n, int(t)) for n, t in zip(nats_of, tokens_of, strict=True) if t),
        new=nats_new / tokens_new if tokens_new else None,
        again=nats_again / tokens_again if tokens_again else None,
    )


def came_before(
    x: NDArray[np.int64], y: NDArray[np.int64], texts: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether the pair of x (B, T) and what follows it has come before in its text, (B, T).

    `texts`, (B, T) or (B, 1), are the numbers of the texts that the tokens are in. What follows is
    the target y (B, T), or the next x where that is IGNORED.
    """
    y = np.where(y < 0, np.roll(x, -1, axis=1), y)
    span = 1 + max(x.max(), y.max())
    keys = (texts * span + x) * span + y  # one for each text, x and y
    before = np.ones(x.shape, dtype=bool)
    before.flat[np.unique(keys, return_index=True)[1]] = False  # the first of each
    return before


def target_nats(model: GPT, batch: Batch) -> NDArray[np.float64]:
    """The loss of every target of a batch in nats, (B * T,); 0 where there is none."""
    states = model.hidden(batch.x, layout=batch.layout).flatten(0, 1)
    return rounded(token_nats(states, model.head.weight, batch.y.flatten()).cpu().double().numpy())


def rounded(nats: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each rounded to a multiple of 2^-24, so that sums are exact, whichever process adds what."""
    return np.rint(nats * 2**24) / 2**24
