"""The input layers: what turns token ids (B, T) into vectors (B, T, C).

Two are trained tables; the others are codes that follow from the settings, without one trainable
number. A new one is a subclass of `InputLayer` and a line of INPUT_LAYERS at the end; a setting of
its own is a line of `InputConfig` and a name in its `uses`. No other file has to change.

Shapes: B batch, T positions, C = n_embd model width, V vocabulary size, K bits of an id, n bytes
of a token's text.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import codes
from inputcodes.configurator import Settings, names_where, setting

MAX_SPELLING = 16  # bytes of a token's text that count, unless `spelling_bytes` says otherwise
of_input_layer = functools.partial(setting, of_input_layer=True)


@dataclass(frozen=True)
class InputConfig(Settings):
    vocab_size: int = setting(0, "tokens in the vocabulary; 0 takes the data set's", least=0)
    n_embd: int = setting(128, "model width", least=1, most=2**20)
    input_layer: str = of_input_layer(
        "fixed", "what turns token ids into vectors", choices=lambda: list(INPUT_LAYERS)
    )
    table_std: float = of_input_layer(0.02, "learned, compressed: initial sd of the table", above=0)
    compression: int = of_input_layer(8, "compressed: n_embd over the codes' width", least=1)
    table_of: str = of_input_layer(
        "",
        "compressed: folder of a run; the table starts as the principal components of its input "
        "vectors, with sd table_std over all numbers; empty: as random numbers",
        is_path=True,
    )
    train_table: bool = of_input_layer(True, "learned, compressed: train the table, or keep it")
    code_length: int = of_input_layer(
        0, "codeword, spelling, random: positions of the code, tiled to n_embd; 0: n_embd", least=0
    )
    code_scale: float = of_input_layer(1.0, "codes: factor of their values", above=0)
    code_seed: int = of_input_layer(
        1, "affine, codeword, spelling, random: seed of the code, apart from `seed`", least=0
    )
    spelling_bytes: int = of_input_layer(
        0, "spelling: how many bytes of a token's text count; 0: all, up to 16", least=0, most=255
    )
    spelling_id: bool = of_input_layer(True, "spelling: add the codeword of the id")
    frozen_of: str = of_input_layer(
        "fixed", "frozen: the layer whose vectors are stored", choices=lambda: fixed_layers()
    )

    @property
    def K(self) -> int:
        """Bits of an id."""
        return codes.code_width(self.vocab_size)

    @property
    def code_positions(self) -> int:
        return self.code_length or self.n_embd

    def without_effect(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that are settings of other input layers than this one."""
        uses = {"input_layer"} | INPUT_LAYERS[self.input_layer].uses
        if "frozen_of" in uses:
            uses |= INPUT_LAYERS[self.frozen_of].uses
        return [name for name in names if name in INPUT_FIELDS and name not in uses]

    def problems(self) -> list[str]:
        problems = super().problems()
        if problems or not self.vocab_size:
            return problems
        if self.vocab_size == 1:
            return ["vocab_size=1: expected at least 2"]
        return INPUT_LAYERS[self.input_layer].problems(self)


INPUT_FIELDS = names_where(InputConfig, "of_input_layer")  # what matched variants may differ in


class InputLayer(nn.Module):
    """Turns ids (B, T) into vectors (B, T, C), in the `forward` of its subclasses.

    `uses` are the INPUT_FIELDS that decide its vectors. `texts` are the bytes of all V tokens,
    empty for special tokens (`Tokenizer.texts`).
    """

    uses: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: InputConfig, texts: Sequence[bytes] = ()) -> None:
        super().__init__()
        self.config = config

    @staticmethod
    def problems(config: InputConfig) -> list[str]:
        """One sentence for everything in the settings that this layer cannot do."""
        return []


class LearnedInput(InputLayer):
    """The standard lookup: a V x C table, trained unless `train_table` is off."""

    uses = frozenset({"table_std", "train_table"})

    def __init__(self, config: InputConfig, texts: Sequence[bytes] = ()) -> None:
        super().__init__(config)
        table = torch.empty(config.vocab_size, self.table_width(config))
        self.weight = nn.Parameter(table, requires_grad=config.train_table)

    @staticmethod
    def table_width(config: InputConfig) -> int:
        return config.n_embd

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class CompressedInput(LearnedInput):
    """A V x C / compression table, tiled to width C (Bee, section 3); random, or of `table_of`."""

    uses = LearnedInput.uses | {"compression", "table_of"}

    @staticmethod
    def table_width(config: InputConfig) -> int:
        return config.n_embd // config.compression

    @staticmethod
    def problems(config: InputConfig) -> list[str]:
        if config.n_embd % config.compression:
            return [f"compression={config.compression} does not divide n_embd={config.n_embd}"]
        return []

    def forward(self, ids: Tensor) -> Tensor:
        return codes.tile(super().forward(ids), self.config.n_embd)


class CodeInput(InputLayer):
    """A code without a trainable number: `code_scale` times what `code` makes of ids (B, T)."""

    uses = frozenset({"code_scale"})

    def code(self, ids: Tensor) -> Tensor:
        """Vectors (B, T, C) of ids (B, T): what a code is, so each says it itself."""
        raise NotImplementedError

    def forward(self, ids: Tensor) -> Tensor:
        return self.config.code_scale * self.code(ids)


