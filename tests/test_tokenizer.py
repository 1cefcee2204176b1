"""The tokenizers against a naive greedy reference, written from the layouts' description alone."""

import hashlib
import json
import random
import re
import string
import sys
from pathlib import Path

import numpy as np
import pytest
import tiktoken

import evaluate
import prepare_data
import sample
import train
from inputcodes.checkpoint import load_model
from inputcodes.configurator import UserError
from inputcodes.data import DataSet
from inputcodes.tokenizer import SPECIAL_NAMES, Tokenizer
from tests.helpers import WORDS, build_tokenizer, documents

SIZES = [256, 257, 300, 4096, 65536]


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
        code = ord(text[at])
        for length in (3, 2, 1):
            if text[at : at + length] in ids_of:
                ids.append(ids_of[text[at : at + length]])
                break
        else:
            if unicode and (code < 0xD800 or 0xF900 <= code < 0x10000):
                ids.append(code)
            else:
                ids += [byte + 0xE000 - 0x80 if unicode else byte for byte in text[at].encode()]
        at += length
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


@pytest.mark.slow
@pytest.mark.parametrize("size", [256, 4096, 65536])
def test_every_scalar_value_comes_back_and_has_the_stated_ids(size: int) -> None:
    tokenizer = TOKENIZERS[size]
    text = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
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
    for text in random_strings(8_000, seed=tokenizer.vocab_size):
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


def test_a_small_corpus_leaves_reserved_ids() -> None:
    tokenizer = build_tokenizer(1000, ["abab"])
    assert json.loads(tokenizer.to_json())["ngrams"] == ["ab"]
    assert len(tokenizer.special) == 11 + 1000 - 257
    assert tokenizer.encode("abab") == [256, 256]


def test_json_brings_back_the_same_tokenizer(tokenizer: Tokenizer, tmp_path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    text = documents(1, seed=5)[0] + "\0\x7f\x80\uffff😀"
    other = Tokenizer.load(tmp_path / "tokenizer.json")
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
        ({"ngrams": ["\ud800b"]}, "n-gram"),
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


def no_lookup(name: str) -> None:
    raise ConnectionError(name)


def test_named_encoding(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
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
    assert tokenizer.texts()[256:] == [b"th", b"the", b" the", *[b""] * 6]
    monkeypatch.setattr(tiktoken, "get_encoding", no_lookup)  # from here on all is in the file
    tokenizer.save(tmp_path / "tokenizer.json")
    other = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (other.sha256, other.special) == (tokenizer.sha256, tokenizer.special)
    assert other.to_json() == tokenizer.to_json()
    assert other.encode("then the other") == tokenizer.encode("then the other")


def test_a_run_of_a_million_blanks_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pattern of GPT-2 backtracks in it, farther than tiktoken can."""
    ranks = {bytes([value]): value for value in range(256)}
    encoding = tiktoken.Encoding(
        "blanks", pat_str=r"\S+|\s+(?!\S)|\s", mergeable_ranks=ranks, special_tokens={}
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: encoding)
    text = "é" + " " * 1_200_000 + "y"
    assert Tokenizer.named("gpt2").encode_array(text).astype(np.uint8).tobytes() == text.encode()


def test_altered_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: small_encoding())
    stored = json.loads(Tokenizer.named("gpt2").to_json())
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: small_encoding(eot=259))
    other = json.loads(Tokenizer.named("gpt2").to_json())
    for change, message in (
        ({"ranks": stored["ranks"][:-8]}, "not a tokenizer"),
        ({"ranks": "!"}, "not a tokenizer"),
        ({"ranks_sha256": "0" * 64}, "its ranks were altered"),
        ({"pat_str": "("}, "not a tokenizer"),
        ({"other_special": other["other_special"]}, "tiktoken's 'gpt2'"),
        ({"other_special": {"<|endoftext|>": 258}}, "an id is missing or shared"),
        ({"vocab_size": 264}, "tiktoken's 'gpt2'"),
        ({"other_special": {"<|endoftext|>": 10**30}}, "expected less than"),
    ):
        with pytest.raises(UserError, match=message):
            Tokenizer.from_json(json.dumps(stored | change))


def test_a_file_without_ranks_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier versions of this program kept the name and the hash of the ranks alone."""
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: small_encoding())
    fields = json.loads(Tokenizer.named("gpt2").to_json())
    for name in ("ranks", "pat_str", "other_special"):
        del fields[name]
    text = json.dumps(fields, indent=1, ensure_ascii=False) + "\n"
    tokenizer = Tokenizer.from_json(text)
    assert tokenizer.encode("the other") == Tokenizer.named("gpt2").encode("the other")
    assert tokenizer.to_json() == text
    assert tokenizer.sha256 == hashlib.sha256(text.encode()).hexdigest()
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: small_encoding(eot=259))
    with pytest.raises(UserError, match="tiktoken's 'gpt2'"):
        Tokenizer.from_json(text)


