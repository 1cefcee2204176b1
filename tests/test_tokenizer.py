"""The tokenizers against a naive greedy reference, written from the layouts' description alone."""

import collections
import json
import pickle
import random
import re

import numpy as np
import pytest
import tiktoken

from inputcodes.configurator import UserError
from inputcodes.tokenizer import (
    SPECIAL_NAMES,
    Tokenizer,
    build_tokenizer,
    count_ngrams,
    frequent_ngrams,
    merge_counts,
)

SCALARS = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
ENGLISH = ["the", "then", "them", "there", "this", "that", "of", "and", "in", "to", "a", "is"]
WORDS = [*ENGLISH, "café", "naïve", "中文", "中国", "שלום", "سلام", "été", "😀"]
SIZES = [256, 257, 300, 4096, 65536]


def documents(count: int = 400, seed: int = 0) -> list[str]:
    """Word salad with a few hundred distinct n-grams, some of them not ASCII."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=60)) + ".\n" for _ in range(count)]


TOKENIZERS = {size: build_tokenizer(size, documents()) for size in SIZES}


@pytest.fixture(params=SIZES)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TOKENIZERS[request.param]


def reference_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Greedy longest match, position by position; ids as the module's docstring states them."""
    unicode = tokenizer.vocab_size == 65536
    ngrams = json.loads(tokenizer.to_json())["ngrams"]
    places = [*range(0xD800, 0xE000), *range(0xE100, 0xF900)] if unicode else range(256, 65536)
    ids_of = dict(zip(ngrams, places, strict=False))
    ids, at = [], 0
    while at < len(text):
        length = next((n for n in (3, 2, 1) if text[at : at + n] in ids_of), 0)
        code = ord(text[at])
        if length:
            ids.append(ids_of[text[at : at + length]])
        elif unicode and (code < 0xD800 or 0xF900 <= code < 0x10000):
            ids.append(code)
        else:
            ids += [byte + 0xE000 - 0x80 if unicode else byte for byte in text[at].encode()]
        at += length or 1
    return ids


def random_strings(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    ranges = [
        (0, 0x20), (0x20, 0x7F), (0x80, 0x800), (0x300, 0x370), (0x590, 0x700), (0x4E00, 0x9FFF),
        (0xD700, 0xD800), (0xE000, 0xF900), (0xF900, 0x10000), (0x10000, 0x110000),
    ]  # fmt: skip
    alike = [*SPECIAL_NAMES, "<|reserved_0|>", "<|endoftext", "\0", "\r\n", *WORDS]
    strings = []
    for _ in range(count):
        parts = []
        for _ in range(draw.randrange(12)):
            if draw.random() < 0.5:
                parts.append(draw.choice(alike))
            else:
                parts.append(chr(draw.randrange(*draw.choice(ranges))))
        strings.append("".join(parts))
    return strings


def test_every_scalar_value_comes_back_and_has_the_stated_ids(tokenizer: Tokenizer) -> None:
    text = "".join(SCALARS)
    ids = tokenizer.encode_array(text)
    assert ids.dtype == np.uint16
    assert tokenizer.decode(ids) == text
    assert ids.tolist() == reference_ids(tokenizer, text)


def test_single_scalar_values_of_the_unicode_layout() -> None:
    plain = Tokenizer(65536)
    for code in (*range(0, 0xD800, 97), 0xD7FF, 0xF900, 0xFFFE, 0xFFFF):
        assert plain.encode(chr(code)) == [code]
    for code in (0xE000, 0xF8FF, 0x10000, 0x1F600, 0x10FFFF):
        utf8 = chr(code).encode()
        assert plain.encode(chr(code)) == [0xE000 + byte - 0x80 for byte in utf8]


def test_random_strings_equal_the_greedy_reference(tokenizer: Tokenizer) -> None:
    for text in random_strings(20_000, seed=tokenizer.vocab_size):
        assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode()
    for text in random_strings(2_000, seed=1) + documents(20, seed=1):
        assert tokenizer.encode(text) == reference_ids(tokenizer, text)


def test_an_ngram_that_begins_another_is_still_found() -> None:
    tokenizer = Tokenizer(
        65536, ["abc", "ab", "bcd", "cd", "a.b", "^a", "a|", "[a]", "\\", "(?"][:8]
    )
    for text in ("abcd", "abd", "abab", "a.bcd", "axb", "^aa|[a]", "abcabcd", ")()", "bc", "cda"):
        assert tokenizer.encode(text) == reference_ids(tokenizer, text)
    assert tokenizer.encode("abcd") == [0xD800, ord("d")]
    assert tokenizer.encode("abd") == [0xD801, ord("d")]


def test_special_tokens_have_the_same_names_in_every_layout(tokenizer: Tokenizer) -> None:
    names = list(tokenizer.special)
    assert tuple(names[:5]) == SPECIAL_NAMES
    assert names[5:] == [f"<|reserved_{n}|>" for n in range(len(names) - 5)]
    assert tokenizer.end_of_text == tokenizer.special["<|endoftext|>"]
    first = [0xE080 + n if tokenizer.vocab_size == 65536 else 255 - n for n in range(5)]
    assert [tokenizer.special[name] for name in SPECIAL_NAMES] == first
    text = "".join(names)
    assert not set(tokenizer.encode(text)) & set(tokenizer.special.values())
    assert tokenizer.decode(tokenizer.special.values()) == text


def test_every_id_decodes_and_no_two_alike(tokenizer: Tokenizer) -> None:
    spelled = [tokenizer.decode_bytes([token_id]) for token_id in range(tokenizer.vocab_size)]
    assert len(set(spelled)) == tokenizer.vocab_size
    assert all(spelled)
    assert tokenizer.decode_bytes(range(tokenizer.vocab_size)) == b"".join(spelled)
    assert isinstance(tokenizer.decode(np.arange(tokenizer.vocab_size)), str)
    for outside in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=re.escape(f"{outside} is outside")):
            tokenizer.decode_bytes([outside])


