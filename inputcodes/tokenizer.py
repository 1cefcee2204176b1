"""The tokenizers: bytes, bytes and n-grams, the 65,536-id Unicode layout, named tiktoken encodings.

The vocabulary size chooses the layout; nothing is downloaded.

  256            id = byte value. UTF-8 never contains the bytes 0xF5 to 0xFF, so these eleven ids
                 are the special tokens: 255 ends a text, 254 to 251 are role marks.
  257 to 65,535  the 256 above, then the most frequent n-grams of the training documents.
  65,536         id = code point for U+0000 to U+D7FF and U+F900 to U+FFFF; the ids of surrogates
                 and of private use, which text hardly needs, hold the rest: 0xE000 to 0xE07F the
                 bytes 0x80 to 0xFF (how any other character is spelled), 0xE080 to 0xE0FF the
                 special tokens, 0xD800 to 0xDFFF and 0xE100 to 0xF8FF the n-grams.

Encoding is greedy: at every position the longest n-gram wins, else the character. An n-gram has two
or three characters (below 65,536 also one, if UTF-8 spells it with several bytes). Ids left over by
a small corpus become reserved special tokens, so every id is assigned and every id decodes.

English is encoded at 30 to 40 MB/s a core with up to 8,192 n-grams; many more outgrow a cache of
the regular-expression engine (16,384 ids: 20 MB/s, 32,768: 4, 65,535: 2).
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import tiktoken
from numpy.typing import NDArray

from inputcodes.configurator import UserError

SPECIAL_NAMES = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|endofturn|>")
UNICODE_SIZE = 65536  # also the largest size: shards are uint16
BYTE_SPECIALS = range(255, 0xF4, -1)
UNICODE_SPECIALS = range(0xE080, 0xE100)
UNICODE_NGRAMS = (*range(0xD800, 0xE000), *range(0xE100, 0xF900))
MAX_NGRAM = 3  # three code points of 21 bits fill the 64-bit key of `count_ngrams`
COUNT_BLOCK = 1 << 20  # characters counted at a time, to bound memory

Counts = tuple[NDArray[np.uint64], NDArray[np.int64]]


class Tokenizer:
    """Text to token ids and back; every string of Unicode scalar values comes back exactly.

    Attributes: `vocab_size`; `special`, the id of every special token by name (the five of
    SPECIAL_NAMES in every layout, then `<|reserved_0|>`, ...); `end_of_text`, the id after each
    document. Raises UserError for a size or n-grams that no layout can hold.
    """

    def __init__(self, vocab_size: int, ngrams: Sequence[str] = ()) -> None:
        check_vocab_size(vocab_size)
        lay_out = _unicode_layout if vocab_size == UNICODE_SIZE else _byte_layout
        ranks, special_ids = lay_out(vocab_size, ngrams)
        self._named: dict[str, Any] = {}
        self._ngrams = list(ngrams)
        self._assign(vocab_size, ranks, _name_specials(special_ids))
        if vocab_size > 256:
            self._encoding = tiktoken.Encoding(
                f"layout-{vocab_size}",
                pat_str=_pattern(ngrams),
                mergeable_ranks=ranks,
                special_tokens={SPECIAL_NAMES[0]: self.end_of_text},
            )

    @classmethod
    def named(cls, name: str) -> Self:
        """A tiktoken encoding such as `gpt2`, with the role marks it lacks as further ids.

        tiktoken loads it, from its cache or the network. Raises UserError if it cannot, or if the
        vocabulary does not fit shards of 16-bit ids.
        """
        if name not in tiktoken.list_encoding_names():
            known = ", ".join(tiktoken.list_encoding_names())
            raise UserError(f"no tiktoken encoding is called {name!r}; there are {known}")
        try:
            encoding = tiktoken.get_encoding(name)
        except Exception as error:
            raise UserError(
                f"tiktoken cannot load {name!r} ({type(error).__name__}): it needs the network "
                "once, or TIKTOKEN_CACHE_DIR naming a folder that holds the encoding"
            ) from error
        self = cls.__new__(cls)
        self._encoding = encoding
        self._ngrams = []
        ranks, special = _named_layout(encoding)
        self._named = {"encoding": name, "ranks_sha256": _ranks_sha256(ranks)}
        self._assign(len(ranks) + len(special), ranks, special)
        return self

    def _assign(self, vocab_size: int, ranks: dict[bytes, int], special: dict[str, int]) -> None:
        check_vocab_size(vocab_size)
        by_id = {token_id: text for text, token_id in ranks.items()}
        by_id |= {token_id: name.encode() for name, token_id in special.items()}
        assert len(by_id) == vocab_size == len(ranks) + len(special), "an id is missing or shared"
        self.vocab_size = vocab_size
        self.special = special
        self.end_of_text = special[SPECIAL_NAMES[0]]
        self._bytes = [by_id[token_id] for token_id in range(vocab_size)]

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; what looks like a special token is text. Errors: `encode_array`."""
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def encode_array(self, text: str) -> NDArray[np.uint16]:
        """The ids of `text`, (T,); raises UserError for a lone surrogate, with its position."""
        try:
            utf8 = text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"character {error.start} of the text is the lone surrogate "
                f"U+{ord(text[error.start]):04X}, which UTF-8 cannot hold; remove or replace it"
            ) from error
        if self.vocab_size == 256:
            return np.frombuffer(utf8, dtype=np.uint8).astype(np.uint16)
        ids = self._encoding.encode_to_numpy(text, disallowed_special=())
        return ids.astype(np.uint16)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of any ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 of any ids, special tokens as their names; ValueError outside [0, V)."""
        parts = []
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise ValueError(f"token id {int(token_id)} is outside [0, {self.vocab_size})")
            parts.append(self._bytes[token_id])
        return b"".join(parts)

    @property
    def pattern(self) -> str:
        """The regular expression that cuts a text into the pieces that are looked up."""
        return _pattern([]) if self.vocab_size == 256 else self._encoding._pat_str

    def texts(self) -> list[bytes]:
        """The bytes of text that each id stands for, V of them; empty for special tokens."""
        special = set(self.special.values())
        return [b"" if n in special else text for n, text in enumerate(self._bytes)]

    def token_bytes(self) -> NDArray[np.int64]:
        """How many bytes of text each id stands for, (V,); 0 for special tokens."""
        return np.array([len(text) for text in self.texts()], dtype=np.int64)

    def to_json(self) -> str:
        """The canonical JSON, from which `from_json` builds the same tokenizer."""
        named = {name: self.special[name] for name in SPECIAL_NAMES}
        fields: dict[str, Any] = {"format": 1, "vocab_size": self.vocab_size, "special": named}
        fields.update(self._named or {"ngrams": self._ngrams})
        return json.dumps(fields, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The tokenizer of `to_json`; UserError if the text is not one, or not this one."""
        try:
            fields: dict[str, Any] = json.loads(text)
            named = "encoding" in fields
            self = (
                cls.named(fields["encoding"])
                if named
                else cls(fields["vocab_size"], fields["ngrams"])
            )
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise UserError(f"not a tokenizer of this program: {error!r}") from error
        if json.loads(self.to_json()) != fields:
            what = f"tiktoken's {fields['encoding']!r}" if named else "this version's layout"
            raise UserError(f"the tokenizer was not made with {what}: their ids differ")
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the canonical JSON, whole or not at all."""
        partial = Path(f"{os.fspath(path)}.partial")
        partial.write_text(self.to_json(), encoding="utf-8", newline="\n")
        partial.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The tokenizer that `save` wrote; UserError names a file that is missing or not one."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"cannot load the tokenizer {os.fspath(path)}: {error}") from error

    @functools.cached_property
    def sha256(self) -> str:
        """Of the canonical JSON: two tokenizers with one hash give the same ids."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def check_vocab_size(vocab_size: int) -> None:
    """Raise UserError for a size that no layout has."""
    if not 256 <= vocab_size <= UNICODE_SIZE:
        raise UserError(
            f"vocab_size={vocab_size}: expected 256 (bytes) to {UNICODE_SIZE:,} (16-bit ids)"
        )