def test_named_encodings_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="no tiktoken encoding is called 'gpt5000'"):
        Tokenizer.named("gpt5000")
    (tmp_path / "tokenizer.json").touch()
    with pytest.raises(UserError, match=r"' is a folder: pass --tokenizer=.*tokenizer\.json$"):
        Tokenizer.named(str(tmp_path))
    monkeypatch.setattr(tiktoken, "get_encoding", no_lookup)
    with pytest.raises(UserError, match=r"cannot load 'gpt2' \(ConnectionError\).*network"):
        Tokenizer.named("gpt2")


def library_file(**changes) -> str:
    """A byte-level BPE with merges `th`, `he`, `the` as the `tokenizers` library writes it."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    letters = {value: chr(value) for value in printable}
    letters |= {value: chr(256 + number) for number, value in enumerate(others)}
    vocab = {letters[value]: 255 - value for value in range(256)}
    vocab |= {"th": 256, "he": 257, "the": 258}
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    level = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    file = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": 259, "content": "<|endoftext|>", "special": True, **added},
            {"id": 260, "content": "<tool>", "special": False, **added},
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", **level},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", **level},
        "model": {"type": "BPE", "vocab": vocab, "merges": [["t", "h"], ["h", "e"], ["th", "e"]]},
    }
    return json.dumps(file | changes)


def test_a_file_of_the_tokenizers_library(tmp_path) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "bpe.json").write_text(library_file())
    tokenizer = Tokenizer.load(tmp_path / "bpe.json")
    assert tokenizer.vocab_size == 265  # 256 bytes, 3 merges, 2 added tokens, 4 marks
    assert tokenizer.end_of_text == 259
    assert tokenizer.encode("the he<tool>") == [258, 255 - 32, 257, 260]
    assert tokenizer.encode("<|endoftext|>") == [255 - ord(c) for c in "<|endoftext|>"]
    assert tokenizer.texts()[256:262] == [b"th", b"he", b"the", b"", b"<tool>", b""]
    for text in random_strings(2000, seed=8):
        assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode()
    tokenizer.save(tmp_path / "tokenizer.json")
    other = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (other.sha256, other.special) == (tokenizer.sha256, tokenizer.special)
    assert other.encode("the other 😀") == tokenizer.encode("the other 😀")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizer": {"type": "NFC"}}, r"its normalizer \(NFC\) changes texts"),
        ({"pre_tokenizer": {"type": "WhitespaceSplit"}}, "comes back as"),
        (
            {
                "pre_tokenizer": {
                    "type": "ByteLevel",
                    "add_prefix_space": True,
                    "trim_offsets": True,
                }
            },
            "comes back as",
        ),
        (
            {"model": {"type": "BPE", "vocab": {"\u4e2d": 0}, "merges": []}},
            "token '\u4e2d' is not written in bytes",
        ),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}, "comes back as"),
        ({"model": {"type": "BPE", "dropout": 0.1}}, r"bpe\.json: its dropout=0\.1 draws the ids"),
        ({"model": {"type": "Magic"}}, "not a tokenizer"),
    ],
)
def test_files_that_change_texts_are_refused(changes: dict, message: str, tmp_path) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "bpe.json").write_text(library_file(**changes))
    with pytest.raises(UserError, match=message):
        Tokenizer.load(tmp_path / "bpe.json")


def test_a_text_that_comes_back_changed_is_refused() -> None:
    pytest.importorskip("tokenizers")
    bytes_only = json.loads(library_file())["pre_tokenizer"]
    removing = {"type": "Split", "pattern": {"String": "zq"}, "behavior": "Removed"}
    both = {"type": "Sequence", "pretokenizers": [removing | {"invert": False}, bytes_only]}
    tokenizer = Tokenizer.from_json(library_file(pre_tokenizer=both))
    assert tokenizer.decode(tokenizer.encode("the other")) == "the other"
    with pytest.raises(UserError, match=r"'the zq 😀' comes back as 'the  😀'"):
        tokenizer.encode("the zq 😀")


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match="pip install tokenizers"):
        Tokenizer.from_json(library_file())


def large_encoding() -> tiktoken.Encoding:
    """70,000 ranks: the bytes, pairs of letters, and pairs of those pairs."""
    letters = string.ascii_lowercase
    pairs = [a + b for a in letters for b in letters]
    fours = [a + b for a in pairs for b in pairs][: 70_000 - 256 - len(pairs)]
    ranks = {bytes([value]): value for value in range(256)}
    ranks |= {text.encode(): n for n, text in enumerate([*pairs, *fours], start=256)}
    return tiktoken.Encoding(
        "large", pat_str=r"\w+|\W", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 70_000}
    )


@pytest.mark.slow
def test_an_encoding_above_65536_ids_from_text_to_sample(
    monkeypatch: pytest.MonkeyPatch, tmp_path, capsys
) -> None:
    """Prepared with the encoding at hand; training, evaluation and sampling look up nothing."""
    draw = random.Random(0)
    words = list(large_encoding()._mergeable_ranks)[60_000:]
    texts = [" ".join(w.decode() for w in draw.choices(words, k=40)) for _ in range(60)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: large_encoding())
    prepare_data.main(
        ["--source=files", f"--files={tmp_path}/texts.jsonl", "--dataset=large",
         f"--data_dir={tmp_path}", "--tokenizer=cl100k_base", "--val_fraction=0.3",
         "--shard_tokens=1500"]
    )  # fmt: skip
    monkeypatch.setattr(tiktoken, "get_encoding", no_lookup)
    data = DataSet(tmp_path / "large")
    assert (data.vocab_size, data.tokenizer.dtype) == (70_005, np.uint32)
    assert json.loads((tmp_path / "large" / "meta.json").read_text())["dtype"] == "uint32"
    decoded = []
    for split in (data.train, data.val):
        tokens = np.concatenate(split.shards)
        assert tokens.max() == 70_000
        assert ((tokens > 65_536) & (tokens < 70_000)).mean() > 0.2
        decoded += data.tokenizer.decode(tokens).split("<|endoftext|>")[:-1]
    assert sorted(decoded) == sorted(texts)
    words = [
        "--dataset=large", f"--data_dir={tmp_path}", f"--out_dir={tmp_path}/out", "--device=cpu",
        "--input_layer=fixed", "--block_size=16", "--n_layer=1", "--n_head=1", "--n_embd=24",
        "--batch_size=2", "--max_steps=2", "--warmup_steps=1", "--eval_interval=2",
    ]  # fmt: skip
    train.main(words)
    model, _, tokenizer = load_model(tmp_path / "out" / "last.pt")
    assert model.config.vocab_size == 70_005
    assert tokenizer.sha256 == data.tokenizer.sha256
    evaluate.main([f"--out_dir={tmp_path}/out", f"--data_dir={tmp_path}", "--device=cpu"])
    capsys.readouterr()
    few = ["--num_samples=1", "--max_new_tokens=50"]
    sample.main([f"--out_dir={tmp_path}/out", "--prompt=abcd", "--device=cpu", "--seed=3", *few])
    assert capsys.readouterr().out.startswith("abcd")