def test_token_bytes_add_up_to_the_text(tokenizer: Tokenizer) -> None:
    lengths = tokenizer.token_bytes()
    assert lengths.shape == (tokenizer.vocab_size,)
    for text in [*documents(20, seed=2), *random_strings(200, seed=3)]:
        assert lengths[tokenizer.encode_array(text)].sum() == len(text.encode())
    assert not lengths[list(tokenizer.special.values())].any()


def test_spellings_are_what_ids_decode_to(tokenizer: Tokenizer) -> None:
    spellings = tokenizer.texts()
    assert len(spellings) == tokenizer.vocab_size
    for text in [*documents(20, seed=6), *random_strings(200, seed=6)]:
        ids = tokenizer.encode(text)
        assert b"".join(spellings[token_id] for token_id in ids) == text.encode()
    special = set(tokenizer.special.values())
    assert {n for n, spelling in enumerate(spellings) if not spelling} == special
    assert len(set(spellings)) == tokenizer.vocab_size - len(special) + 1


@pytest.mark.parametrize(("text", "position"), [("\ud800", 0), ("ab\udfff", 2), ("😀é\udc80x", 2)])
def test_lone_surrogates_are_refused(tokenizer: Tokenizer, text: str, position: int) -> None:
    with pytest.raises(UserError, match=f"character {position} .*U\\+D[89A-F]"):
        tokenizer.encode(text)


def test_empty_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("max_ngram", [2, 3])
def test_ngrams_are_the_most_frequent_ones(max_ngram: int) -> None:
    """Against a plain Counter over slices, with ties by text."""
    texts = [*documents(30, seed=4), "a\0b", "x\0", "é", "", "ab"]
    naive = collections.Counter(
        text[at : at + n]
        for text in texts
        for n in range(1, max_ngram + 1)
        for at in range(len(text) - n + 1)
    )
    ranked = sorted((-count, ngram) for ngram, count in naive.items() if "\0" not in ngram)
    byte_wise = [g for c, g in ranked if c < -1 and len(g.encode()) > 1]
    counts = count_ngrams(texts, max_ngram)
    assert frequent_ngrams(300, counts) == byte_wise[:44]
    assert frequent_ngrams(65535, counts) == byte_wise
    direct = [g for g in byte_wise if len(g) > 1 and "😀" not in g]
    assert frequent_ngrams(65536, counts) == direct
    halves = [count_ngrams(texts[1::2], max_ngram), count_ngrams(texts[::2][::-1], max_ngram)]
    assert frequent_ngrams(65536, merge_counts(halves)) == direct


