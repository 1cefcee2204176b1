"""Generation against a reference without a cache, and drawing against the distribution."""

import math

import pytest
import torch

from inputcodes.generate import sample_token
from model import GPT, GPTConfig


def tiny_gpt(block_size: int = 16) -> GPT:
    shape = {"block_size": block_size, "n_layer": 2, "n_head": 2, "n_embd": 24}
    gpt = GPT(GPTConfig(vocab_size=50, **shape), seed=0)
    with torch.no_grad():
        for weight in gpt.parameters():  # so large that what is attended to, and where, decides
            weight += 0.3 * torch.randn(weight.shape)
    return gpt


def random_ids(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(seed))


def greedy_without_cache(gpt: GPT, ids: list[int], count: int) -> list[int]:
    """Read the whole context anew for every token, by the documented rule of its growth."""
    block = gpt.config.block_size
    context, out = ids[-block:], []
    fresh = True  # the prompt may fill the block; after it, a full block is halved
    for _ in range(count):
        if not fresh and len(context) > block:
            context = context[-max(1, block // 2) :]
        fresh = False
        token = int(gpt(torch.tensor([context]))[0, -1].argmax())
        out.append(token)
        context = [*context, token]
    return out


@pytest.mark.parametrize(("block_size", "prompt"), [(16, 1), (16, 5), (16, 16), (16, 40), (1, 3)])
def test_greedy_generation_with_the_cache_equals_without(block_size, prompt):
    gpt, ids = tiny_gpt(block_size), random_ids((1, prompt), seed=prompt)
    cached = [int(t) for t in gpt.generate(ids, 50, temperature=0)]
    assert cached == greedy_without_cache(gpt, ids[0].tolist(), 50)
    assert len(set(cached)) > 1


def test_batched_generation_equals_one_by_one():
    gpt, ids = tiny_gpt(), random_ids((4, 5))
    together = torch.stack(list(gpt.generate(ids, 20, temperature=0)), dim=1)
    for row, prompt in zip(together, ids, strict=True):
        alone = [int(t) for t in gpt.generate(prompt[None], 20, temperature=0)]
        assert row.tolist() == alone


def test_sampling_follows_the_cut_distribution():
    p = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05])
    logits = p.log().repeat(20_000, 1)
    generator = torch.Generator().manual_seed(0)

    def frequencies(**cut):
        options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | cut
        drawn = sample_token(logits, generator=generator, **options)
        return (torch.bincount(drawn, minlength=5) / len(drawn)).tolist()

    assert frequencies() == pytest.approx(p.tolist(), abs=0.015)
    assert frequencies(top_k=2) == pytest.approx([5 / 7, 2 / 7, 0, 0, 0], abs=0.015)
    assert frequencies(top_p=0.6) == pytest.approx([5 / 7, 2 / 7, 0, 0, 0], abs=0.015)
    assert frequencies(top_k=3, top_p=0.55) == [1, 0, 0, 0, 0]  # 0.5 / 0.85 is more than that
    sharp = (p**2 / (p**2).sum()).tolist()
    assert frequencies(temperature=0.5) == pytest.approx(sharp, abs=0.015)
    assert frequencies(temperature=0) == [1, 0, 0, 0, 0]


def test_sampling_reaches_every_token_of_a_large_vocabulary_in_proportion():
    p = torch.rand(700, generator=torch.Generator().manual_seed(0)) ** 3
    p[300:320] = 0
    p /= p.sum()
    generator = torch.Generator().manual_seed(1)
    logits, draws = p.log().repeat(5_000, 1), 100_000
    drawn = [sample_token(logits, 1.0, 0, 1.0, generator) for _ in range(20)]
    counts = torch.bincount(torch.cat(drawn), minlength=700)
    assert len(counts) == 700
    assert counts[300:320].sum() == 0
    kept = p * draws > 5
    chi_square = ((counts - p * draws) ** 2 / (p * draws))[kept].sum().item()
    freedom = int(kept.sum())
    assert abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)


def test_a_nucleus_is_no_larger_than_it_must_be_and_never_empty():
    half = sample_token(torch.zeros(50, 2), 1.0, 0, 0.5, torch.Generator())
    assert len(set(half.tolist())) == 1  # one of two as likely is enough
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    for top_k in (0, 2):
        assert sample_token(logits, 1.0, top_k, 1e-320, torch.Generator()).tolist() == [1]
