"""A GPT whose input layer is switchable: a trained table, or codes that need none.

Read from the top: configuration, input layers, attention, block, GPT, generation.
All variants share every line but the input layer, and for one seed every weight but
the input layer's (Bochkov, sections 3 and 4).

Shapes: B batch, T positions, C = n_embd model width, H = n_head heads, D = C / H head width,
V vocabulary size, K code width.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from codes import (
    LinearCode,
    affine_code,
    binary_code,
    bits,
    code_width,
    codeword_code,
    random_codes,
    tile,
)
from inputcodes.configurator import Settings, UserError, setting
from inputcodes.loss import linear_cross_entropy

ROPE_BASE = 10_000.0
MAX_SPELLING = 16  # bytes of a token's text that count, unless `spelling_bytes` says otherwise
LONG_TEXT, QUERIES = 512, 128  # attention on a CPU: its longest text, and queries a block
LARGE = 2**19  # numbers of a layer's states (B, T, C) from which on memory goes before time


@dataclass(frozen=True)
class GPTConfig(Settings):
    """The shape of the model and the choice of its input layer."""

    vocab_size: int = setting(0, "tokens in the vocabulary; 0 takes the data set's", least=0)
    block_size: int = setting(256, "context length in tokens", least=1, most=2**24)
    n_layer: int = setting(4, "transformer blocks", least=1, most=1000)
    n_head: int = setting(2, "attention heads per block; must divide n_embd", least=1)
    n_embd: int = setting(128, "model width", least=1, most=2**20)
    input_layer: str = setting(
        "fixed",
        "what turns token ids into vectors",
        choices=lambda: list(INPUT_LAYERS),
        of_input_layer=True,
    )
    table_std: float = setting(
        0.02, "learned, compressed: initial sd of the table", above=0, of_input_layer=True
    )
    compression: int = setting(
        8, "compressed: n_embd over the width of the learned codes", least=1, of_input_layer=True
    )
    code_length: int = setting(
        0,
        "codeword, spelling, random: positions of the code, tiled to n_embd; 0: n_embd",
        least=0,
        of_input_layer=True,
    )
    code_seed: int = setting(
        1,
        "affine, codeword, spelling, random: seed of the fixed code, apart from `seed`",
        least=0,
        of_input_layer=True,
    )
    spelling_bytes: int = setting(
        0,
        "spelling: bytes of a token's text that count, the first ones; 0: all, up to 16",
        least=0,
        most=255,
        of_input_layer=True,
    )
    spelling_id: bool = setting(
        True,
        "spelling: add the codeword of the id; without it two tokens of one spelling are an error",
        of_input_layer=True,
    )
    frozen_of: str = setting(
        "fixed",
        "frozen: the layer whose vectors are stored",
        choices=lambda: [name for name, kind in INPUT_LAYERS.items() if issubclass(kind, Code)],
        of_input_layer=True,
    )

    def problems(self) -> list[str]:
        """One sentence for every impossible value or combination."""
        problems = super().problems()
        if problems:
            return problems
        if self.n_embd % self.n_head or self.n_embd // self.n_head % 2:
            problems.append(
                f"n_embd={self.n_embd} over n_head={self.n_head}: the width of a head must be an"
                " even whole number (rotary positions turn pairs)"
            )
        if self.vocab_size == 1:
            problems.append("vocab_size=1: expected at least 2")
        elif self.vocab_size:
            problems += INPUT_LAYERS[self.input_layer].problems(self)
        return problems


# ---------------------------------------------------------------------------------------------
# Input layers: token ids (B, T) to vectors (B, T, C)


class InputLayer(nn.Module):
    """A new input layer is a subclass of this and a line of INPUT_LAYERS, nothing else.

    `texts` are those of all V tokens, empty for special tokens (`Tokenizer.texts`).
    """

    def __init__(self, config: GPTConfig, texts: Sequence[bytes] = ()) -> None:
        super().__init__()
        self.config = config

    @staticmethod
    def problems(config: GPTConfig) -> list[str]:
        """One sentence for everything that stands between this layer and the settings."""
        return []


class LearnedInput(InputLayer):
    """The standard lookup: a trainable V x C table."""

    def __init__(self, config: GPTConfig, texts: Sequence[bytes] = ()) -> None:
        super().__init__(config)
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.n_embd))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class CompressedInput(InputLayer):
    """A trainable V x C / compression table, tiled to width C (Bee, section 3)."""

    def __init__(self, config: GPTConfig, texts: Sequence[bytes] = ()) -> None:
        super().__init__(config)
        width = config.n_embd // config.compression
        self.weight = nn.Parameter(torch.empty(config.vocab_size, width))

    @staticmethod
    def problems(config: GPTConfig) -> list[str]:
        if config.n_embd % config.compression:
            return [f"compression={config.compression} does not divide n_embd={config.n_embd}"]
        return []

    def forward(self, ids: Tensor) -> Tensor:
        return tile(F.embedding(ids, self.weight), self.config.n_embd)


class Code(InputLayer):
    """A code that follows from the settings: no parameters, no table of V x C numbers."""

    def __init__(self, config: GPTConfig, texts: Sequence[bytes] = ()) -> None:
        super().__init__(config)
        self.length = config.code_length or config.n_embd
        self.register_load_state_dict_pre_hook(_drop_stored_code)

    @staticmethod
    def problems(config: GPTConfig) -> list[str]:
        K, length = code_width(config.vocab_size), config.code_length or config.n_embd
        if not K <= length <= config.n_embd:
            name = "code_length" if config.code_length else "n_embd"
            most = f", and n_embd={config.n_embd} at most" if config.code_length else ""
            return [f"{name}={length}: {config.vocab_size} tokens need {K} bits{most}"]
        return []


def _drop_stored_code(layer: nn.Module, weights: dict[str, Any], prefix: str, *_: Any) -> None:
    """Checkpoints of earlier versions hold codes that follow from the settings."""
    for name in ("columns", "shift", "codes"):
        weights.pop(prefix + name, None)


class FixedInput(Code):
    """x(t) = R bin_K(t): the bits of the id, tiled (Bochkov, section 3)."""

    masks: Tensor
    shift: Tensor

    def __init__(self, config: GPTConfig, texts: Sequence[bytes] = ()) -> None:
        super().__init__(config)
        code = self.choose(config)
        shift = [code.shift >> i & 1 for i in range(len(code.masks))]
        self.register_buffer("masks", torch.tensor(code.masks, dtype=torch.int32), persistent=False)
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.int32), persistent=False)

    @staticmethod
    def problems(config: GPTConfig) -> list[str]:
        return Code.problems(dataclasses.replace(config, code_length=0))  # a setting of others

    @staticmethod
    def choose(config: GPTConfig) -> LinearCode:
        return binary_code(code_width(config.vocab_size))

    def forward(self, ids: Tensor) -> Tensor:
        return tile((bits(ids, self.masks) ^ self.shift).float(), self.config.n_embd)


class AffineInput(FixedInput):
    """x(t) = R (A bin_K(t) xor b): the bits of a recoded id, tiled (Bochkov, appendix D)."""

    @staticmethod
    def choose(config: GPTConfig) -> LinearCode:
        return affine_code(code_width(config.vocab_size), config.code_seed)


class CodewordInput(Code):
    """Parities of the id under `code_length` different masks, as -1 and +1.

    With K masks these are the paper's bits; with all 2^K - 1 of them any two tokens are orthogonal
    but for a constant, as the rows of a table would be that is a rotated one-hot.
    """

    masks: Tensor

    def __init__(self, config: GPTConfig, texts: Sequence[bytes] = ()) -> None:
        super().__init__(config)
        code = codeword_code(code_width(config.vocab_size), self.length, config.code_seed)
        self.register_buffer("masks", torch.tensor(code.masks, dtype=torch.int32), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        return tile(2.0 * bits(ids, self.masks) - 1.0, self.config.n_embd)


class SpellingInput(CodewordInput):
    """What a token is written with: the sum of a codeword for each (place, byte) of its text and
    of its id's, over the square root of the number of summands that a token can have.

    Special tokens, which have no text, have their id's codeword alone.
    """

    spellings: Tensor
    signs: Tensor

    def __init__(self, config: GPTConfig, texts: Sequence[bytes] = ()) -> None:
        super().__init__(config)
        assert texts or torch.empty(0).is_meta, "GPT(config, seed, tokenizer.texts())"
        longest = max(map(len, texts), default=MAX_SPELLING)
        n = config.spelling_bytes or min(longest, MAX_SPELLING)
        texts = [text[:n] for text in texts] or [b""] * config.vocab_size
        if not config.spelling_id:
            refuse_one_spelling(texts)
        rows = bytearray(b"".join(bytes([len(text)]) + text.ljust(n, b"\0") for text in texts))
        table = torch.as_tensor(np.frombuffer(rows, dtype=np.uint8).reshape(-1, 1 + n))
        self.register_buffer("spellings", table)  # each a length, then the bytes
        # (place, byte) is the number 256 place + byte, in a code of its own
        code = codeword_code(code_width(256 * n), self.length, f"{config.code_seed} spelling")
        signs = 2 * bits(torch.arange(256 * n), torch.tensor(code.masks, dtype=torch.int32)) - 1
        signs = tile(signs.to(torch.int8), config.n_embd).view(n, 256, -1)
        self.register_buffer("signs", signs, persistent=False)
        self.scale = (n + config.spelling_id) ** -0.5

    def forward(self, ids: Tensor) -> Tensor:
        length, *text = self.spellings[ids].long().unsqueeze(-1).unbind(-2)  # each (B, T, 1)
        x = super().forward(ids)
        if not self.config.spelling_id:
            x = x * (length == 0)
        for place, byte in enumerate(text):
            x = x + self.signs[place, byte.squeeze(-1)] * (place < length)
        return x * self.scale


def refuse_one_spelling(texts: Sequence[bytes]) -> None:
    """Raise UserError, naming them, if two tokens that are not special have one text."""
    first: dict[bytes, int] = {}
    for token, text in enumerate(texts):
        other = first.setdefault(text, token)
        if text and other != token:
            raise UserError(
                f"tokens {other} and {token} both begin with {text!r}, and no more bytes count:"
                " raise --spelling_bytes, or keep the codeword of the id (--spelling_id=True)"
            )


class RandomInput(Code):
    """The control without algebra: distinct random codes as -1 and +1, stored a bit a number."""

    codes: Tensor

    def __init__(self, config: GPTConfig, texts: Sequence[bytes] = ()) -> None:
        super().__init__(config)
        width = -(-self.length // 8)
        drawn = random_codes(config.vocab_size, self.length, config.code_seed)
        packed = bytearray(b"".join(code.to_bytes(width, "little") for code in drawn))
        codes = torch.as_tensor(np.frombuffer(packed, dtype=np.uint8).reshape(-1, width))
        self.register_buffer("codes", codes, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        octets = self.codes[ids].int().unsqueeze(-1) >> torch.arange(8, device=ids.device)
        signs = 2.0 * (octets & 1).flatten(-2)[..., : self.length] - 1.0
        return tile(signs, self.config.n_embd)


class FrozenInput(InputLayer):
    """The vectors of another fixed layer, stored as a V x C table that is not trained."""

    table: Tensor

    def __init__(self, config: GPTConfig, texts: Sequence[bytes] = ()) -> None:
        super().__init__(config)
        self.of = INPUT_LAYERS[config.frozen_of](config, texts)
        table = self.of(torch.arange(config.vocab_size))
        self.register_buffer("table", table, persistent=False)  # it follows from the layer

    @staticmethod
    def problems(config: GPTConfig) -> list[str]:
        return INPUT_LAYERS[config.frozen_of].problems(config)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.table)


INPUT_LAYERS: dict[str, type[InputLayer]] = {
    "learned": LearnedInput,
    "fixed": FixedInput,
    "affine": AffineInput,
    "codeword": CodewordInput,
    "spelling": SpellingInput,
    "frozen": FrozenInput,
    "compressed": CompressedInput,
    "random": RandomInput,
}


# ---------------------------------------------------------------------------------------------
# Transformer


class KVCache:
    """The keys and values of the positions seen so far, preallocated for `capacity` positions."""

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


class Layout(NamedTuple):
    """Where the tokens of rows that hold several texts stand, and what they see.

    `positions` (B, T) int64, below block_size; `sees` (B, 1, T, T) bool, [b, 0, i, j] being
    whether token i attends to token j.
    """

    positions: Tensor
    sees: Tensor


def segment_layout(segments: Tensor, positions: Tensor) -> Layout:
    """A token sees what precedes it in its own segment and in segment 0, and itself.

    segments, positions (B, T) int64. Segment 0 is what the others share: the prompt of several
    answers; texts that have nothing to do with each other are segments 1, 2, ...
    """
    index = torch.arange(segments.shape[1], device=segments.device)
    theirs = segments.unsqueeze(1)  # (B, 1, T)
    related = (segments.unsqueeze(2) == theirs) | (theirs == 0)  # (B, T, T)
    return Layout(positions, (related & (index <= index.unsqueeze(1))).unsqueeze(1))


def rotary_angles(block_size: int, width: int) -> Tensor:
    """Angles (block_size, width / 2): position times base^(-2i / width)."""
    frequency = ROPE_BASE ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    return torch.outer(torch.arange(block_size, dtype=torch.float32), frequency)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_(i + D/2)) of x (B, H, T, D) by its position's angle.

    cos, sin (T, D/2), or (B, 1, T, D/2) where the rows differ.
    """
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, sees: Tensor | None = None) -> Tensor:
    """What the queries (B, H, T, D), the last T positions, read of k, v (B, H, S >= T, D).

    They read all that precedes them, or of that what `sees` (B, 1, T, S) says (T = S then).
    On a CPU plain products, a block of queries with the keys it sees, take half the time of the
    fused kernel forward and backward, and a tenth for one query; but they hold B H T S / 2
    weights at a time, so long texts go to the kernel.
    """
    T, S = q.shape[2], k.shape[2]
    if q.device.type != "cpu" or (T > 1 and S > LONG_TEXT):
        if 1 < T < S:
            sees = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
        causal = T == S and sees is None
        return F.scaled_dot_product_attention(q, k, v, attn_mask=sees, is_causal=causal)
    q = q * q.shape[-1] ** -0.5
    parts = []
    for start in range(0, T, QUERIES):
        some = q[:, :, start : start + QUERIES]  # (B, H, n, D)
        first = S - T + start  # the position of the first of them
        end = first + some.shape[2]
        bias = torch.full((some.shape[2], end), -math.inf).triu(first + 1)
        if sees is not None:
            bias = torch.zeros(()).where(sees[:, :, first:end, :end], -math.inf)
        weights = (some @ k[:, :, :end].transpose(2, 3) + bias).softmax(-1)  # (B, H, n, end)
        parts.append(weights.type_as(v) @ v[:, :, :end])
    return torch.cat(parts, dim=2)


