"""Write text from a checkpoint, token by token; or talk to one that was fine-tuned.

    python sample.py --prompt='def main(' --num_samples=3 --temperature=0.8 --top_p=0.95
    python sample.py --chat --out_dir=out/sft_default

A chat takes a line at a time until Ctrl-D (or Ctrl-C) and skips empty ones. The model reads the
whole conversation, or as much of its end as fits into the context.
"""

import inputcodes  # noqa: F401  # isort: skip  # before PyTorch: Ctrl-C while it loads
import codecs
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from inputcodes.checkpoint import load_model
from inputcodes.configurator import Settings, UserError, configure, local_path, run_main, setting
from inputcodes.distributed import autocast, setup_device
from inputcodes.documents import END_OF_TURN, encode_turns
from inputcodes.files import system_errors
from inputcodes.loss import token_nats
from inputcodes.tokenizer import Tokenizer
from model import GPT


@dataclass(frozen=True)
class SampleConfig(Settings):
    out_dir: str = setting("out", "directory of the run", is_path=True)
    checkpoint: str = setting("best", "by validation loss, or the latest", choices=("best", "last"))
    chat: bool = setting(False, "talk to a model that was fine-tuned on conversations")
    prompt: str = setting("\n", "text to continue; FILE:story.txt takes that of a file")
    num_samples: int = setting(1, "texts to write", least=1)
    max_new_tokens: int = setting(500, "most tokens of a text or a reply", least=1)
    temperature: float = setting(0.8, "0: the likeliest token; 1: as predicted", least=0, most=1e6)
    top_k: int = setting(0, "draw among the k likeliest tokens; 0: all", least=0)
    top_p: float = setting(1.0, "draw among the likeliest adding up to p; 1: all", above=0, most=1)
    seed: int = setting(1, "sample i depends on seed + i alone", least=0, most=2**62)
    loss: bool = setting(False, "end each text with the mean loss of what was written, in nats")
    device: str = setting("auto", "cuda, mps or cpu; auto: the first of these there is")
    dtype: str = setting("float32", "of the arithmetic", choices=("float32", "bfloat16"))

    renamed: ClassVar[Mapping[str, str]] = {"start": "it is called prompt here"}  # in nanoGPT

    def problems(self) -> list[str]:
        problems = super().problems()
        if not self.prompt:
            problems.append("prompt='': expected at least one character to continue")
        if self.chat and (self.prompt, self.num_samples, self.loss) != ("\n", 1, False):
            problems.append("--chat reads what you type: leave out prompt, num_samples and loss")
        if 0 < self.temperature < 1e-6:
            problems.append(f"temperature={self.temperature}: expected 0 or at least 1e-06")
        return problems


def prompt_text(prompt: str) -> str:
    """The text to continue: `prompt`, or the content of the file that it names as FILE:path."""
    if not prompt.startswith("FILE:"):
        return prompt
    path = Path(local_path(prompt.removeprefix("FILE:")))
    with system_errors("read the prompt", path):
        try:
            text = path.read_bytes().decode("utf-8-sig")  # its line ends as they are
        except UnicodeDecodeError as error:
            raise UserError(f"the prompt {path} is not UTF-8 text: convert it") from error
    if not text:
        raise UserError(f"the prompt {path} is empty: expected at least one character")
    return text


@torch.no_grad()
def mean_nats(model: GPT, ids: Sequence[int], written: Sequence[int]) -> float:
    """The mean loss of `written` behind `ids`, of as much of its end as the context holds."""
    window = [*ids, *written][-model.config.block_size - 1 :]
    tokens = torch.tensor(window, device=model.head.weight.device)
    states = model.hidden(tokens[None, :-1])[0]
    return token_nats(states, model.head.weight, tokens[1:])[-len(written) :].mean().item()


def chat(model: GPT, tokenizer: Tokenizer, config: SampleConfig) -> None:
    """Read lines and print replies to the conversation so far, until the input ends."""
    context: list[int] = []
    for number in itertools.count():
        try:
            text = input("user: ").removeprefix("\ufeff")  # of a file with a byte order mark
            text.encode()  # under LANG=C.UTF-8 what cannot be decoded comes as lone surrogates
            if not text.strip():
                continue
            context += encode_turns(tokenizer, [("user", text)]).tolist()
            print("assistant: ", end="", flush=True)
            context.append(tokenizer.special["<|assistant|>"])
            context += write_on(model, tokenizer, context, config, number)
            context.append(tokenizer.special[END_OF_TURN])
        except (EOFError, KeyboardInterrupt):
            print()
            return
        except UnicodeError as error:
            raise UserError(f"the input is not {sys.stdin.encoding} text: convert it") from error


def write_on(
    model: GPT, tokenizer: Tokenizer, ids: Sequence[int], config: SampleConfig, number: int
) -> list[int]:
    """Print what follows `ids`, as it comes, to the end of the text or turn; return its tokens."""
    device = model.head.weight.device
    prompt = torch.tensor([ids], device=device)  # (1, T)
    generator = torch.Generator(device).manual_seed(config.seed + number)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may span tokens
    ends = tokenizer.end_of_text, tokenizer.special[END_OF_TURN]
    sampling = {"temperature": config.temperature, "top_k": config.top_k, "top_p": config.top_p}
    written: list[int] = []
    with autocast(config.dtype, device):
        for token in model.generate(
            prompt, config.max_new_tokens, **sampling, generator=generator, ends=ends
        ):
            written.append(int(token))
            print(decoder.decode(tokenizer.decode_bytes(written[-1:])), end="", flush=True)
    print(decoder.decode(b"", final=True))
    return written


def main(argv: list[str]) -> None:
    config = configure(SampleConfig, argv)
    device = setup_device(config.device, config.dtype)
    model, record, tokenizer = load_model(Path(config.out_dir) / f"{config.checkpoint}.pt", device)
    if config.chat and not record.get("chat"):
        raise UserError(
            f"{config.out_dir} was not fine-tuned on conversations: docs/finetuning.md says how"
        )
    if config.chat:
        chat(model, tokenizer, config)
        return
    prompt = prompt_text(config.prompt)  # once: it may be a pipe
    ids = tokenizer.encode(prompt)
    for number in range(config.num_samples):
        if number:
            print("-" * 40)
        print(prompt, end="", flush=True)
        written = write_on(model, tokenizer, ids, config, number)
        if config.loss and written:
            print(f"[{mean_nats(model, ids, written):.4f} nats per token]")


if __name__ == "__main__":
    run_main(main, SampleConfig, "usage: python sample.py [--name=value ...]", output_needed=True)
