"""N-gram vocabularies: the n-grams counted, chosen or read from a file, and the ids laid out.

The vocabulary size chooses the layout:

  256            id = byte value. UTF-8 never contains the bytes 0xF5 to 0xFF, so these eleven ids
                 are the special tokens: 255 ends a text, 254 to 251 are role marks.
  257 to 65,535  the 256 above, then n-grams.
  65,536         id = code point for U+0000 to U+D7FF and U+F900 to U+FFFF; the ids of surrogates
                 and of private use, which text hardly needs, hold the rest: 0xE000 to 0xE07F the
                 bytes 0x80 to 0xFF (how any other character is spelled), 0xE080 to 0xE0FF the
                 special tokens, 0xD800 to 0xDFFF and 0xE100 to 0xF8FF the n-grams.

An n-gram has two or three characters (below 65,536 also one, if UTF-8 spells it with several
bytes). docs/data.md says what their number and their order decide.
"""

import contextlib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inputcodes.configurator import UserError
from inputcodes.files import damage_named, system_errors

UNICODE_SIZE = 65536
BYTE_SPECIALS = range(255, 0xF4, -1)
UNICODE_SPECIALS = range(0xE080, 0xE100)
UNICODE_NGRAMS = (*range(0xD800, 0xE000), *range(0xE100, 0xF900))
MAX_NGRAM = 3  # characters
ORDERS = ("frequency", "text")
APOSTROPHES = "'\u2019"
COUNT_BLOCK = 1 << 20  # characters counted at a time, to bound memory
POINT = (1 << 21) - 1  # a code point has 21 bits, so MAX_NGRAM of them fill a 64-bit key

Counts = tuple[NDArray[np.uint64], NDArray[np.int64]]


def count_ngrams(texts: Iterable[str], max_ngram: int = MAX_NGRAM) -> Counts:
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
    parts = [keys[block[:starts] > 127]]
    whole = block[:starts] != 0
    for n in range(2, max_ngram + 1):
        last = block[n - 1 : starts + n - 1]
        whole = whole[: len(last)] & (last != 0)
        keys = keys[: len(last)] | last << np.uint64(63 - 21 * n)
        parts.append(keys[whole])
    unique, counts = np.unique(np.concatenate(parts), return_counts=True)
    return unique, counts


def merge_counts(parts: Sequence[Counts]) -> Counts:
    if not parts:
        return np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64)
    keys, index = np.unique(np.concatenate([keys for keys, _ in parts]), return_inverse=True)
    counts = np.zeros(len(keys), dtype=np.int64)
    np.add.at(counts, index, np.concatenate([counts for _, counts in parts]))
    return keys, counts


def choose_ngrams(
    counts: Counts,
    vocab_size: int,
    number: int = 0,
    order: str = "frequency",
    within_words: bool = False,
) -> list[str]:
    """The `number` (0: as many as the layout holds) most frequent n-grams, in the order of ids.

    Only those that occur twice count, ties go by text; `within_words` keeps those of letters, with
    their marks, and apostrophes. `order` "text" is that of the paper: longest first, then by code
    point. Choosing by the tokens saved, count times (n - 1), gave 0.0 to 0.6% fewer bytes per
    token.
    """
    keys, occurrences = counts
    points = np.stack([keys >> np.uint64(shift) & np.uint64(POINT) for shift in (42, 21, 0)])
    usable = occurrences > 1
    if vocab_size == UNICODE_SIZE:
        usable &= (points[1] != 0) & has_own_id(points).all(axis=0)
    if within_words:
        usable &= np.isin(points, [0, *filter(_in_words, np.unique(points).tolist())]).all(axis=0)
    keys, occurrences = keys[usable], occurrences[usable]
    best = np.lexsort((keys, -occurrences))[: number or len(ngram_places(vocab_size))]
    ngrams = ["".join(chr(point) for point in row if point) for row in points.T[usable][best]]
    return ngrams if order == "frequency" else sorted(ngrams, key=lambda text: (-len(text), text))


def _in_words(point: int) -> bool:
    return chr(point) in APOSTROPHES or unicodedata.category(chr(point))[0] in "LM"


def read_ngrams(path: Path, vocab_size: int, number: int = 0) -> list[str]:
    """The first `number` (0: as many as fit) n-grams of a JSON list or of lines, in their order."""
    with system_errors("read", path):
        raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error}") from error
    ngrams: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        ngrams = json.loads(text)
    if not isinstance(ngrams, list) and path.suffix != ".json":
        ngrams = [line for line in text.replace("\r\n", "\n").split("\n") if line]
    if not isinstance(ngrams, list) or not all(isinstance(ngram, str) for ngram in ngrams):
        raise UserError(f"{path}: expected a JSON list of strings, or one n-gram per line")
    if len(ngrams) < max(number, 1):
        raise UserError(f"{path} has {len(ngrams):,} n-grams, expected at least {max(number, 1):,}")
    ngrams = ngrams[: number or len(ngram_places(vocab_size))]
    with damage_named(path, "mend that entry, or take it out", "cannot be used"):
        lay_out(vocab_size, ngrams)
    return ngrams


# ---------------------------------------------------------------------------------------------
# Vocabularies


def ngram_places(vocab_size: int) -> Sequence[int]:
    """The ids that a layout has for n-grams, in the order in which they are given."""
    if not 256 <= vocab_size <= UNICODE_SIZE:
        raise UserError(f"vocab_size={vocab_size}: expected 256 (bytes) to {UNICODE_SIZE}")
    return UNICODE_NGRAMS if vocab_size == UNICODE_SIZE else range(256, vocab_size)


def has_own_id(code: Any) -> Any:
    """Whether the 65,536 layout has an id for the code point; for an int or an array of them."""
    return (code < 0xD800) | (code >= 0xF900) & (code < 0x10000)


def lay_out(vocab_size: int, ngrams: Sequence[str]) -> tuple[dict[bytes, int], list[int]]:
    """The id of every text, and the ids of special tokens; UserError for what cannot be."""
    places = ngram_places(vocab_size)
    if vocab_size == UNICODE_SIZE:
        ranks = {chr(code).encode(): code for code in range(vocab_size) if has_own_id(code)}
        ranks |= {bytes([value]): 0xE000 + value - 0x80 for value in range(0x80, 0x100)}
        specials, shortest = UNICODE_SPECIALS, 2
    else:
        ranks = {bytes([value]): value for value in range(256) if value not in BYTE_SPECIALS}
        specials, shortest = BYTE_SPECIALS, 1
    if len(ngrams) > len(places):
        raise UserError(f"{len(ngrams):,} n-grams do not fit: there are {len(places):,} places")
    for ngram, token_id in zip(ngrams, places, strict=False):
        utf8 = ngram.encode(errors="surrogatepass")
        broken = any(c == "\0" or "\ud800" <= c <= "\udfff" for c in ngram)
        if not shortest <= len(ngram) <= MAX_NGRAM or utf8 in ranks or broken:
            raise ValueError(
                f"n-gram {ngram!r}: expected {shortest} to {MAX_NGRAM} characters, none U+0000 or a"
                " surrogate, that have no other id"
            )
        ranks[utf8] = token_id
    return ranks, [*specials, *places[len(ngrams) :]]


def pattern_of(ngrams: Sequence[str]) -> str:
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
