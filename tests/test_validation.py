"""Losses by document against one sequence at a time, the bigram against dictionaries."""

import collections
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from inputcodes import validation
from inputcodes.configurator import UserError
from inputcodes.data import DataSet, TrainingData
from inputcodes.distributed import Processes
from inputcodes.documents import encode_turns
from inputcodes.packing import ChatRows
from inputcodes.tokenizer import Tokenizer
from inputcodes.validation import Bigram, Evaluation, validate
from model import GPT, GPTConfig
from tests.helpers import write_data_set

CPU = Processes(torch.device("cpu"))
END = Tokenizer(256).end_of_text
T = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """300 training tokens, and 5 validation documents of different lengths in 2 shards.

    The end of the last one is the last target.
    """
    path = tmp_path_factory.mktemp("data") / "five"
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"abcdefgh", dtype=np.uint8)
    parts = [np.append(rng.choice(letters, size=n), END) for n in (40, 7, 25, 60, 8)]
    val = np.concatenate(parts).astype(np.uint16)
    write_data_set(path, [rng.choice(letters, size=300).astype(np.uint16)], [val[:70], val[70:]])
    return DataSet(path)


@pytest.fixture(scope="module")
def gpt():
    config = GPTConfig(vocab_size=256, block_size=T, n_layer=1, n_head=1, n_embd=16)
    return GPT(config, seed=0)


class NaiveBigram:
    """Witten-Bell by its definition, one pair at a time, in dictionaries."""

    def __init__(self, pairs, vocab_size):
        self.pairs, self.V = collections.Counter(pairs), vocab_size
        self.single = collections.Counter(y for _, y in pairs)

    def p(self, x, y):
        tokens, kinds = sum(self.single.values()), len(self.single)
        unigram = (self.single[y] + kinds / self.V) / (tokens + kinds)
        followers = {b: n for (a, b), n in self.pairs.items() if a == x}
        if not followers:
            return unigram
        seen, kinds = sum(followers.values()), len(followers)
        return (followers.get(y, 0) + kinds * unigram) / (seen + kinds)