class FixedInput(CodeInput):
    """x(t) = R bin_K(t): the bits of the id, tiled (Bochkov, section 3)."""

    masks: Tensor
    shift: Tensor

    def __init__(self, config: InputConfig, texts: Sequence[bytes] = ()) -> None:
        super().__init__(config)
        code = self.choose_code(config)
        shift = [code.shift >> i & 1 for i in range(len(code.masks))]
        self.register_buffer("masks", torch.tensor(code.masks, dtype=torch.int32), persistent=False)
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.int32), persistent=False)

    @staticmethod
    def choose_code(config: InputConfig) -> codes.LinearCode:
        return codes.binary_code(config.K)

    @staticmethod
    def problems(config: InputConfig) -> list[str]:
        if config.n_embd < config.K:
            return [f"n_embd={config.n_embd}: {config.vocab_size} tokens need {config.K} bits"]
        return []

    def code(self, ids: Tensor) -> Tensor:
        return codes.tile((codes.bits(ids, self.masks) ^ self.shift).float(), self.config.n_embd)


class AffineInput(FixedInput):
    """x(t) = R (A bin_K(t) xor b): the bits of a recoded id, tiled (Bochkov, appendix D)."""

    uses = CodeInput.uses | {"code_seed"}

    @staticmethod
    def choose_code(config: InputConfig) -> codes.LinearCode:
        return codes.affine_code(config.K, config.code_seed)


class CodewordInput(FixedInput):
    """Parities of the id under `code_length` different masks, as -1 and +1.

    With K masks these are the paper's bits; with all 2^K - 1 of them any two tokens are orthogonal
    but for a constant: a rotated one-hot.
    """

    uses = CodeInput.uses | {"code_length", "code_seed"}

    @staticmethod
    def choose_code(config: InputConfig) -> codes.LinearCode:
        return codes.codeword_code(config.K, config.code_positions, config.code_seed)

    @staticmethod
    def problems(config: InputConfig) -> list[str]:
        if not config.code_length or config.K <= config.code_length <= config.n_embd:
            return FixedInput.problems(config)
        return [
            f"code_length={config.code_length}: expected {config.K} bits, for {config.vocab_size}"
            f" tokens, to n_embd={config.n_embd}"
        ]

    def code(self, ids: Tensor) -> Tensor:
        return 2 * super().code(ids) - 1


class SpellingInput(CodewordInput):
    """What a token is written with: the sum of its id's codeword and one for each (place, byte) of
    its text, over the square root of the number of summands that a token can have.

    Special tokens, which have no text, have their id's codeword alone.
    """

    uses = CodewordInput.uses | {"spelling_bytes", "spelling_id"}
    spellings: Tensor
    signs: Tensor

    def __init__(self, config: InputConfig, texts: Sequence[bytes] = ()) -> None:
        super().__init__(config)
        assert texts or self.masks.is_meta, "GPT(config, seed, tokenizer.texts())"
        longest = max(map(len, texts), default=1)
        n = min(config.spelling_bytes or MAX_SPELLING, longest)
        table = codes.spelling_table(texts or [b""] * config.vocab_size, n, config.spelling_id)
        self.register_buffer("spellings", table)  # stored with the model, V x (1 + n) bytes
        # (place, byte) is the number 256 place + byte, in a code of its own
        seed = f"{config.code_seed} spelling"
        masks = codes.codeword_code(codes.code_width(256 * n), config.code_positions, seed).masks
        signs = 2 * codes.bits(torch.arange(256 * n), torch.tensor(masks, dtype=torch.int32)) - 1
        signs = codes.tile(signs.to(torch.int8), config.n_embd).view(n, 256, -1)
        self.register_buffer("signs", signs, persistent=False)  # (n, 256, C)

    def code(self, ids: Tensor) -> Tensor:
        length, *text = self.spellings[ids].long().unbind(-1)  # 1 + n times (B, T)
        x = super().code(ids)
        if not self.config.spelling_id:
            x = x * (length == 0).unsqueeze(-1)
        for place, byte in enumerate(text):
            x = x + self.signs[place, byte] * (place < length).unsqueeze(-1)
        return x * (len(text) + self.config.spelling_id) ** -0.5


class RandomInput(CodeInput):
    """The control without algebra: distinct random codes as -1 and +1, one bit each in memory."""

    uses = CodewordInput.uses
    octets: Tensor

    def __init__(self, config: InputConfig, texts: Sequence[bytes] = ()) -> None:
        super().__init__(config)
        octets = codes.random_codes(config.vocab_size, config.code_positions, config.code_seed)
        self.register_buffer("octets", octets, persistent=False)  # (V, code_positions / 8)

    problems = staticmethod(CodewordInput.problems)

    def code(self, ids: Tensor) -> Tensor:
        x = self.octets[ids].int().unsqueeze(-1) >> torch.arange(8, device=ids.device) & 1
        x = x.flatten(-2)[..., : self.config.code_positions]
        return codes.tile(2.0 * x - 1.0, self.config.n_embd)


class FrozenInput(InputLayer):
    """The vectors of another fixed layer, stored as a V x C table that is not trained."""

    uses = frozenset({"frozen_of"})
    table: Tensor

    def __init__(self, config: InputConfig, texts: Sequence[bytes] = ()) -> None:
        super().__init__(config)
        self.of = INPUT_LAYERS[config.frozen_of](config, texts)
        table = self.of(torch.arange(config.vocab_size))
        self.register_buffer("table", table, persistent=False)  # it follows from the layer

    @staticmethod
    def problems(config: InputConfig) -> list[str]:
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


def fixed_layers() -> list[str]:
    return [name for name, layer in INPUT_LAYERS.items() if issubclass(layer, CodeInput)]
