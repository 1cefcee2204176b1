"""Batch order against brute force; damaged data sets are named and refused."""

import functools
import json
import os
from collections import Counter

import numpy as np
import pytest
import torch

from inputcodes.configurator import UserError
from inputcodes.data import BatchOrder, DataSet, Split, TextRows, TrainingData, validation_batches
from inputcodes.distributed import Processes
from inputcodes.documents import encode_turns
from inputcodes.files import file_sha256
from inputcodes.packing import ChatRows
from inputcodes.shards import summary
from inputcodes.tokenizer import Tokenizer
from tests.helpers import write_data_set

CPU = torch.device("cpu")


@pytest.fixture
def data_dir(tmp_path):
    """A data set whose stream is 0, 1, 2, ... (mod 256), in training shards of uneven sizes."""
    tokens = np.arange(1000) % 256
    write_data_set(tmp_path, np.split(tokens, [7, 8, 500]), [tokens[:203]])
    return tmp_path


def stream_of(tokens: int) -> Split:
    split = Split([], np.dtype(np.uint16), 255)
    split.tokens = tokens
    return split


def text_order(tokens: int, block_size: int, seed: int) -> BatchOrder:
    """The order in which a run reads a stream of so many tokens."""
    return TrainingData(TextRows(stream_of(tokens), block_size), 1, seed).order


def test_windows_read_across_shards(data_dir):
    split = DataSet(data_dir).train
    assert split.tokens == 1000
    starts = np.array([0, 5, 7, 8, 490, 980])
    expected = (starts[:, None] + np.arange(20)) % 256
    windows = split.windows(starts, 20)
    assert windows.dtype == np.int64
    assert windows.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("tokens", "block_size"), [(1000, 10), (1007, 10), (64, 32), (333, 7), (64, 2)]
)
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
    assert text_order(5000, 10, seed=2).rows(0, order.count).tolist() not in epochs.tolist()


def test_order_never_changes():
    """Published runs quote their seed: these values are fixed for good."""
    order = text_order(1000, 10, seed=1)
    assert order.rows(0, 5).tolist() == [15, 365, 395, 355, 655]
    assert order.rows(2 * order.count, 3).tolist() == [629, 529, 479]


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


def test_only_pinned_memory_is_copied_without_waiting(data_dir, monkeypatch):
    copy = torch.Tensor.to

    def checked(array, device, non_blocking=False):
        assert array.is_pinned() or not non_blocking
        return copy(array, device, non_blocking=non_blocking)

    monkeypatch.setattr(torch.Tensor, "to", checked)
    training = TrainingData(DataSet(data_dir).rows("train", 9), batch_size=4, seed=3)
    assert next(training.batches(0, Processes(CPU))).x.shape == (4, 9)


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
    rows = TextRows(stream_of(tokens), 10)
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
    assert rows.document_count == document + 1
    for number in rows.validation(max_tokens):
        (documents,) = rows.documents(np.array([number]))
        assert documents.tolist() == walked[number + 1 : number + 8]
    for batch in validation_batches(rows, max_tokens, 3, Processes(CPU)):
        assert batch.documents is not None
        text = batch.y != 255
        assert torch.equal(batch.documents[text], batch.y[text])


def test_too_little_data_is_refused(data_dir):
    few = "15 training tokens are too few for block_size=8: add text, or train a new model"
    with pytest.raises(UserError, match=few):
        TrainingData(TextRows(stream_of(15), 8), batch_size=1, seed=0)
    with pytest.raises(UserError, match="validation tokens are too few for block_size=203"):
        next(validation_batches(DataSet(data_dir).rows("val", 203), 0, 1, Processes(CPU)))
    tokenizer = Tokenizer(256)
    ids = encode_turns(tokenizer, [("user", "what?"), ("assistant", "that")])
    rows = ChatRows(np.append(ids, tokenizer.end_of_text), tokenizer, 4)
    with pytest.raises(UserError, match=r"none of 1 training conv.* block_size=4 .* new model"):
        TrainingData(rows, batch_size=1, seed=0)
    with pytest.raises(UserError, match=r"none of 1 validation conv.* block_size=4 .* larger"):
        next(validation_batches(rows, 0, 1, Processes(CPU)))
    for nothing in (TextRows(stream_of(0), 8), ChatRows(ids[:0], tokenizer, 8)):
        with pytest.raises(UserError, match="no text to validate: prepare it with"):
            next(validation_batches(nothing, 0, 1, Processes(CPU)))


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
        (lambda path: ((path / "meta.json").unlink(), (path / ".new").mkdir()), "is unfinished"),
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


