"""Counting and choosing n-grams against a plain Counter over slices; lists in files."""

import collections
import json
import re

import numpy as np
import pytest

from inputcodes.configurator import UserError
from inputcodes.ngrams import choose_ngrams, count_ngrams, merge_counts, read_ngrams
from tests.helpers import documents


@pytest.mark.parametrize("max_ngram", [2, 3])
def test_ngrams_are_the_most_frequent_ones(max_ngram: int) -> None:
    """Against a plain Counter over slices, with ties by text."""
    texts = [*documents(30, seed=4), "a\0b", "x\0", "é", "", "ab", "\x80\x7f" * 2]
    naive = collections.Counter(
        text[at : at + n]
        for text in texts
        for n in range(1, max_ngram + 1)
        for at in range(len(text) - n + 1)
    )
    ranked = sorted((-count, ngram) for ngram, count in naive.items() if "\0" not in ngram)
    byte_wise = [g for c, g in ranked if c < -1 and len(g.encode()) > 1]
    counts = count_ngrams(texts, max_ngram)
    assert choose_ngrams(counts, 300) == byte_wise[:44]
    assert choose_ngrams(counts, 65535) == byte_wise
    direct = [g for g in byte_wise if len(g) > 1 and "😀" not in g]
    assert choose_ngrams(counts, 65536) == direct
    halves = [count_ngrams(texts[1::2], max_ngram), count_ngrams(texts[::2][::-1], max_ngram)]
    assert choose_ngrams(merge_counts(halves), 65536) == direct


def test_counting_in_blocks_misses_no_ngram(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = count_ngrams(documents(3))
    monkeypatch.setattr("inputcodes.ngrams.COUNT_BLOCK", 7)
    for one, other in zip(whole, count_ngrams(documents(3)), strict=True):
        assert np.array_equal(one, other)


def naive_counts(texts: list[str]) -> collections.Counter[str]:
    return collections.Counter(
        text[at : at + n] for text in texts for n in (2, 3) for at in range(len(text) - n + 1)
    )


@pytest.mark.parametrize("vocab_size", [4096, 65536])
def test_number_order_and_words_are_as_asked_for(vocab_size: int) -> None:
    texts = [*documents(30, seed=4), "it's l\u2019été हिन्दी हिन्दी don't l\u2019été it's don't"]
    naive = naive_counts(texts)
    everywhere = sorted((g for g in naive if naive[g] > 1), key=lambda g: (-naive[g], g))
    everywhere = [g for g in everywhere if "😀" not in g]
    in_words = [g for g in everywhere if not re.search(r"[\s.,]", g)]
    assert {"'t", "\u2019é", "हि"} <= set(in_words)
    counts = count_ngrams([text.replace("😀", "\0") for text in texts])
    if vocab_size < 65536:  # the 65,536 layout has every single character already
        counts = tuple(
            part[(counts[0] >> np.uint64(21)) % np.uint64(1 << 21) != 0] for part in counts
        )
    assert choose_ngrams(counts, vocab_size, 50) == everywhere[:50]
    chosen = choose_ngrams(counts, vocab_size, 50, "text", within_words=True)
    assert chosen == sorted(in_words[:50], key=lambda g: (-len(g), g))
    assert choose_ngrams(counts, vocab_size, within_words=True) == in_words


NGRAMS = ["the", "a ", "[x", "ab"]


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("list.json", json.dumps(NGRAMS).encode()),
        ("list.txt", json.dumps(NGRAMS, indent=1).encode()),
        ("lines.txt", b"the\na \n[x\n\nab"),
        ("windows.txt", "\ufeffthe\r\na \r\n[x\r\nab\r\n".encode()),
    ],
)
def test_a_list_is_taken_in_its_order(name: str, raw: bytes, tmp_path) -> None:
    (tmp_path / name).write_bytes(raw)
    assert read_ngrams(tmp_path / name, 4096) == NGRAMS
    assert read_ngrams(tmp_path / name, 258) == NGRAMS[:2]
    assert read_ngrams(tmp_path / name, 4096, 3) == NGRAMS[:3]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "expected a JSON list of strings"),
        (b'{"a": 1}', "expected a JSON list of strings"),
        (b'["ab", 3]', "expected a JSON list of strings"),
        (b'["ab"', "expected a JSON list of strings"),
        (b'["a\xff"]', "not UTF-8"),
        (b"[]", "has 0 n-grams, expected at least 2"),
        (b'["ab"]', "has 1 n-grams, expected at least 2"),
        (b'["ab", "ab"]', "n-gram 'ab': expected 1 to 3 characters"),
        (None, "cannot read"),
    ],
)
def test_a_list_that_is_none_is_named(raw: bytes | None, message: str, tmp_path) -> None:
    path = tmp_path / "list.json"
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(UserError, match=message) as caught:
        read_ngrams(path, 4096, 2)
    assert str(path) in str(caught.value)
