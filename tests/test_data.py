"""Batch order against brute force; damaged data sets are named and refused."""

from collections import Counter

import numpy as np
import pytest
import torch

from inputcodes.configurator import UserError
from inputcodes.data import BatchOrder, DataSet, Split, TextRows, TrainingData, validation_batches
from inputcodes.distributed import Processes
from inputcodes.tokenizer import Tokenizer
from tests.conftest import write_data_set

CPU = torch.device("cpu")


@pytest.fixture
def data_dir(tmp_path):
    """A data set whose stream is 0, 1, 2, ... (mod 256), in training shards of uneven sizes."""
    tokens = np.arange(1000) % 256
    write_data_set(tmp_path, np.split(tokens, [7, 8, 500]), [tokens[:203]])
    return tmp_path


def stream_of(tokens: int) -> Split:
    split = Split([])
    split.tokens = tokens
    return split


def text_order(tokens: int, block_size: int, seed: int) -> BatchOrder:
    """The order in which a run reads a stream of so many tokens."""
    return TrainingData(TextRows(stream_of(tokens), block_size, 255), 1, seed).order


def test_windows_read_across_shards(data_dir):
    split = DataSet(data_dir).train
    assert split.tokens == 1000
    starts = np.array([0, 5, 7, 8, 490, 980])
    expected = (starts[:, None] + np.arange(20)) % 256
    windows = split.windows(starts, 20)
    assert windows.dtype == np.int64
    assert windows.tolist() == expected.tolist()


@pytest.mark.parametrize(("tokens", "block_size"), [(1000, 10), (1007, 10), (64, 32), (333, 7)])
def test_an_epoch_uses_every_target_once(tokens, block_size):
    order = text_order(tokens, block_size, seed=3)
    for epoch in range(3):
        starts = order.rows(epoch * order.count, order.count)
        targets = Counter(int(s) + i for s in starts for i in range(1, block_size + 1))
        assert set(targets.values()) == {1}
        assert min(targets) >= 1
        assert max(targets) < tokens
        assert len(targets) > tokens - 2 * block_size


def test_order_is_a_function_of_seed_and_number():
    order = text_order(5000, 10, seed=1)
    whole = order.rows(0, 1500)  # three epochs
    again = text_order(5000, 10, seed=1)
    pieces = [again.rows(first, 7) for first in range(1001, 1500, 7)]
    assert np.concatenate(pieces)[:499].tolist() == whole[1001:].tolist()
    epochs = whole[: 3 * order.count].reshape(3, -1)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len(set(epochs[:, 0] % 10) | set(epochs[:, 1] % 10)) > 1, "a new offset every epoch"
    assert text_order(5000, 10, seed=2).rows(0, 1500).tolist() != whole.tolist()


def test_order_never_changes():
    """Published runs quote their seed: these values are fixed for good."""
    assert text_order(1000, 10, seed=1).rows(0, 5).tolist() == [15, 365, 395, 355, 655]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_each_micro_batch_in_order(data_dir, world):
    training = TrainingData(DataSet(data_dir).rows("train", 10), batch_size=4, seed=1)
    streams = [training.batches(3, Processes(CPU, rank, world)) for rank in range(world)]
    for m in (3, 4, 5):
        parts = [next(stream) for stream in streams]
        x, y = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        starts = training.order.rows(4 * m, 4)
        assert x.tolist() == ((starts[:, None] + np.arange(10)) % 256).tolist()
        assert y.tolist() == ((starts[:, None] + np.arange(1, 11)) % 256).tolist()


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(
    ("max_tokens", "windows"),
    [(0, range(20)), (10_000, range(20)), (55, [2, 6, 10, 14, 18]), (19, [10]), (190, None)],
)
def test_validation_is_the_same_windows_for_any_processes(data_dir, world, max_tokens, windows):
    rows = DataSet(data_dir).rows("val", 10)
    starts = []
    for rank in range(world):
        for batch in validation_batches(rows, max_tokens, 3, Processes(CPU, rank, world)):
            assert torch.equal((batch.x + 1) % 256, batch.y)
            assert batch.layout is None
            assert batch.targets == batch.y.numel()
            starts += batch.x[:, 0].tolist()
    windows = [w for w in range(20) if w != 9] if windows is None else windows
    assert sorted(starts) == [10 * window for window in windows]


