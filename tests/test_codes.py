"""Propositions 1 to 3 and Corollary 1 of the paper by brute force; GF(2) algebra against numpy."""

import collections
import itertools

import numpy as np
import pytest
import torch

from codes import (
    LinearCode,
    affine_code,
    binary_code,
    bits,
    code_width,
    codeword_code,
    random_codes,
    rank,
    tile,
)

VOCAB_SIZES = [2, 3, 5, 7, 8, 9, 100, 256, 1000, 4096, 65_535, 65_536]


def code_of(token: int, code: LinearCode) -> list[int]:
    """The code of one token, by counting the ones of id & mask."""
    parities = [bin(token & mask).count("1") % 2 for mask in code.masks]
    return [p ^ (code.shift >> i & 1) for i, p in enumerate(parities)]


def as_int(code: list[int]) -> int:
    return sum(bit << i for i, bit in enumerate(code))


def table(V: int, code: LinearCode) -> np.ndarray:
    """The codes of all V tokens, (V, length), by `bits`."""
    ids, masks = torch.arange(V), torch.tensor(code.masks, dtype=torch.int32)
    return bits(ids, masks).numpy() ^ [code.shift >> i & 1 for i in range(len(code.masks))]


def as_matrix(rows: tuple[int, ...]) -> np.ndarray:
    """The matrix of these rows, entry by entry from the binary digits."""
    return np.array([[int(digit) for digit in f"{row:0{len(rows)}b}"[::-1]] for row in rows])


def all_matrices(K: int):
    return itertools.product(range(2**K), repeat=K)


@pytest.mark.parametrize("V", VOCAB_SIZES)
def test_proposition_1_width_is_minimal(V):
    K = code_width(V)
    assert 2**K >= V, "fewer codes than tokens"
    assert 2 ** (K - 1) < V, "one bit less would do"


@pytest.mark.parametrize("V", VOCAB_SIZES)
def test_the_binary_code_is_the_binary_expansion(V):
    K = code_width(V)
    expected = [[int(digit) for digit in f"{t:0{K}b}"[::-1]] for t in range(V)]
    assert table(V, binary_code(K)).tolist() == expected


@pytest.mark.parametrize("K", [1, 2, 5, 12, 17, 18])
def test_bits_are_parities(K):
    masks = codeword_code(K, 4 * K, seed=K).masks
    ids = torch.randint(2**K, (3, 7), generator=torch.Generator().manual_seed(K))
    got = bits(ids, torch.tensor(masks, dtype=torch.int32))
    assert got.shape == (3, 7, len(masks))
    expected = [[code_of(t, LinearCode(masks)) for t in row] for row in ids.tolist()]
    assert got.tolist() == expected


@pytest.mark.parametrize(("V", "d"), [(5, 7), (100, 33), (256, 64), (1000, 96), (65_536, 40)])
@pytest.mark.parametrize("kind", ["binary", "affine", "codeword"])
def test_proposition_2_no_collisions(V, d, kind):
    K = code_width(V)
    code = {
        "binary": binary_code(K),
        "affine": affine_code(K, seed=V),
        "codeword": codeword_code(K, d, seed=V),
    }[kind]
    vectors = tile(torch.from_numpy(table(V, code)), d).to(torch.int8).numpy()
    assert vectors.shape == (V, d)
    assert len({row.tobytes() for row in vectors}) == V


@pytest.mark.parametrize("K", [1, 2, 3, 8, 16])
def test_corollary_1_full_hypercube_and_balance(K):
    code = affine_code(K, seed=K)
    codes = [as_int(code_of(t, code)) for t in range(2**K)]
    assert sorted(codes) == list(range(2**K))
    for i in range(K):
        assert sum(code >> i & 1 for code in codes) == 2 ** (K - 1)
    for i, j in itertools.combinations(range(min(K, 6)), 2):
        patterns = collections.Counter((code >> i & 1, code >> j & 1) for code in codes)
        assert list(patterns.values()) == [2 ** (K - 2)] * 4


@pytest.mark.parametrize(("V", "d"), [(8, 8), (256, 64), (256, 50), (4096, 40)])
@pytest.mark.parametrize("recoded", [False, True])
def test_proposition_3_input_rank_is_K(V, d, recoded):
    K = code_width(V)
    code = affine_code(K, seed=1) if recoded else binary_code(K)
    ids = torch.tensor([as_int(code_of(t, code)) for t in range(V)])
    codes = torch.from_numpy(table(V, binary_code(K)))[ids]
    assert np.linalg.matrix_rank(tile(codes, d).numpy().astype(float)) == K