def build_tokenizer(vocab_size: int, documents: Iterable[str], max_ngram: int = 3) -> Tokenizer:
    """The tokenizer whose n-grams are the most frequent ones of `documents`.

    Give it training documents only. Their order does not matter.
    """
    counts = count_ngrams(documents if vocab_size > 256 else [], max_ngram)
    return Tokenizer(vocab_size, frequent_ngrams(vocab_size, counts))


def count_ngrams(texts: Iterable[str], max_ngram: int = 3) -> Counts:
    """Every n-gram within a text, 1 <= n <= max_ngram <= 3, and how often it occurs.

    An n-gram is a key of three 21-bit code points, the first one highest, absent ones 0: sorting
    keys sorts the texts. Those with U+0000 are left out, and so are single ASCII characters.
    """
    codes = np.frombuffer("\0".join(texts).encode("utf-32-le"), dtype="<u4")
    parts = []
    for start in range(0, len(codes), COUNT_BLOCK):
        block = codes[start : start + COUNT_BLOCK + MAX_NGRAM - 1].astype(np.uint64)
        parts.append(_count_block(block, min(COUNT_BLOCK, len(codes) - start), max_ngram))
    return merge_counts(parts)


def _count_block(block: NDArray[np.uint64], starts: int, max_ngram: int) -> Counts:
    """Count the n-grams that begin at the first `starts` characters of the block."""
    keys = block[:starts] << np.uint64(42)
    found = [keys[block[:starts] > 127]]
    whole = block[:starts] != 0
    for n in range(2, max_ngram + 1):
        last = block[n - 1 : starts + n - 1]
        whole = whole[: len(last)] & (last != 0)
        keys = keys[: len(last)] | last << np.uint64(63 - 21 * n)
        found.append(keys[whole])
    unique, counts = np.unique(np.concatenate(found), return_counts=True)
    return unique, counts


