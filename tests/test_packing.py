"""Packed rows: every example once, whole and alone; cuts and omissions counted."""

import numpy as np
import pytest
import torch

from inputcodes.data import Batch, TrainingData, validation_batches
from inputcodes.distributed import Processes
from inputcodes.documents import encode_turns
from inputcodes.loss import IGNORED
from inputcodes.packing import ChatRows, pack
from inputcodes.tokenizer import Tokenizer
from model import GPT, GPTConfig

TOKENIZER = Tokenizer(256)
CPU = Processes(torch.device("cpu"))
T = 32


def stream_of(pairs: list[tuple[str, str]]) -> np.ndarray:
    """Prompts and responses as the tokens of a shard; an example is both and 4 marks long."""
    parts = []
    for pair in pairs:
        turns = list(zip(("user", "assistant"), pair, strict=True))
        parts += [encode_turns(TOKENIZER, turns), [TOKENIZER.end_of_text]]
    return np.concatenate(parts).astype(np.uint16)


def rows_of(pairs: list[tuple[str, str]]) -> ChatRows:
    return ChatRows(stream_of(pairs), TOKENIZER, T)


def random_pairs(count: int, seed: int) -> list[tuple[str, str]]:
    rng = np.random.default_rng(seed)
    return [("p" * rng.integers(1, 9), "r" * rng.integers(1, 15)) for _ in range(count)]


def batch_of(rows: ChatRows) -> Batch:
    """All rows at once."""
    return next(validation_batches(rows, 0, rows.count, CPU))


@pytest.mark.parametrize("capacity", [7, 32, 1000])
def test_packing_keeps_every_length_once_and_wastes_little(capacity):
    rng = np.random.default_rng(capacity)
    lengths = rng.integers(1, capacity + 1, size=500)
    rows = pack(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(500))
    sums = [int(lengths[row].sum()) for row in rows]
    assert max(sums) <= capacity
    assert len(rows) < 1.03 * lengths.sum() / capacity + 1  # uniform lengths pack almost perfectly
    assert pack(lengths, capacity) == rows


