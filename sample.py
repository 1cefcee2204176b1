"""Write text from a checkpoint, token by token.

python sample.py --prompt='def main(' --num_samples=3 --temperature=0.8 --top_p=0.95
"""

import codecs
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizer import Tokenizer

from checkpoint import load_model
from configurator import UserError, configure, help_text, run_main, setting
from evaluate import autocast
from model import GPT
from processes import setup_device

USAGE = "usage: python sample.py [--name=value ...]"


@dataclass(frozen=True)
class SampleConfig:
    """What to write, and from which checkpoint."""

    out_dir: str = setting("out", "directory of the run")
    checkpoint: str = setting("best", "best (lowest validation loss) or last")
    prompt: str = setting("\n", "text to continue")
    num_samples: int = setting(1, "texts to write")
    max_new_tokens: int = setting(500, "tokens a text, at most; an end of text ends it")
    temperature: float = setting(0.8, "0: the likeliest token; 1: as the model predicts")
    top_k: int = setting(0, "draw among the k likeliest tokens; 0: all")
    top_p: float = setting(1.0, "draw among the likeliest tokens that add up to p; 1: all")
    seed: int = setting(1, "sample i depends on seed + i alone")
    device: str = setting("auto", "cuda, mps or cpu; auto: the first of these there is")
    dtype: str = setting("float32", "float32 or bfloat16")

    def problems(self) -> list[str]:
        """One sentence for every impossible value."""
        found = [
            f"{name}={getattr(self, name)!r}: expected {expected}"
            for name, fine, expected in (
                ("num_samples", self.num_samples >= 1, "at least 1"),
                ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
                ("temperature", 0 <= self.temperature < float("inf"), "at least 0"),
                ("top_k", self.top_k >= 0, "at least 0"),
                ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
                ("seed", self.seed >= 0, "at least 0"),
                ("checkpoint", self.checkpoint in ("best", "last"), "best or last"),
                ("dtype", self.dtype in ("float32", "bfloat16"), "float32 or bfloat16"),
            )
            if not fine
        ]
        if not self.prompt:
            found.append("prompt='': expected at least one character to continue")
        return found


def write_sample(model: GPT, tokenizer: Tokenizer, config: SampleConfig, number: int) -> None:
    """Print the prompt and its continuation as it comes."""
    device = model.head.weight.device
    prompt = torch.tensor([tokenizer.encode(config.prompt)], device=device)  # (1, T)
    generator = torch.Generator(device).manual_seed(config.seed + number)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may span tokens
    print(config.prompt, end="", flush=True)
    with autocast(config.dtype, device):
        for token in model.generate(
            prompt,
            config.max_new_tokens,
            config.temperature,
            config.top_k,
            config.top_p,
            generator,
        ):
            if token.item() == tokenizer.end_of_text:
                break
            print(decoder.decode(tokenizer.decode_bytes(token.tolist())), end="", flush=True)
    print(decoder.decode(b"", final=True))


def main(argv: list[str]) -> None:
    """Write samples as `argv` says; see the module's docstring."""
    if {"-h", "--help"} & set(argv):
        print(help_text(SampleConfig, USAGE))
        return
    config = configure(SampleConfig, argv)
    device = setup_device(config.device)
    model, record = load_model(Path(config.out_dir) / f"{config.checkpoint}.pt", device)
    tokenizer = Tokenizer.from_json(record["tokenizer"])
    if tokenizer.vocab_size != model.config.vocab_size:
        raise UserError(
            f"the tokenizer of {config.out_dir} has {tokenizer.vocab_size} ids,"
            f" its model {model.config.vocab_size}"
        )
    for number in range(config.num_samples):
        if number:
            print("-" * 40)
        write_sample(model, tokenizer, config, number)


if __name__ == "__main__":
    run_main(main)
