"""Token codes over GF(2): the bits of a token id, their affine recodings, and the tiled lift.

Source: Bochkov, "Language Models Without a Trainable Input Embedding Table", section 3 and
appendix D. A code vector in {0, 1}^K is kept as one integer, bit j of the integer being
component j of the vector (j = 0 the least significant), so a K x K matrix over GF(2) is K
integers, one a row, and all algebra is exact.

Shapes: B batch, T positions, K code width, V vocabulary size, d model width.
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor


def code_width(vocab_size: int) -> int:
    """K = ceil(log2 V), the fewest bits that tell V tokens apart (Proposition 1).

    Raises ValueError if V < 2, where there is nothing to tell apart.
    """
    if vocab_size < 2:
        raise ValueError(f"vocab_size={vocab_size}: a code needs at least 2 tokens")
    return (vocab_size - 1).bit_length()


def bits(ids: Tensor, width: int) -> Tensor:
    """c(t)_j = floor(t / 2^j) mod 2: integer ids (...) to bits (..., width), same dtype."""
    return ids.unsqueeze(-1) >> torch.arange(width, device=ids.device) & 1


def tile(codes: Tensor, width: int) -> Tensor:
    """The zero-parameter lift x_i = c_(i mod K): codes (..., K) to (..., width).

    Raises ValueError if width < K: the lift would lose bits and tokens could collide.
    """
    K = codes.shape[-1]
    if width < K:
        raise ValueError(f"width {width} cannot hold a code of {K} bits (need at least {K})")
    copies = -(-width // K)
    return codes.repeat(*[1] * (codes.dim() - 1), copies)[..., :width]


@dataclass(frozen=True)
class AffineMap:
    """t -> A t xor b over GF(2)^K, a relabelling of codes that keeps them distinct.

    `rows[i]` is row i of A and `shift` is b, each as an integer. A invertible is the caller's
    promise; `random_affine_map` keeps it and `inverse` checks it.
    """

    rows: tuple[int, ...]
    shift: int

    def __call__(self, token: int) -> int:
        """The recoded id of one token; exact integer arithmetic."""
        recoded = self.shift
        for i, row in enumerate(self.rows):
            recoded ^= ((row & token).bit_count() & 1) << i
        return recoded

    def inverse(self) -> "AffineMap":
        """The map that undoes this one: A^-1 y xor A^-1 b. Raises ValueError if A is singular."""
        undo = AffineMap(invert(self.rows), 0)
        return AffineMap(undo.rows, undo(self.shift))

    def columns(self) -> tuple[int, ...]:
        """Column j of A as an integer: the image of bit j alone."""
        return transpose(self.rows)


def random_affine_map(width: int, seed: int) -> AffineMap:
    """A uniform over GL(width, 2) and b uniform, the same on every platform for one seed.

    Rejection sampling: a random square matrix over GF(2) is invertible with probability
    above 0.288, so about 3.5 draws are expected.
    """
    rng = random.Random(seed)
    while True:
        rows = tuple(rng.getrandbits(width) for _ in range(width))
        if rank(rows) == width:
            return AffineMap(rows, rng.getrandbits(width))


def recode(ids: Tensor, columns: Tensor, shift: Tensor) -> Tensor:
    """`AffineMap` on tensors: integer ids (...) to recoded ids (...), same dtype and device.

    `columns` (K,) are the columns of A and `shift` () is b: A t is the xor of the columns
    that the bits of t select.
    """
    recoded = shift.expand_as(ids)
    for j in range(len(columns)):
        recoded = recoded ^ (ids >> j & 1) * columns[j]
    return recoded


def rank(rows: tuple[int, ...]) -> int:
    """The rank over GF(2) of the matrix with these rows."""
    basis: list[int] = []
    for row in rows:
        for pivot in basis:
            row = min(row, row ^ pivot)  # clears the leading bit of the pivot
        if row:
            basis.append(row)
    return len(basis)


def invert(rows: tuple[int, ...]) -> tuple[int, ...]:
    """The rows of the inverse over GF(2), by Gauss-Jordan on [A | I].

    Raises ValueError if the matrix is singular.
    """
    K = len(rows)
    work = [row | 1 << K + i for i, row in enumerate(rows)]
    for j in range(K):
        pivot = next((i for i in range(j, K) if work[i] >> j & 1), None)
        if pivot is None:
            raise ValueError(f"matrix is singular over GF(2): rank {rank(rows)} of {K}")
        work[j], work[pivot] = work[pivot], work[j]
        for i in range(K):
            if i != j and work[i] >> j & 1:
                work[i] ^= work[j]
    return tuple(row >> K for row in work)


def transpose(rows: tuple[int, ...]) -> tuple[int, ...]:
    """The columns of a square matrix over GF(2), each as an integer."""
    K = len(rows)
    return tuple(sum((rows[i] >> j & 1) << i for i in range(K)) for j in range(K))


def random_codes(vocab_size: int, width: int, seed: int) -> list[int]:
    """V distinct random codes of `width` bits, the same on every platform for one seed.

    The control for minimality: injective like the binary code, of any width >= K. Raises
    ValueError if the width cannot tell V tokens apart.
    """
    if width < code_width(vocab_size):
        raise ValueError(
            f"{width} bits cannot tell {vocab_size} tokens apart"
            f" (need at least {code_width(vocab_size)})"
        )
    rng = random.Random(seed)
    codes: dict[int, None] = {}  # a set that remembers the order of the draws
    while len(codes) < vocab_size:
        codes[rng.getrandbits(width)] = None
    return list(codes)