def merge_counts(parts: Sequence[Counts]) -> Counts:
    """The sum of several counts, sorted by key."""
    if not parts:
        return np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64)
    keys, index = np.unique(np.concatenate([keys for keys, _ in parts]), return_inverse=True)
    counts = np.zeros(len(keys), dtype=np.int64)
    np.add.at(counts, index, np.concatenate([counts for _, counts in parts]))
    return keys, counts


def frequent_ngrams(vocab_size: int, counts: Counts) -> list[str]:
    """The n-grams that fill the layout: counted at least twice, most frequent first, then by text.

    Ordering by the tokens saved, count times (n - 1), gave 0.0 to 0.6% fewer bytes a token.
    """
    keys, number = counts
    usable = number > 1
    capacity = vocab_size - 256
    if vocab_size == UNICODE_SIZE:
        capacity = len(UNICODE_NGRAMS)
        usable &= (keys >> np.uint64(21)) % np.uint64(1 << 21) != 0
        for shift in (0, 21, 42):
            usable &= _is_direct(keys >> np.uint64(shift) & np.uint64((1 << 21) - 1))
    keys, number = keys[usable], number[usable]
    best = np.lexsort((keys, -number))[:capacity]
    return [_key_text(int(key)) for key in keys[best]]


def _is_direct(code: Any) -> Any:
    """Whether the 65,536 layout has an id for the code point; for an int or an array of them."""
    return (code < 0xD800) | (code >= 0xF900) & (code < 0x10000)


def _key_text(key: int) -> str:
    codes = (key >> shift & (1 << 21) - 1 for shift in (42, 21, 0))
    return "".join(chr(code) for code in codes if code)


