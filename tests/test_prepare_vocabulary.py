"""The vocabulary settings of prepare_data.py: combinations, lists of n-grams, and identity."""

import collections
import json
import re
from pathlib import Path

import pytest

import prepare_data
from inputcodes.configurator import UserError
from inputcodes.data import DataSet
from tests.helpers import documents


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A command that prepares 60 short documents as the data set `set`."""
    lines = [json.dumps({"text": text}) + "\n" for text in documents(60, seed=1)]
    (tmp_path / "texts.jsonl").write_text("".join(lines))
    return [
        "--source=files", f"--files={tmp_path}/texts.jsonl", "--dataset=set",
        f"--data_dir={tmp_path}", "--val_fraction=0.3",
    ]  # fmt: skip


def prepared(words: list[str], tmp_path: Path, *more: str) -> tuple[DataSet, list[str]]:
    """The data set of the command with `more` settings, and the n-grams in its vocabulary."""
    prepare_data.main([*words, *more])
    data = DataSet(tmp_path / "set")
    return data, json.loads(data.tokenizer.to_json())["ngrams"]


def texts_of(data: DataSet) -> list[str]:
    """All documents, decoded from the shards."""
    parts = [data.tokenizer.decode(shard) for s in (data.train, data.val) for shard in s.shards]
    return sorted("".join(parts).split("<|endoftext|>")[:-1])


@pytest.mark.parametrize("vocab_size", [256 + 4, 1000, 65536])
def test_a_list_is_the_vocabulary_in_its_order(words, tmp_path, vocab_size) -> None:
    ngrams = ["the", "th", "en ", "中文", "été"]
    (tmp_path / "list.json").write_text(json.dumps(ngrams))
    more = f"--vocab_size={vocab_size}", f"--ngram_file={tmp_path}/list.json"
    data, used = prepared(words, tmp_path, *more)
    assert data.vocab_size == vocab_size
    assert used == ngrams[: vocab_size - 256]
    assert texts_of(data) == sorted(documents(60, seed=1))
    prepare_data.main([*words, *more])  # complete already
    (tmp_path / "list.json").write_text(json.dumps(ngrams[::-1]))
    with pytest.raises(UserError, match="set"):
        prepare_data.main([*words, *more])


def test_number_order_and_words_reach_the_vocabulary(words, tmp_path) -> None:
    data, used = prepared(
        words, tmp_path, "--vocab_size=65536", "--ngrams=40", "--ngram_order=text",
        "--ngram_within_words",
    )  # fmt: skip
    train = "".join(data.tokenizer.decode(shard) for shard in data.train.shards)
    counts = collections.Counter(
        text[at : at + n]
        for text in train.split("<|endoftext|>")
        for n in (2, 3)
        for at in range(len(text) - n + 1)
        if re.fullmatch(r"[^\W\d_]+", text[at : at + n])
    )
    best = sorted(counts, key=lambda ngram: (-counts[ngram], ngram))[:40]
    assert used == sorted(best, key=lambda ngram: (-len(ngram), ngram))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tokenizer=gpt2", "--vocab_size=50257"], "vocab_size=50257 beside tokenizer='gpt2'"),
        (["--tokenizer=gpt2", "--vocab_size=256"], "vocab_size=256 beside tokenizer='gpt2'"),
        (["--tokenizer=gpt2", "--ngrams=9"], "ngrams=9 beside tokenizer='gpt2'"),
        (["--ngrams=676"], "ngrams=676 beside vocab_size=256, which has no n-grams"),
        (["--vocab_size=300", "--ngrams=45"], "ngrams=45: vocab_size=300 has 44 places"),
        (["--vocab_size=65536", "--ngrams=8193"], "has 8,192 places"),
        (["--vocab_size=300", "--ngram_order=length"], "expected frequency or text"),
        (
            ["--vocab_size=300", "--ngram_file=x", "--ngram_order=text"],
            "beside ngram_file=.x.",
        ),
        (
            ["--vocab_size=300", "--ngram_file=x", "--ngram_within_words"],
            "leave out --ngram_w",
        ),
        (["--vocab_size=300", "--max_ngram=4"], "max_ngram=4: expected"),
        (["--vocab_size=65537"], "vocab_size=65537: expected 256"),
        (["--vocab_size=300", "--ngram_file=missing.json"], "missing.json"),
    ],
)
def test_what_cannot_go_together_is_named(words, more, message) -> None:
    with pytest.raises(UserError, match=message):
        prepare_data.main([*words, *more])