def lean(x: Tensor, function: Callable[..., Tensor], *args: Tensor | None) -> Tensor:
    """function(*args) within a layer of states x; if they are large the backward pass repeats it.

    It does so up to the last product, whose result it has no need of. Attention weights, GELUs
    and normalised states are half of what a step keeps. On a CPU, at 2,048 tokens of width 256 or
    384, to make them anew takes a tenth off the peak and 0 to 8% more time.
    """
    large = x.device.type == "cpu" and x.numel() >= LARGE
    if not large or not torch.is_grad_enabled():
        return function(*args)
    result: Tensor = checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
    return result


class Attention(nn.Module):
    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.n_head, self.layer = config.n_head, layer
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(
        self,
        x: Tensor,
        norm: nn.LayerNorm,
        cos: Tensor,
        sin: Tensor,
        cache: KVCache | None,
        sees: Tensor | None,
    ) -> Tensor:
        B, T, C = x.shape
        qkv = lean(x, lambda x: self.qkv(norm(x)), x)
        q, k, v = qkv.view(B, T, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)  # (B, H, T, D)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        y = lean(x, causal_attention, q, k, v.contiguous(), sees)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        hidden = lean(x, lambda x: self.fc(norm(x)), x)
        return lean(x, lambda hidden: self.proj(F.gelu(hidden)), hidden)


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.n_embd, bias=False)
        self.attention = Attention(config, layer)
        self.norm_2 = nn.LayerNorm(config.n_embd, bias=False)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None, sees: Tensor | None
    ) -> Tensor:
        x = x + self.attention(x, self.norm_1, cos, sin, cache, sees)
        return x + self.mlp(x, self.norm_2)