def test_counting_in_blocks_misses_no_ngram(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = count_ngrams(documents(3))
    monkeypatch.setattr("inputcodes.tokenizer.COUNT_BLOCK", 7)
    for one, other in zip(whole, count_ngrams(documents(3)), strict=True):
        assert np.array_equal(one, other)


def test_a_small_corpus_leaves_reserved_ids() -> None:
    tokenizer = build_tokenizer(1000, ["abab"])
    assert json.loads(tokenizer.to_json())["ngrams"] == ["ab"]
    assert len(tokenizer.special) == 11 + 1000 - 257
    assert tokenizer.encode("abab") == [256, 256]


def test_json_and_pickle_bring_back_the_same_tokenizer(tokenizer: Tokenizer, tmp_path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    text = documents(1, seed=5)[0] + "\0\x7f\x80\uffff😀"
    for other in (
        Tokenizer.load(tmp_path / "tokenizer.json"),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert other.sha256 == tokenizer.sha256
        assert other.special == tokenizer.special
        assert other.encode(text) == tokenizer.encode(text)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 255}, "expected 256"),
        ({"vocab_size": 65537}, "expected 256"),
        ({"vocab_size": "256"}, "not a tokenizer"),
        ({"ngrams": ["ab", "ab"]}, "n-gram 'ab'"),
        ({"ngrams": ["abcd"]}, "n-gram 'abcd'"),
        ({"ngrams": ["a"]}, "n-gram 'a'"),
        ({"ngrams": ["a\0"]}, "n-gram"),
        ({"ngrams": ["\ud800b"]}, "surrogates not allowed"),
        ({"ngrams": ["ab", "bc", "cd"]}, "do not fit"),
        ({"ngrams": None}, "not a tokenizer"),
        ({"format": 2}, "ids differ"),
        ({"special": {}}, "ids differ"),
    ],
)
def test_a_changed_file_is_named_and_refused(change: dict, message: str, tmp_path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(Tokenizer(258).to_json()) | change))
    with pytest.raises(UserError, match=message) as caught:
        Tokenizer.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\xff"])
def test_a_file_that_is_no_tokenizer(text: str, tmp_path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=re.escape(str(path))):
        Tokenizer.load(path)
    with pytest.raises(UserError, match="missing"):
        Tokenizer.load(tmp_path / "missing.json")


def small_encoding(eot: int = 260) -> tiktoken.Encoding:
    """Byte-pair merges `th`, `the`, ` the` with a hole in the ids, as some encodings have."""
    ranks = {bytes([value]): value for value in range(256)}
    ranks |= {b"th": 256, b"the": 257, b" the": 258}
    return tiktoken.Encoding(
        "small", pat_str=r" ?\w+|\W", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": eot}
    )


def test_named_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: small_encoding())
    tokenizer = Tokenizer.named("gpt2")
    assert tokenizer.vocab_size == 265
    assert tokenizer.special == {
        "<|endoftext|>": 260, "<|reserved_259|>": 259, "<|system|>": 261, "<|user|>": 262,
        "<|assistant|>": 263, "<|endofturn|>": 264,
    }  # fmt: skip
    assert tokenizer.encode("the other <|endoftext|>") == small_encoding().encode_ordinary(
        "the other <|endoftext|>"
    )
    for text in random_strings(2000, seed=7):
        assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode()
    assert len({tokenizer.decode_bytes([n]) for n in range(265)}) == 265
    assert Tokenizer.from_json(tokenizer.to_json()).sha256 == tokenizer.sha256
    stored = tokenizer.to_json()
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: small_encoding(eot=259))
    with pytest.raises(UserError, match="tiktoken's 'gpt2'"):
        Tokenizer.from_json(stored)


def test_named_encodings_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no tiktoken encoding is called 'gpt5000'"):
        Tokenizer.named("gpt5000")
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: small_encoding(eot=70_000))
    with pytest.raises(UserError, match="16-bit"):
        Tokenizer.named("gpt2")

    def no_network(name: str) -> None:
        raise ConnectionError(name)

    monkeypatch.setattr(tiktoken, "get_encoding", no_network)
    with pytest.raises(UserError, match=r"cannot load 'gpt2' \(ConnectionError\).*network"):
        Tokenizer.named("gpt2")
