"""A GPT whose input layer is switchable: a trained table, or codes that need none.

Read from the top: configuration, attention, block, GPT. All variants share every line but the
input layer (input_layers.py), and for one seed every weight but the input layer's (Bochkov,
sections 3 and 4).

Shapes: B batch, T positions, C = n_embd model width, H = n_head heads, D = C / H head width,
V vocabulary size.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from input_layers import INPUT_LAYERS, InputConfig
from inputcodes.configurator import setting
from inputcodes.generate import KVCache, generate
from inputcodes.loss import linear_cross_entropy

ROPE_BASE = 10_000.0
LARGEST_GRADIENT = 1e20  # of a state between blocks


@dataclass(frozen=True)
class GPTConfig(InputConfig):
    block_size: int = setting(256, "context length in tokens", least=1, most=2**24)
    n_layer: int = setting(4, "transformer blocks", least=1, most=1000)
    n_head: int = setting(2, "attention heads per block; must divide n_embd", least=1)

    def problems(self) -> list[str]:
        problems = super().problems()
        if self.n_head and (self.n_embd % self.n_head or self.n_embd // self.n_head % 2):
            problems.append(
                f"n_embd={self.n_embd} over n_head={self.n_head}: the width of a head must be an"
                " even whole number (rotary positions turn pairs)"
            )
        return problems


def rotary_angles(block_size: int, width: int) -> Tensor:
    """Angles (block_size, width / 2): position times base^(-2i / width)."""
    # rounded as Hugging Face's models round it, so that an export gives the same logits
    frequency = 1 / ROPE_BASE ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    return torch.outer(torch.arange(block_size, dtype=torch.float32), frequency)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_(i + D/2)) of x (B, H, T, D) by its position's angle.

    cos, sin (T, D/2), or (B, 1, T, D/2) where the rows differ.
    """
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


class Attention(nn.Module):
    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.n_head, self.layer = config.n_head, layer
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (B, H, all positions so far, D)
        v = v.contiguous()  # a view would keep all of qkv for the backward pass
        causal = mask is None and T > 1  # a single query attends to all that is there
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.gelu(self.fc(x)))


class BoundedGradient(torch.autograd.Function):
    """The identity; its gradient stays within LARGEST_GRADIENT.

    The paper's codes of id 0 and of id 2^K - 1 are constant vectors, which a norm turns into zeros.
    At the start of a window nothing adds to them: the state is zero after every norm, so it gives
    no weight a gradient, but its own grows by up to 1 / sqrt(eps) = 316 per norm. Below about ten
    blocks that is harmless; then it is infinite, and infinity times zero is NaN.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        largest = min(LARGEST_GRADIENT, torch.finfo(gradient.dtype).max)
        return gradient.clamp(-largest, largest)


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.n_embd, bias=False)
        self.attention = Attention(config, layer)
        self.norm_2 = nn.LayerNorm(config.n_embd, bias=False)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache | None = None
    ) -> Tensor:
        x = BoundedGradient.apply(x)
        x = x + self.attention(self.norm_1(x), cos, sin, mask, cache)
        return x + self.mlp(self.norm_2(x))


class GPT(nn.Module):
    """A decoder-only transformer: ids (B, T) to logits (B, T, V), or to the loss.

    `seed` decides every initial weight. `texts` are the bytes of all V tokens (`Tokenizer.texts`),
    of which spelling codes are made. Raises ValueError if the configuration is impossible.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTConfig, seed: int = 0, texts: Sequence[bytes] = ()) -> None:
        super().__init__()
        if problems := config.problems() or ["vocab_size=0: give it"] * (not config.vocab_size):
            raise ValueError("; ".join(problems))
        self.config = config
        self.recompute = False  # blocks in the backward pass, instead of keeping what they need
        self.input_layer = INPUT_LAYERS[config.input_layer](config, texts)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd, bias=False)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        angles = rotary_angles(config.block_size, config.n_embd // config.n_head)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self._init_weights(torch.Generator().manual_seed(seed))

    def _init_weights(self, generator: torch.Generator) -> None:
        """N(0, 0.02), less where a block writes to the residual stream (GPT-2, section 2.3).

        The input layer draws last, so that all other weights are the same whichever it is.
        """
        named = list(self.named_parameters())
        for name, weight in sorted(named, key=lambda item: item[0].startswith("input_layer.")):
            if weight.dim() == 2 and not weight.is_meta:  # meta: without numbers, to be counted
                std = self.config.table_std if name.startswith("input_layer.") else 0.02
                if name.endswith("proj.weight"):
                    std /= math.sqrt(2 * self.config.n_layer)
                nn.init.normal_(weight, std=std, generator=generator)

    def hidden(
        self, ids: Tensor, cache: KVCache | None = None, layout: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """ids (B, T) to normalised states (B, T, C).

        With a cache, ids follow what is in it: a text, then one token at a time. With a layout
        (never both) rows hold several texts: the positions (B, T) of the tokens, and which of
        them attend to which (B, 1, T, T), as `inputcodes.packing.segment_layout` gives them.
        """
        T, start = ids.shape[1], cache.length if cache is not None else 0
        x = self.input_layer(ids).type_as(self.norm.weight)  # (B, T, C); codes are float32
        mask = None
        if layout is None:
            assert start + T <= self.config.block_size, "more positions than block_size"
            assert start == 0 or T == 1, "several tokens behind a filled cache"
            cos, sin = self.cos[start : start + T], self.sin[start : start + T]
        else:
            positions, attends = layout
            cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
            # What is added to the scores; of a boolean mask every layer would make it again.
            dtype = x.dtype
            if torch.is_autocast_enabled(x.device.type):
                dtype = torch.get_autocast_dtype(x.device.type)
            mask = torch.zeros_like(attends, dtype=dtype).masked_fill(~attends, -math.inf)
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, cos, sin, mask, use_reentrant=False)
            else:
                x = block(x, cos, sin, mask, cache)
        if cache is not None:
            cache.length += T
        return self.norm(x)

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        layout: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of ids (B, T); or with targets (B, T) the mean loss in nats per token.

        The mean is over the targets that are not IGNORED.
        """
        x = self.hidden(ids, layout=layout)
        if targets is None:
            return self.head(x)
        return linear_cross_entropy(x.flatten(0, 1), self.head.weight, targets.flatten())

    @torch.no_grad()
    def input_vectors(self) -> Tensor:
        """The input vectors (V, C) of all ids, in parts: the table that other formats want."""
        ids = torch.arange(self.config.vocab_size, device=self.head.weight.device)
        return torch.cat([self.input_layer(part) for part in ids.split(8192)])

    def next_logits(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Logits (B, V) of what follows ids (B, T), which follow what is in the cache."""
        return self.head(self.hidden(ids, cache)[:, -1])

    def generate(self, ids: Tensor, max_new_tokens: int, **sampling: Any) -> Iterator[Tensor]:
        """Continue ids (B, T >= 1), yielding tokens (B,); see `inputcodes.generate.generate`."""
        return generate(self.next_logits, self.config.block_size, ids, max_new_tokens, **sampling)


def count_parameters(config: GPTConfig) -> tuple[int, int]:
    """Trainable parameters (in all, in the input layer), without allocating any."""
    with torch.device("meta"):
        model = GPT(config)
    counts = {name: w.numel() for name, w in model.named_parameters() if w.requires_grad}
    inputs = sum(n for name, n in counts.items() if name.startswith("input_layer."))
    return sum(counts.values()), inputs