class GPT(nn.Module):
    """A decoder-only transformer: ids (B, T) to logits (B, T, V), or to the loss.

    `seed` decides every initial weight. `texts` (`Tokenizer.texts`) belong to any model of a
    tokenizer; spelling codes are made of them. Raises ValueError if the configuration is
    impossible.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTConfig, seed: int = 0, texts: Sequence[bytes] = ()) -> None:
        super().__init__()
        if problems := config.problems() or ["vocab_size=0: give it"] * (not config.vocab_size):
            raise ValueError("; ".join(problems))
        self.config = config
        self.input_layer = INPUT_LAYERS[config.input_layer](config, texts)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd, bias=False)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        angles = rotary_angles(config.block_size, config.n_embd // config.n_head)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self._init_weights(torch.Generator().manual_seed(seed))

    @classmethod
    def from_weights(cls, config: GPTConfig, weights: Mapping[str, Tensor]) -> Self:
        """The model of a checkpoint, whose weights hold the texts if its codes need them."""
        tables = [weight for name, weight in weights.items() if name.endswith(".spellings")]
        rows = [bytes(row) for row in tables[0].tolist()] if tables else []
        gpt = cls(config, texts=[row[1 : 1 + row[0]] for row in rows])
        gpt.load_state_dict(weights)
        return gpt

    def _init_weights(self, generator: torch.Generator) -> None:
        """N(0, 0.02), less where a block writes to the residual stream (GPT-2, section 2.3).

        The input layer draws last, so that all other weights are the same whichever it is.
        """
        named = list(self.named_parameters())
        for name, weight in sorted(named, key=lambda item: item[0].startswith("input_layer.")):
            if weight.dim() == 2 and not weight.is_meta:
                std = self.config.table_std if name.startswith("input_layer.") else 0.02
                if name.endswith("proj.weight"):
                    std /= math.sqrt(2 * self.config.n_layer)
                nn.init.normal_(weight, std=std, generator=generator)

    def hidden(
        self, ids: Tensor, cache: KVCache | None = None, layout: Layout | None = None
    ) -> Tensor:
        """ids (B, T) to normalised states (B, T, C).

        With a cache, ids follow what is in it; with a layout (never both), rows hold several texts.
        """
        T = ids.shape[1]
        start = cache.length if cache is not None else 0
        if layout is None:
            assert start + T <= self.config.block_size, "more positions than block_size"
            cos, sin, sees = self.cos[start : start + T], self.sin[start : start + T], None
        else:
            cos = self.cos[layout.positions].unsqueeze(1)  # (B, 1, T, D/2)
            sin = self.sin[layout.positions].unsqueeze(1)
            sees = layout.sees
        x = self.input_layer(ids).type_as(self.norm.weight)  # (B, T, C); codes are float32
        for block in self.blocks:
            x = block(x, cos, sin, cache, sees)
        if cache is not None:
            cache.length += T
        return self.norm(x)

    def forward(
        self, ids: Tensor, targets: Tensor | None = None, layout: Layout | None = None
    ) -> Tensor:
        """Logits (B, T, V) of ids (B, T); or with targets (B, T) the mean loss in nats a token.

        The mean is over the targets that are not IGNORED.
        """
        x = self.hidden(ids, layout=layout)
        if targets is None:
            return self.head(x)
        return linear_cross_entropy(x.flatten(0, 1), self.head.weight, targets.flatten())

    @torch.no_grad()  # inference_mode would cast the weights anew for every token under autocast
    def generate(
        self,
        ids: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """Continue ids (B, T >= 1), yielding tokens (B,) one position at a time.

        temperature 0 is greedy; top_k 0 and top_p 1 keep all tokens. The context grows to
        `block_size`; then its newer half is read again and goes on growing, so a token costs the
        same however long the text is.
        """
        block_size = self.config.block_size
        context, cache = ids[:, -block_size:], KVCache(block_size)
        unread = context
        for _ in range(max_new_tokens):
            if cache.length == block_size:
                context = context[:, -max(1, block_size // 2) :]
                unread, cache.length = context, 0
            logits = self.head(self.hidden(unread, cache)[:, -1]).float()
            token = sample_token(logits, temperature, top_k, top_p, generator)
            yield token
            unread = token.unsqueeze(1)
            context = torch.cat((context, unread), dim=1)


def sample_token(
    logits: Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    generator: torch.Generator | None,
) -> Tensor:
    """Draw tokens (B,) from logits (B, V), cut to the top_k tokens, then to the top_p nucleus.

    The nucleus is the fewest tokens whose probabilities add up to top_p (Holtzman et al. 2020).
    """
    if temperature == 0:
        return logits.argmax(-1)
    p = (logits / temperature).softmax(-1)
    if not top_k and top_p >= 1:
        return _draw(p, generator)
    # what is left to draw from, the likeliest first
    p, order = p.topk(min(top_k, p.shape[-1])) if top_k else p.sort(dim=-1, descending=True)
    if top_p < 1:
        p = p / p.sum(-1, keepdim=True)
        p[p.cumsum(-1) - p >= top_p] = 0
    return order.gather(-1, _draw(p, generator).unsqueeze(-1)).squeeze(-1)


def _draw(p: Tensor, generator: torch.Generator | None) -> Tensor:
    """Indices (B,) drawn in proportion to p (B, V), which need not add up to 1.

    A group of 256 first, then one of it, so that rare ones are not lost to rounding. Two random
    numbers a row: torch.multinomial takes V, three times the time of a small model.
    """
    groups = F.pad(p, (0, -p.shape[-1] % 256)).unflatten(-1, (-1, 256))  # (B, V / 256, 256)
    group = _draw_few(groups.sum(-1), generator)
    chosen = groups.gather(1, group.view(-1, 1, 1).expand(-1, 1, 256)).squeeze(1)  # (B, 256)
    return group * 256 + _draw_few(chosen, generator)


def _draw_few(p: Tensor, generator: torch.Generator | None) -> Tensor:
    ends = p.cumsum(-1)
    shares = torch.rand(len(p), 1, device=p.device, generator=generator)
    shares = shares * (1 - 2**-23) * ends[:, -1:]  # never rounded to the whole
    return torch.searchsorted(ends, shares, right=True).squeeze(-1)


# ---------------------------------------------------------------------------------------------
# Counting parameters


def count_parameters(config: GPTConfig) -> tuple[int, int]:
    """Trainable parameters (in all, in the input layer), without allocating any."""
    with torch.device("meta"):
        model = GPT(config)
    counts = {name: weight.numel() for name, weight in model.named_parameters()}
    inputs = sum(n for name, n in counts.items() if name.startswith("input_layer."))
    return sum(counts.values()), inputs