def test_packing_is_best_fit_longest_first():
    """Against the same rule by search, on small cases with many ties."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = rng.integers(1, 11, size=12)
        rooms: list[int] = []
        for length in sorted(lengths, reverse=True):
            fitting = [room for room in rooms if room >= length]
            if fitting:
                rooms.remove(min(fitting))
            rooms.append((min(fitting) if fitting else 10) - length)
        found = [10 - int(lengths[row].sum()) for row in pack(lengths, 10)]
        assert sorted(found) == sorted(rooms)


def test_rows_hold_every_example_with_its_responses_as_targets():
    pairs = random_pairs(60, seed=1)
    rows = rows_of(pairs)
    assert (rows.examples, rows.cut, rows.left_out) == (60, 0, 0)
    x, y, segments, positions = rows.read(np.arange(rows.count))
    seen = []
    for row in range(rows.count):
        for segment in set(segments[row]) - {-1}:
            here = segments[row] == segment
            assert positions[row, here].tolist() == list(range(here.sum()))
            text = TOKENIZER.decode([*x[row, here], TOKENIZER.special["<|endofturn|>"]])
            prompt, response = text.removesuffix("<|endofturn|>").split("<|endofturn|>")
            seen.append((prompt.removeprefix("<|user|>"), response.removeprefix("<|assistant|>")))
            targets = [token for token in y[row, here] if token != IGNORED]
            assert TOKENIZER.decode(targets) == seen[-1][1] + "<|endofturn|>"
        assert set(y[row, segments[row] == -1]) <= {IGNORED}
    assert sorted(seen) == sorted(pairs)
    total = sum(len(response) + 1 for _, response in pairs)
    assert rows.targets(np.arange(rows.count)) == total == (y != IGNORED).sum()


def test_long_examples_are_cut_and_those_without_a_response_left_out():
    fits = ("p" * 10, "r" * (T + 1 - 14))
    longer = ("p" * 10, "r" * (T + 2 - 14))
    no_response = ("p" * (T - 2), "r")
    rows = rows_of([fits, longer, no_response, fits])
    assert (rows.examples, rows.cut, rows.left_out) == (3, 1, 1)
    assert str(rows) == "3 conversations (1 cut, 1 left out)"
    assert str(rows_of([fits])) == "1 conversation (0 cut, 0 left out)"
    x, y, *_ = rows.read(np.arange(3))
    ends = (y == TOKENIZER.special["<|endofturn|>"]).sum(axis=1)
    assert sorted(ends) == [0, 1, 1]  # the cut one is not taught to end
    assert (y != IGNORED).sum() == 2 * (len(fits[1]) + 1) + len(longer[1])
    assert {len(row) for row in x} == {T}


def test_the_loss_of_an_example_does_not_depend_on_its_neighbours():
    """With its neighbours and the padding replaced, and alone: the same nats up to rounding."""
    gpt = GPT(GPTConfig(vocab_size=256, block_size=T, n_layer=2, n_head=2, n_embd=32), seed=0)
    rows = rows_of([("first", "one"), ("second", "two"), ("ab", "x")])
    assert rows.count == 1
    (x, y, layout, *_), segments = batch_of(rows), torch.from_numpy(rows.read(np.arange(1))[2])

    def nats(ids: torch.Tensor, segment: int) -> float:
        targets = y.masked_fill(segments != segment, IGNORED).flatten()
        logits = gpt(ids, layout=layout).flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()

    for segment in (1, 2, 3):
        own = segments == segment
        altered = torch.where(own, x, ord("Z"))
        assert nats(altered, segment) == pytest.approx(nats(x, segment), rel=1e-6)
        logits = gpt(x[own][None])[0]
        alone = torch.nn.functional.cross_entropy(logits, y[own], reduction="sum").item()
        assert nats(x, segment) == pytest.approx(alone, rel=1e-5)
        other = segment % 3 + 1
        assert abs(nats(altered, other) - nats(x, other)) > 1e-3  # the change was one


def test_what_a_step_learns_does_not_depend_on_the_processes():
    rows = rows_of(random_pairs(80, seed=2))
    training = TrainingData(rows, batch_size=4, seed=1)
    alone = training.batches(5, CPU)
    pair = [training.batches(5, Processes(CPU.device, rank, 2)) for rank in range(2)]
    for m in range(5, 12):
        whole, halves = next(alone), [next(stream) for stream in pair]
        assert torch.equal(whole.x, torch.cat([half.x for half in halves]))
        assert torch.equal(whole.y, torch.cat([half.y for half in halves]))
        assert whole.targets == sum(half.targets for half in halves) == training.targets(m, 1)
        assert whole.targets == int((whole.y != IGNORED).sum())
    epoch = training.order.rows(0, rows.count)
    assert sorted(epoch) == list(range(rows.count))


def test_every_target_has_its_document():
    """Examples left out keep their number; those read are told apart by their prompts."""
    pairs = [(chr(ord("A") + number), "r" * (1 + number % 5)) for number in range(40)]
    pairs[7] = ("H" * T, "r")  # without a target in the context, so left out
    rows = rows_of(pairs)
    x, _, segments, _ = rows.read(np.arange(rows.count))
    documents = rows.documents(np.arange(rows.count))
    prompts = np.isin(x, [ord(prompt[0]) for prompt, _ in pairs])
    responses = np.isin(x, [ord("r")])
    prompts &= ~responses
    assert sorted(documents[prompts]) == [n for n in range(40) if n != 7]
    assert (documents[prompts] == x[prompts] - ord("A")).all()
    for row in range(rows.count):
        for segment in set(segments[row]) - {-1}:
            assert len(set(documents[row, segments[row] == segment])) == 1
    assert batch_of(rows).documents.shape == batch_of(rows).y.shape


@pytest.mark.parametrize("limit", [0, 50, 10_000])
def test_validation_is_a_fixed_choice_of_rows(limit):
    rows = rows_of(random_pairs(80, seed=3))
    batches = [list(validation_batches(rows, limit, 3, Processes(CPU.device, rank, 2)))
               for rank in range(2)]  # fmt: skip
    targets = sum(batch.targets for share in batches for batch in share)
    everything = rows.targets(np.arange(rows.count))
    assert targets == everything if limit != 50 else 20 < targets <= 50
    assert len(rows.validation(everything)) == rows.count
    chosen = rows.validation(50)  # not the first rows, which hold the longest examples
    assert set(chosen) != set(range(len(chosen)))
    again = list(validation_batches(rows, limit, 1000, CPU))
    assert sum(batch.targets for batch in again) == targets
