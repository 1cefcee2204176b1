"""Token codes over GF(2): the bits of a token id, their recodings, and codewords of any length.

All of them are one thing, a linear code: position i of the vector of token t is the parity of
t & masks[i], plus a constant bit. K unit masks give the binary code of the paper, the rows of an
invertible matrix its affine recodings, and further masks lengthen the code up to the Hadamard code
of all 2^K - 1 masks, whose codewords are orthogonal but for a constant: a rotated one-hot.

Source: Bochkov, "Language Models Without a Trainable Input Embedding Table", section 3 and
appendix D. A vector over GF(2) is kept as one integer, bit j being component j (j = 0 the least
significant), so a matrix is a tuple of integers, one per row, and all algebra is exact. Every
choice is drawn from Python's `random`, which gives the same for one seed on every platform.

Shapes: V vocabulary size, K bits of an id, d model width.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from inputcodes.configurator import UserError


class LinearCode(NamedTuple):
    """Position i of the code of token t is the parity of t & masks[i], xor bit i of `shift`."""

    masks: tuple[int, ...]
    shift: int = 0


def code_width(vocab_size: int) -> int:
    """K = ceil(log2 V), the fewest bits that tell V >= 2 tokens apart (Proposition 1)."""
    assert vocab_size >= 2, f"{vocab_size} tokens: there is nothing to tell apart"
    return (vocab_size - 1).bit_length()


# ---------------------------------------------------------------------------------------------
# Choosing the masks: each choice has full rank K, so no two tokens share a code


def binary_code(K: int) -> LinearCode:
    """The K bits of the id: position j is bit j."""
    return LinearCode(tuple(1 << j for j in range(K)))


def affine_code(K: int, seed: int) -> LinearCode:
    """t -> A t xor b over GF(2)^K, with A uniform over GL(K, 2) and b uniform.

    Rejection sampling: a random square matrix over GF(2) is invertible with probability above
    0.288, so about 3.5 draws are expected.
    """
    rng = random.Random(seed)
    while True:
        rows = tuple(rng.getrandbits(K) for _ in range(K))
        if rank(rows) == K:
            return LinearCode(rows, rng.getrandbits(K))


def codeword_code(K: int, length: int, seed: int | str) -> LinearCode:
    """The unit masks, then different random ones: `length` of them, at most all 2^K - 1.

    A shorter code is a prefix of a longer one.
    """
    if length < K:
        raise UserError(
            f"code_length={length}: {K} bits need at least {K} positions (0 takes n_embd of them)"
        )
    rng = random.Random(seed)
    masks = dict.fromkeys(binary_code(K).masks)  # a set that remembers the order of the draws
    while len(masks) < min(length, 2**K - 1):
        if mask := rng.getrandbits(K):
            masks[mask] = None
    return LinearCode(tuple(masks))


def random_codes(vocab_size: int, length: int, seed: int) -> Tensor:
    """V distinct random codes, the control without algebra: uint8 (V, length / 8 rounded up).

    Position i is bit i % 8 of byte i // 8.
    """
    assert length >= code_width(vocab_size), f"{length} bits cannot tell {vocab_size} tokens apart"
    rng = random.Random(seed)
    drawn: dict[int, None] = {}
    while len(drawn) < vocab_size:
        drawn[rng.getrandbits(length)] = None
    return _table([code.to_bytes(-(-length // 8), "little") for code in drawn])


def spelling_table(texts: Sequence[bytes], n: int, may_share: bool) -> Tensor:
    """The first n bytes of each token's text behind their number, (V, 1 + n) uint8.

    Special tokens, whose text is empty, may always share it; others only if they `may_share`.
    """
    texts = [text[:n] for text in texts]
    first = {text: token for token, text in reversed(list(enumerate(texts)))}
    for token, text in enumerate(texts):
        if text and first[text] != token and not may_share:
            raise UserError(
                f"tokens {first[text]} and {token} both begin with {text!r}, and no more bytes"
                " count: raise --spelling_bytes, or keep the id's codeword (--spelling_id=True)"
            )
    return _table([bytes([len(text)]) + text.ljust(n, b"\0") for text in texts])


def _table(rows: Sequence[bytes]) -> Tensor:
    """Rows of bytes, all of one length, as uint8 (V, n)."""
    flat = np.frombuffer(bytearray(b"".join(rows)), dtype=np.uint8)
    return torch.as_tensor(flat.reshape(len(rows), -1))


# ---------------------------------------------------------------------------------------------
# Codes of ids, as tensors


def bits(ids: Tensor, masks: Tensor) -> Tensor:
    """The parity of id & mask: ids (...) and int32 masks (n,) to int32 zeros and ones (..., n)."""
    x = ids.int().unsqueeze(-1) & masks
    for shift in (16, 8, 4, 2, 1):  # each half of the bits is folded onto the other
        x = x ^ (x >> shift)
    return x & 1


def tile(codes: Tensor, width: int) -> Tensor:
    """The zero-parameter lift x_i = c_(i mod K): codes (..., K) to (..., width >= K)."""
    K = codes.shape[-1]
    assert width >= K, f"width {width} cannot hold a code of {K} bits"
    copies = -(-width // K)
    return codes.repeat(*[1] * (codes.dim() - 1), copies)[..., :width]


# ---------------------------------------------------------------------------------------------
# Algebra


def rank(rows: tuple[int, ...]) -> int:
    """The rank over GF(2) of the matrix with these rows."""
    basis: list[int] = []
    for row in rows:
        for pivot in basis:
            row = min(row, row ^ pivot)  # clears the leading bit of the pivot
        if row:
            basis.append(row)
    return len(basis)