@pytest.mark.parametrize("tokens", [11, 64, 1000, 12_347])
@pytest.mark.parametrize("max_tokens", [10, 37, 640, 5000])
def test_validation_windows_are_spread_evenly_over_the_split(tokens, max_tokens):
    rows = TextRows(stream_of(tokens), 10, 255)
    starts = rows.validation(max_tokens)
    assert len(starts) == min(max_tokens // 10, (tokens - 1) // 10)
    assert set(starts % 10) == {0}
    edges = np.concatenate(([0], starts + 5, [tokens - 1]))  # windows as their middles
    gaps = np.diff(edges)
    assert gaps.max() < tokens / len(starts) + 10
    assert gaps[1:-1].min(initial=tokens) > tokens / len(starts) - 20
    assert max(gaps[0], gaps[-1]) < tokens / len(starts) / 2 + 20


@pytest.mark.parametrize("max_tokens", [0, 60])
def test_every_validation_target_has_its_document(tmp_path, max_tokens):
    """Against a walk over the stream; documents of all lengths, empty ones included."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 40, size=30)
    numbered = [[int(number)] * length + [255] for number, length in enumerate(lengths)]
    stream = np.concatenate([*numbered, [30, 30]])  # the split ends within a document
    write_data_set(tmp_path, [stream], np.split(stream, [50, 51, 300]))
    walked, document = [], 0
    for token in stream:
        walked.append(document)
        document += token == 255
    rows = DataSet(tmp_path).rows("val", 7)
    for number in rows.validation(max_tokens):
        (documents,) = rows.documents(np.array([number]))
        assert documents.tolist() == walked[number + 1 : number + 8]
    for batch in validation_batches(rows, max_tokens, 3, Processes(CPU)):
        assert batch.documents is not None
        text = batch.y != 255
        assert torch.equal(batch.documents[text], batch.y[text])


def test_too_little_data_is_refused(data_dir):
    with pytest.raises(UserError, match="15 training tokens are too few for block_size=8"):
        TrainingData(TextRows(stream_of(15), 8, 255), batch_size=1, seed=0)
    with pytest.raises(UserError, match="do not fill one window of block_size=203"):
        next(validation_batches(DataSet(data_dir).rows("val", 203), 0, 1, Processes(CPU)))


def cut_a_shard(path):
    file = path / "train_000002.bin"
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(path):
    file = path / "val_000000.bin"
    raw = bytearray(file.read_bytes())
    raw[100] ^= 4
    file.write_bytes(raw)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_a_shard, "train_000002.bin holds 983 bytes, expected 984"),
        (flip_a_bit, "val_000000.bin was altered"),
        (lambda path: (path / "train_000001.bin").unlink(), "train_000001.bin is missing"),
        (lambda path: (path / "meta.json").unlink(), "no data set in"),
        (lambda path: (path / "meta.json").write_text('{"format"'), "meta.json is damaged"),
        (lambda path: (path / "meta.json").write_text('{"format": 9}'), "format 9, expected 1"),
        (lambda path: (path / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (
            lambda path: Tokenizer(300).save(path / "tokenizer.json"),
            "tokenizer.json is not the one",
        ),
    ],
)
def test_a_damaged_data_set_is_named_and_refused(data_dir, damage, words):
    DataSet(data_dir)
    damage(data_dir)
    with pytest.raises(UserError, match=words):
        DataSet(data_dir)


def test_split_of_no_shards_is_empty():
    assert Split([]).tokens == 0
