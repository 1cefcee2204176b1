"""Generation: the keys and values kept on the way, the growing context, and drawing a token.

Shapes: B texts, T positions, H heads, D head width, V vocabulary size.
"""

import contextlib
from collections.abc import Callable, Container, Iterator

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


class KVCache:
    """The keys and values of the positions so far, preallocated for `capacity` positions."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0  # positions filled in every layer
        self.layers: dict[int, Tensor] = {}  # each (2, B, H, capacity, D)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v (B, H, T, D) behind the filled positions; return all up to there."""
        if layer not in self.layers:
            B, H, _, D = k.shape
            self.layers[layer] = k.new_empty(2, B, H, self.capacity, D)
        end = self.length + k.shape[2]
        both = self.layers[layer]
        both[0, :, :, self.length : end] = k
        both[1, :, :, self.length : end] = v
        return both[0, :, :, :end], both[1, :, :, :end]


def attention_of_any_shape() -> contextlib.AbstractContextManager[None]:
    """Attention without cuDNN, which comes first on an H100 and builds a plan for every length."""
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(kernels)


@torch.no_grad()  # inference_mode would cast the weights again for every token under autocast
def generate(
    next_logits: Callable[[Tensor, KVCache], Tensor],
    block_size: int,
    ids: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    ends: Container[int] = (),
) -> Iterator[Tensor]:
    """Continue ids (B, T >= 1), yielding tokens (B,) one position at a time.

    A single text (B = 1) stops before a token that `ends` it.

    `next_logits` reads ids behind what the cache holds and gives the logits (B, V) of what follows.
    temperature 0 is greedy; top_k 0 and top_p 1 keep all tokens. The context grows to
    `block_size`; then its newer half is read again and goes on growing, so a token costs the
    same however long the text is.
    """
    context, cache = ids[:, -block_size:], KVCache(block_size)
    unread = context
    for _ in range(max_new_tokens):
        if cache.length == block_size:
            context = context[:, -max(1, block_size // 2) :]
            unread, cache.length = context, 0
        with attention_of_any_shape():
            logits = next_logits(unread, cache).float()
        token = sample_token(logits, temperature, top_k, top_p, generator)
        if ends and token.item() in ends:
            return
        yield token
        unread = token.unsqueeze(1)
        context = torch.cat((context, unread), dim=1)


def sample_token(
    logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator | None
) -> Tensor:
    """Draw tokens (B,) from logits (B, V), cut to the top_k tokens, then to the top_p nucleus.

    The nucleus is the fewest tokens whose probabilities add up to top_p (Holtzman et al. 2020).
    """
    if temperature == 0:
        return logits.argmax(-1)
    p = (logits / temperature).softmax(-1)
    if not top_k and top_p >= 1:
        return draw(p, generator)
    # what is left to draw from, the likeliest first
    p, order = p.topk(min(top_k, p.shape[-1])) if top_k else p.sort(dim=-1, descending=True)
    if top_p < 1:
        p = p / p.sum(-1, keepdim=True)
        beyond = p.cumsum(-1) - p >= top_p
        beyond[..., 0] = False  # the likeliest stays, also of a top_p that float32 rounds to 0
        p[beyond] = 0
    return order.gather(-1, draw(p, generator).unsqueeze(-1)).squeeze(-1)


def draw(p: Tensor, generator: torch.Generator | None) -> Tensor:
    """Indices (B,) drawn in proportion to p (B, V), which need not add up to 1."""
    if p.device.type != "cpu":
        return torch.multinomial(p, 1, generator=generator).squeeze(-1)
    # On a CPU the V random numbers of torch.multinomial cost a tenth of a small model's token at
    # V = 65,536. One will do: where it falls among the sums, in float64 so that no rare token is
    # lost to rounding.
    ends = p.double().cumsum(-1)
    share = torch.rand(len(p), 1, dtype=torch.float64, generator=generator) * ends[:, -1:]
    return torch.searchsorted(ends, share, right=True).squeeze(-1)