def _byte_layout(vocab_size: int, ngrams: Sequence[str]) -> tuple[dict[bytes, int], list[int]]:
    ranks = {bytes([value]): value for value in range(256) if value not in BYTE_SPECIALS}
    left = _add_ngrams(ranks, ngrams, range(256, vocab_size), shortest=1)
    return ranks, [*BYTE_SPECIALS, *left]


def _unicode_layout(vocab_size: int, ngrams: Sequence[str]) -> tuple[dict[bytes, int], list[int]]:
    ranks = {chr(code).encode(): code for code in range(vocab_size) if _is_direct(code)}
    ranks |= {bytes([value]): 0xE000 + value - 0x80 for value in range(0x80, 0x100)}
    left = _add_ngrams(ranks, ngrams, UNICODE_NGRAMS, shortest=2)
    return ranks, [*UNICODE_SPECIALS, *left]


def _add_ngrams(
    ranks: dict[bytes, int], ngrams: Sequence[str], ids: Sequence[int], shortest: int
) -> Sequence[int]:
    """Give the n-grams their ids, in order; returns the ids that are left over."""
    if len(ngrams) > len(ids):
        raise UserError(f"{len(ngrams)} n-grams do not fit: this vocabulary has {len(ids)} places")
    for ngram, token_id in zip(ngrams, ids, strict=False):
        utf8 = ngram.encode()
        if not shortest <= len(ngram) <= MAX_NGRAM or utf8 in ranks or "\0" in ngram:
            raise UserError(
                f"n-gram {ngram!r}: expected {shortest} to {MAX_NGRAM} characters, none U+0000, "
                "that have no other id"
            )
        ranks[utf8] = token_id
    return ids[len(ngrams) :]


def _name_specials(ids: Sequence[int]) -> dict[str, int]:
    reserved = (f"<|reserved_{number}|>" for number in range(len(ids) - len(SPECIAL_NAMES)))
    return dict(zip((*SPECIAL_NAMES, *reserved), ids, strict=True))


def _named_layout(encoding: tiktoken.Encoding) -> tuple[dict[bytes, int], dict[str, int]]:
    """The ids of a tiktoken encoding: its gaps become reserved ids, missing marks further ids."""
    special = {name: encoding.encode_single_token(name) for name in encoding.special_tokens_set}
    ranks: dict[bytes, int] = {}
    for token_id in set(range(encoding.n_vocab)) - set(special.values()):
        try:
            ranks[encoding.decode_single_token_bytes(token_id)] = token_id
        except KeyError:
            special[f"<|reserved_{token_id}|>"] = token_id
    for name in SPECIAL_NAMES:
        special.setdefault(name, len(ranks) + len(special))
    return ranks, special


def _ranks_sha256(ranks: dict[bytes, int]) -> str:
    lines = (f"{text.hex()} {token_id}\n" for text, token_id in sorted(ranks.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _pattern(ngrams: Sequence[str]) -> str:
    """A regular expression that matches the longest n-gram, else one character.

    The alternatives share their beginnings as in a trie: a flat list of 8,192 can be a hundred
    times slower.
    """
    trie: dict[str, Any] = {}
    for ngram in ngrams:
        node = trie
        for character in ngram:
            node = node.setdefault(character, {})
        node[""] = {}
    branches = _branches(trie)
    return f"(?s:{branches}|.)" if branches else "(?s:.)"


def _branches(node: dict[str, Any]) -> str:
    """The expression for what may follow in the trie; optional where an n-gram may end."""
    same: dict[str, list[str]] = {}  # next characters by what follows them
    for character in sorted(node.keys() - {""}):
        same.setdefault(_branches(node[character]), []).append(f"\\x{{{ord(character):x}}}")
    choices = [f"[{''.join(characters)}]{rest}" for rest, characters in same.items()]
    if not choices:
        return ""
    return f"(?:{'|'.join(choices)}){'?' if '' in node else ''}"