@pytest.mark.parametrize("length", [5, 6, 12, 20, 31, 100])
def test_codewords_have_the_rank_of_their_length_until_all_masks_are_used(length):
    """K = 5: as signs, min(length, 2^K - 1) positions are linearly independent."""
    code = codeword_code(5, length, seed=0)
    assert len(code.masks) == len(set(code.masks)) == min(length, 31)
    assert code.masks[:5] == (1, 2, 4, 8, 16)
    assert min(code.masks) > 0
    signs = 2.0 * table(32, code) - 1
    assert np.linalg.matrix_rank(signs) == min(length, 31)


@pytest.mark.parametrize("K", [1, 2, 5, 8])
def test_all_masks_together_are_the_simplex_code(K):
    """Any two codewords have the inner product -1; with a constant position they are orthogonal."""
    signs = 2 * table(2**K, codeword_code(K, 2**K - 1, seed=3)) - 1
    products = signs @ signs.T
    assert np.array_equal(products, 2**K * np.eye(2**K) - 1)
    constant = np.concatenate([signs, np.ones((2**K, 1), dtype=int)], axis=1)
    assert np.array_equal(constant @ constant.T, 2**K * np.eye(2**K))


def test_a_longer_codeword_goes_on_from_a_shorter_one():
    short, long = (codeword_code(16, length, seed=1) for length in (24, 1024))
    assert long.masks[:24] == short.masks
    assert codeword_code(16, 1024, seed=2).masks != long.masks
    assert rank(short.masks) == 16
    with pytest.raises(ValueError, match="code_length=15: 16 bits need at least 16"):
        codeword_code(16, 15, seed=1)


@pytest.mark.parametrize(("K", "d"), [(1, 1), (3, 3), (3, 7), (8, 64), (16, 1024), (16, 100)])
def test_tile_repeats_the_code(K, d):
    codes = torch.randint(2, (2, 5, K))
    lifted = tile(codes, d)
    assert lifted.shape == (2, 5, d)
    for i in range(d):
        assert torch.equal(lifted[..., i], codes[..., i % K])


@pytest.mark.parametrize("K", [1, 2, 3])
def test_rank_of_every_small_matrix(K):
    """A K x K matrix is invertible exactly when its 2^K combinations of rows are distinct."""
    invertible = 0
    for rows in all_matrices(K):
        A = as_matrix(rows)
        span = {tuple(np.array(x) @ A % 2) for x in itertools.product([0, 1], repeat=K)}
        assert 2 ** rank(rows) == len(span)
        if len(span) == 2**K:
            invertible += 1
    assert invertible == np.prod([2**K - 2**i for i in range(K)])  # the order of GL(K, 2)


def test_affine_code_of_all_65536_ids():
    code = affine_code(16, seed=7)
    A, V = as_matrix(code.masks), 65_536
    digits = np.arange(V)[:, None] >> np.arange(16) & 1
    shift = code.shift >> np.arange(16) & 1
    got = table(V, code)
    assert np.array_equal(got, (digits @ A.T + shift) % 2)
    assert len({row.tobytes() for row in got}) == V  # invertible: no two ids share a code


def test_seeded_codes_never_change():
    """Checkpoints and papers quote code_seed: these values are fixed for good."""
    assert affine_code(4, seed=0) == LinearCode((13, 6, 12, 14), 6)
    assert affine_code(16, seed=1) != affine_code(16, seed=2)
    assert codeword_code(4, 8, seed=0).masks == (1, 2, 4, 8, 13, 6, 12, 14)
    assert codeword_code(4, 8, seed="1 spelling").masks == (1, 2, 4, 8, 9, 5, 3, 15)


def test_affine_codes_are_uniform_over_the_group():
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(3000):
        rows = affine_code(2, seed).masks
        counts[rows] = counts.get(rows, 0) + 1
    assert len(counts) == 6  # |GL(2, 2)|
    chi_square = sum((n - 500) ** 2 / 500 for n in counts.values())
    assert chi_square < 20.5  # the 0.1% point for 5 degrees of freedom


@pytest.mark.parametrize(("V", "length"), [(8, 3), (100, 7), (1000, 64), (4096, 12)])
def test_random_codes_are_distinct(V, length):
    codes = random_codes(V, length, seed=0)
    assert codes.shape == (V, -(-length // 8))
    numbers = {int.from_bytes(bytes(row), "little") for row in codes.tolist()}
    assert len(numbers) == V
    assert max(numbers) < 2**length
    assert not torch.equal(codes, random_codes(V, length, seed=1))
