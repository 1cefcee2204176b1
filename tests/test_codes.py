"""Propositions 1 to 3 and Corollary 1 of the paper by brute force; GF(2) algebra against numpy."""

import itertools

import numpy as np
import pytest
import torch

from codes import (
    AffineMap,
    bits,
    code_width,
    invert,
    random_affine_map,
    random_codes,
    rank,
    recode,
    tile,
    transpose,
)

VOCAB_SIZES = [2, 3, 5, 7, 8, 9, 100, 256, 1000, 4096, 65_535, 65_536]


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


@pytest.mark.parametrize("V", [1, 0, -5])
def test_width_needs_two_tokens(V):
    with pytest.raises(ValueError, match=f"vocab_size={V}"):
        code_width(V)


@pytest.mark.parametrize("V", VOCAB_SIZES)
def test_bits_are_the_binary_expansion(V):
    K = code_width(V)
    codes = bits(torch.arange(V), K)
    expected = [[int(digit) for digit in f"{t:0{K}b}"[::-1]] for t in range(V)]
    assert codes.tolist() == expected


@pytest.mark.parametrize(("V", "d"), [(5, 7), (100, 33), (256, 64), (1000, 96), (65_536, 40)])
def test_proposition_2_no_collisions(V, d):
    K = code_width(V)
    affine = random_affine_map(K, seed=V)
    recoded = recode(torch.arange(V), torch.tensor(affine.columns()), torch.tensor(affine.shift))
    for ids in (torch.arange(V), recoded):
        vectors = tile(bits(ids, K), d).to(torch.int8).numpy()
        assert len({row.tobytes() for row in vectors}) == V


@pytest.mark.parametrize("K", [1, 2, 3, 8, 16])
def test_corollary_1_full_hypercube_and_balance(K):
    affine = random_affine_map(K, seed=K)
    codes = [affine(t) for t in range(2**K)]
    assert sorted(codes) == list(range(2**K))
    for i in range(K):
        assert sum(code >> i & 1 for code in codes) == 2 ** (K - 1)
    for i, j in itertools.combinations(range(min(K, 6)), 2):
        patterns = [(code >> i & 1, code >> j & 1) for code in codes]
        assert all(patterns.count(pair) == 2 ** (K - 2) for pair in set(patterns))
        assert len(set(patterns)) == 4


@pytest.mark.parametrize(("V", "d"), [(8, 8), (256, 64), (256, 50), (4096, 40)])
@pytest.mark.parametrize("recoded", [False, True])
def test_proposition_3_input_rank_is_K(V, d, recoded):
    K = code_width(V)
    affine = random_affine_map(K, seed=1) if recoded else lambda t: t
    ids = torch.tensor([affine(t) for t in range(V)])
    assert np.linalg.matrix_rank(tile(bits(ids, K), d).numpy().astype(float)) == K


@pytest.mark.parametrize(("K", "d"), [(1, 1), (3, 3), (3, 7), (8, 64), (16, 1024), (16, 100)])
def test_tile_repeats_the_code(K, d):
    codes = torch.randint(2, (2, 5, K))
    lifted = tile(codes, d)
    assert lifted.shape == (2, 5, d)
    for i in range(d):
        assert torch.equal(lifted[..., i], codes[..., i % K])


def test_tile_refuses_a_width_below_K():
    with pytest.raises(ValueError, match="width 7 cannot hold a code of 8 bits"):
        tile(torch.zeros(8), 7)


@pytest.mark.parametrize("K", [1, 2, 3])
def test_rank_and_inverse_of_every_small_matrix(K):
    """A K x K matrix is invertible exactly when its 2^K combinations of rows are distinct."""
    invertible = 0
    for rows in all_matrices(K):
        A = as_matrix(rows)
        span = {tuple(np.array(x) @ A % 2) for x in itertools.product([0, 1], repeat=K)}
        assert 2 ** rank(rows) == len(span)
        if len(span) == 2**K:
            invertible += 1
            assert np.array_equal(as_matrix(invert(rows)) @ A % 2, np.eye(K))
        else:
            with pytest.raises(ValueError, match="singular"):
                invert(rows)
    assert invertible == np.prod([2**K - 2**i for i in range(K)])  # the order of GL(K, 2)


def test_transpose():
    rows = (0b011, 0b100, 0b110)
    assert np.array_equal(as_matrix(transpose(rows)), as_matrix(rows).T)


def test_affine_map_on_all_65536_ids_and_back():
    affine = random_affine_map(16, seed=7)
    A, V = as_matrix(affine.rows), 65_536
    digits = np.arange(V)[:, None] >> np.arange(16) & 1
    shift = affine.shift >> np.arange(16) & 1
    expected = ((digits @ A.T + shift) % 2) @ (1 << np.arange(16))
    on_tensors = recode(torch.arange(V), torch.tensor(affine.columns()), torch.tensor(affine.shift))
    assert [affine(t) for t in range(V)] == expected.tolist() == on_tensors.tolist()
    inverse = affine.inverse()
    assert [inverse(affine(t)) for t in range(V)] == list(range(V))


def test_identity_map_is_the_canonical_code():
    identity = AffineMap(tuple(1 << i for i in range(5)), 0)
    assert [identity(t) for t in range(32)] == list(range(32))


def test_seeded_map_never_changes():
    """Checkpoints and papers quote code_seed: these values are fixed for good."""
    assert random_affine_map(4, seed=0) == AffineMap((13, 6, 12, 14), 6)
    assert random_affine_map(16, seed=1) != random_affine_map(16, seed=2)


def test_affine_maps_are_uniform_over_the_group():
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(3000):
        rows = random_affine_map(2, seed).rows
        counts[rows] = counts.get(rows, 0) + 1
    assert len(counts) == 6  # |GL(2, 2)|
    chi_square = sum((n - 500) ** 2 / 500 for n in counts.values())
    assert chi_square < 20.5  # the 0.1% point for 5 degrees of freedom


@pytest.mark.parametrize(("V", "width"), [(8, 3), (100, 7), (1000, 64), (4096, 12)])
def test_random_codes_are_distinct(V, width):
    codes = random_codes(V, width, seed=0)
    assert len(set(codes)) == V
    assert min(codes) >= 0
    assert max(codes) < 2**width
    assert codes != random_codes(V, width, seed=1)


def test_random_codes_need_enough_bits():
    with pytest.raises(ValueError, match="7 bits cannot tell 256 tokens apart"):
        random_codes(256, 7, seed=0)