def change_meta(path, change) -> None:
    meta = json.loads((path / "meta.json").read_text())
    change(meta)
    (path / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda meta: meta.update(vocab_size=300), "vocab_size 300, expected 256"),
        (lambda meta: meta.update(dtype="uint32"), "dtype 'uint32', expected 'uint16'"),
        (lambda meta: meta.update(settings={"chat": True}), "says chat=True, but .* plain texts"),
        (lambda meta: meta.update(data_sha256="0" * 64), "data_sha256 '000"),
        (
            lambda meta: meta["splits"]["train"].update(tokens=2000),
            "tokens of train 2000, exp.* 1000",
        ),
        (lambda meta: meta["splits"]["val"]["files"].pop(), "tokens of val 203, expected 0"),
        (lambda meta: meta["splits"]["train"]["files"].reverse(), "data_sha256"),
    ],
)
def test_a_meta_file_that_does_not_add_up_is_refused(data_dir, change, words):
    change_meta(data_dir, change)
    with pytest.raises(UserError, match=words):
        DataSet(data_dir)


def places_in(value, path=()):
    """Every place in nested JSON values, as the keys that lead to it."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places_in(inner, (*path, key))


DAMAGES = (None, True, -1, 10**400, float("inf"), "", "x\0", "a" * 300, [], {}, [{}], "left out")


def damaged(text: str, parents: list, last: str | int, value: object) -> str:
    meta = json.loads(text)
    holder = functools.reduce(lambda part, key: part[key], parents, meta)
    holder[last] = value
    if value == "left out":
        del holder[last]
    return json.dumps(meta)


def test_every_damage_to_meta_is_one_line(data_dir):
    """Whatever stands wherever: refused in one line, or it changes nothing that is used."""
    text = (data_dir / "meta.json").read_text()
    whole, refused = DataSet(data_dir), 0
    for *parents, last in places_in(json.loads(text)):
        for value in DAMAGES:
            (data_dir / "meta.json").write_text(damaged(text, parents, last, value))
            data, message = None, ""
            try:
                data = DataSet(data_dir)
            except UserError as error:
                message = str(error)
            if data:
                summary(data.path, data.meta)
                assert (data.vocab_size, data.chat) == (whole.vocab_size, whole.chat)
                assert (data.sha256, data.train.tokens) == (whole.sha256, whole.train.tokens)
            else:
                refused += 1
                assert len(message.splitlines()) == 1
                assert str(data_dir) in message
    assert refused > 300


def test_shards_are_verified_once(data_dir, monkeypatch):
    """Hashed at the first opening; later only files whose size or modification time changed."""
    hashed = []

    def count(path):
        hashed.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr("inputcodes.files.file_sha256", count)
    names = [f"train_{n:06d}.bin" for n in range(4)] + ["val_000000.bin"]
    DataSet(data_dir, verify=False)
    assert hashed == []
    DataSet(data_dir)
    assert hashed == names
    DataSet(data_dir)
    assert hashed == names
    file = data_dir / names[1]
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    DataSet(data_dir)
    assert hashed == [*names, names[1]]
    (data_dir / "verified.json").write_text("{")
    DataSet(data_dir)
    assert hashed == [*names, names[1], *names]
    flip_a_bit(data_dir)
    for _ in range(2):
        with pytest.raises(UserError, match="was altered"):
            DataSet(data_dir)


def test_split_of_no_shards_is_empty():
    assert Split([], np.dtype(np.uint16), 255).tokens == 0