@pytest.mark.parametrize("sequences", [1, 7, 1000])
def test_the_bigram_is_witten_bell_on_what_the_run_has_read(data, sequences, monkeypatch):
    monkeypatch.setattr(validation, "CHUNK_TOKENS", 3 * T)
    training = TrainingData(data.rows("train", T), 4, seed=5)
    bigram = Bigram(training, 256)
    for step in {1, sequences // 2 + 1, sequences}:  # in pieces, as a run evaluates
        bigram.count(step)
    read = training.order.rows(0, min(sequences, training.order.count))  # an epoch at most
    stream = np.concatenate(data.train.shards).astype(int)
    pairs = [(stream[s + i], stream[s + i + 1]) for s in read for i in range(T)]
    naive = NaiveBigram(pairs, 256)
    text = np.concatenate(data.val.shards).astype(np.int64)
    x, y = text[:-1], text[1:]
    expected = -sum(math.log(naive.p(a, b)) for a, b in zip(x, y, strict=True))
    assert bigram.nats(x, y) == pytest.approx(expected, rel=1e-7)
    # exact, in whichever order and parts
    assert bigram.nats(x, y) == sum(bigram.nats(x[i::3], y[i::3]) for i in (2, 0, 1))
    for context in (pairs[0][0], END):  # one seen, one not
        total = sum(math.exp(-bigram.nats(np.array([context]), np.array([y]))) for y in range(256))
        assert total == pytest.approx(1)


def test_the_bigram_of_conversations_counts_what_the_assistant_says():
    tokenizer, parts = Tokenizer(256), []
    for prompt, response in (("ab", "c"), ("b", "cab"), ("a", "bb")):
        ids = encode_turns(tokenizer, [("user", prompt), ("assistant", response)])
        parts += [*ids, END]
    rows = ChatRows(np.array(parts, dtype=np.uint16), tokenizer, T)
    bigram = Bigram(TrainingData(rows, 1, seed=5), 256)
    bigram.count(rows.count)
    starts, end = tokenizer.special["<|assistant|>"], tokenizer.special["<|endofturn|>"]
    said = [[starts, *text, end] for text in (b"c", b"cab", b"bb")]
    naive = NaiveBigram([pair for one in said for pair in itertools.pairwise(one)], 256)
    x, y = np.divmod(np.arange(90 * 256, 100 * 256), 256)  # ten contexts, three of them seen
    expected = -sum(math.log(naive.p(a, b)) for a, b in zip(x, y, strict=True))
    assert bigram.nats(x, y) == pytest.approx(expected, rel=1e-7)


def test_a_bigram_that_has_counted_nothing_guesses(data):
    bigram = Bigram(TrainingData(data.rows("train", T), 4, seed=5), 256)
    bigram.count(0)
    x = np.arange(97, 104)
    assert bigram.nats(x, x + 1) == pytest.approx(7 * math.log(256))


def test_the_bigram_counts_no_more_than_its_limit(data, monkeypatch):
    training = TrainingData(data.rows("train", T), 4, seed=5)
    few, all_of_it = Bigram(training, 256), Bigram(training, 256)
    few.count(3)
    monkeypatch.setattr(validation, "MOST_COUNTED", 3 * T + 1)
    all_of_it.count(17)
    x = np.arange(97, 104)
    assert all_of_it.nats(x, x + 1) == few.nats(x, x + 1)


@torch.no_grad()
def test_the_loss_by_document_is_that_of_its_targets(data, gpt):
    text = np.concatenate(data.val.shards).astype(int)
    document = np.concatenate(([0], np.cumsum(text == END)[:-1]))  # of each token
    nats, tokens = np.zeros(5), np.zeros(5, dtype=int)
    new, again = [], []
    for start in range(0, len(text) - T, T):
        window = torch.tensor(text[start : start + T + 1])
        losses = F.cross_entropy(gpt(window[None, :-1])[0], window[1:], reduction="none")
        np.add.at(nats, document[start + 1 : start + T + 1], losses.double().numpy())
        np.add.at(tokens, document[start + 1 : start + T + 1], 1)
        pairs = list(itertools.pairwise(window.tolist()))
        for i, loss in enumerate(losses.tolist()):
            (again if pairs[i] in pairs[:i] else new).append(loss)
    result = validate(gpt, data, 0, 3, CPU)
    assert [count for _, count in result.documents] == tokens.tolist()
    assert [n for n, _ in result.documents] == pytest.approx(nats.tolist(), rel=1e-5)
    assert result.loss == pytest.approx(nats.sum() / tokens.sum(), rel=1e-5)
    assert result.new == pytest.approx(np.mean(new), rel=1e-5)
    assert result.again == pytest.approx(np.mean(again), rel=1e-5)
    seen_bytes = sum(token != END for token in text[1 : tokens.sum() + 1])
    assert result.bits_per_byte == pytest.approx(nats.sum() / math.log(2) / seen_bytes, rel=1e-5)
    metrics = result.as_metrics()
    assert metrics["val_chance"] == math.log(256)
    assert "val_bigram" not in metrics
    assert sum(n for n, _ in metrics["val_documents"]) == pytest.approx(nats.sum(), abs=0.01)


def test_the_result_is_the_same_to_the_last_bit_however_many_share_the_work(data, gpt, monkeypatch):
    # Losses of as many bits as a sum has: added as they are, the order would matter.
    monkeypatch.setattr(validation, "token_nats", lambda x, w, targets: targets.double().sqrt())

    def result(world: int) -> Evaluation:
        sums: list[torch.Tensor] = []
        monkeypatch.setattr(Processes, "sum", lambda _, part: sums.append(part) or sum(sums))
        shares = [Processes(torch.device("cpu"), rank, world) for rank in range(world)]
        return [validate(gpt, data, 0, 1, share) for share in shares][-1]

    assert result(1) == result(2) == result(3)


def test_a_pair_came_before_where_it_stands_earlier_in_its_text():
    """Of few ids, 0 and the largest among them, so that many pairs are nearly alike."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(4, size=(2, 3, 40))
    texts = np.sort(rng.integers(7, size=(3, 40)))
    triples = list(zip(texts.flat, x.flat, y.flat, strict=True))
    expected = [triple in triples[:i] for i, triple in enumerate(triples)]
    assert validation.came_before(x, y, texts).ravel().tolist() == expected


def test_documents_share_entries_where_there_are_many(data, gpt, monkeypatch):
    whole = validate(gpt, data, 0, 3, CPU)
    monkeypatch.setattr(validation, "MOST_DOCUMENTS", 2)
    halves = validate(gpt, data, 0, 3, CPU)
    sums = [np.sum(whole.documents[:3], axis=0), np.sum(whole.documents[3:], axis=0)]  # of 6
    assert np.array(halves.documents) == pytest.approx(np.array(sums))
    assert halves.loss == pytest.approx(whole.loss)


@torch.no_grad()
def test_the_bigram_is_measured_on_the_targets_of_the_model(data, gpt):
    training = TrainingData(data.rows("train", T), 4, seed=5)
    bigram = Bigram(training, 256)
    bigram.count(10)
    text = np.concatenate(data.val.shards).astype(np.int64)
    starts = data.rows("val", T).validation(0)
    places = np.concatenate([start + np.arange(T) for start in starts])
    expected = bigram.nats(text[places], text[places + 1]) / len(places)
    result = validate(gpt, data, 0, 3, CPU, bigram=bigram)
    assert result.as_metrics()["val_bigram"] == pytest.approx(expected)
    assert f"(bigram {expected:.4f})" in str(result)


def test_a_loss_that_is_not_finite_is_refused(data):
    gpt = GPT(GPTConfig(vocab_size=256, block_size=T, n_layer=1, n_head=1, n_embd=16), seed=0)
    with torch.no_grad():
        gpt.head.weight[3, 3] = math.nan
    with pytest.raises(UserError, match=r"validation loss on .*five is nan: the weights are"):
        validate(gpt, data, 0, 3, CPU)
