"""Any task of an installed lm-evaluation-harness on a run's checkpoint, without an export.

    python -m inputcodes.harness --out_dir=out/fixed32 --tasks=lambada_openai,wikitext --limit=100

The harness encodes prompt and continuation as one text and drops as many tokens as the prompt alone
has, which loses the start of a continuation where a token spans the boundary, as n-grams do. Here
both are encoded separately, and log-likelihoods are those of evaluate.py up to rounding.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inputcodes.checkpoint import load_model
from inputcodes.configurator import Settings, UserError, configure, run_main, setting
from inputcodes.distributed import Processes, autocast, setup_device
from inputcodes.files import split_list, trying, write_json
from inputcodes.loss import token_nats
from inputcodes.tasks import Prompt, fit, option_states, split_pair
from inputcodes.tokenizer import Tokenizer
from model import GPT

USAGE = "usage: python -m inputcodes.harness --tasks=NAME,... [--name=value ...]"
MOST_OPTIONS = 8  # of one prompt that share a sequence: attention is quadratic in its length


@dataclass(frozen=True)
class HarnessConfig(Settings):
    out_dir: str = setting("out", "directory of the run", is_path=True)
    checkpoint: str = setting("best", "by validation loss, or the latest", choices=("best", "last"))
    tasks: str = setting("", "names of the harness's tasks or YAML files, separated by commas")
    num_fewshot: int = setting(-1, "examples in the prompt; -1: as the task says", least=-1)
    limit: int = setting(0, "items per task, the first ones; 0: all", least=0)
    batch_size: int = setting(16, "prompts at a time", least=1)
    device: str = setting("auto", "cuda, mps or cpu; auto: the first of these there is")
    dtype: str = setting("float32", "of the arithmetic", choices=("float32", "bfloat16"))


class Adapter:
    """The methods that lm_eval.api.model.TemplateLM leaves to a model, and its pair encoding."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, batch_size: int, device: Any) -> None:
        super().__init__()
        self.gpt, self.encoding, self.batch_size = model, tokenizer, batch_size
        self.processes = Processes(torch.device(device))

    @property
    def eot_token_id(self) -> int:
        return self.encoding.end_of_text

    def tok_encode(self, string: str, add_special_tokens: Any = None, **_: Any) -> list[int]:
        return self.encoding.encode(string)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        prompt, option = split_pair(self.encoding, context, continuation)
        return prompt or [self.eot_token_id], option

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        prompts: list[Prompt] = []
        for number, (_texts, context, continuation) in enumerate(requests):
            before, after, _cut = fit(context, continuation, self.gpt.config.block_size)
            full = not prompts or len(prompts[-1].options) == MOST_OPTIONS
            if full or prompts[-1].tokens != before:
                prompts.append(Prompt(before, []))
            if after:
                prompts[-1].options.append((number, after))
        nats, greedy = np.zeros(len(requests)), np.ones(len(requests), dtype=bool)
        weight = self.gpt.head.weight
        prompts = [prompt for prompt in prompts if prompt.options]
        for states, targets, options in option_states(
            self.gpt, prompts, self.batch_size, self.processes
        ):
            losses = token_nats(states, weight, targets).cpu().numpy()
            nats += np.bincount(options, weights=losses, minlength=len(nats))
            likeliest = torch.cat([self.gpt.head(part).argmax(-1) for part in states.split(128)])
            greedy[options[(likeliest != targets).cpu().numpy()]] = False
        return list(zip((-nats).tolist(), greedy.tolist(), strict=True))

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        utils, length = importlib.import_module("lm_eval.utils"), self.gpt.config.block_size
        totals = []
        for request in requests:
            tokens = self.tok_encode(request.args[0])
            windows = utils.get_rolling_token_windows(tokens, self.eot_token_id, length, 1)
            pairs = [("", *utils.make_disjoint_window(window)) for window in windows]
            totals.append(sum(value for value, _ in self._loglikelihood_tokens(pairs)))
        return totals

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        return [self._generate(*request.args) for request in requests]

    def _generate(self, context: str, settings: dict[str, Any]) -> str:
        until = settings.get("until") or []
        stops = [until] if isinstance(until, str) else until
        most = settings.get("max_gen_toks", settings.get("max_new_tokens", 256))
        sampling = dict.fromkeys(("temperature", "top_p"), 1.0) | {"top_k": 0}
        sampling |= {name: settings[name] for name in sampling if name in settings}
        if not settings.get("do_sample", settings.get("temperature", 0) > 0):
            sampling["temperature"] = 0.0
        length = self.gpt.config.block_size
        room = max(1, length // 2, length - most)  # `generate` drops the start where it is full
        ids = (self.tok_encode(context) or [self.eot_token_id])[-room:]
        x, written, text = torch.tensor([ids], device=self.processes.device), [], ""
        for token in self.gpt.generate(x, most, **sampling, ends=[self.eot_token_id]):
            written.append(int(token))
            text = self.encoding.decode(written)
            if ends := [place for stop in stops if stop and (place := text.find(stop)) >= 0]:
                return text[: min(ends)]
        return text


def main(argv: list[str]) -> None:
    config = configure(HarnessConfig, argv)
    try:
        modules = ("lm_eval", "lm_eval.api.model", "lm_eval.tasks", "lm_eval.utils")
        lm_eval, api, tasks, utils = map(importlib.import_module, modules)
    except ImportError as error:
        raise UserError(f"this needs the harness ({error}): pip install lm_eval") from error
    names = split_list(config.tasks)
    manager = tasks.TaskManager()  # once: it reads 15,000 files
    known = manager.all_tasks
    unknown = [name for name in names if name not in known and not Path(name).is_file()]
    if unknown or not names:
        raise UserError(f"tasks={config.tasks!r}: expected names that `lm_eval ls tasks` lists")
    device = setup_device(config.device, dtype=config.dtype)
    model, record, tokenizer = load_model(Path(config.out_dir) / f"{config.checkpoint}.pt", device)
    kind = type("RunModel", (Adapter, api.TemplateLM), {})
    action = f"evaluate {config.tasks} (check the network, or the files that a task names)"
    with autocast(config.dtype, device), trying(action):
        results = lm_eval.simple_evaluate(
            model=kind(model, tokenizer, config.batch_size, device),
            tasks=names,
            task_manager=manager,
            num_fewshot=None if config.num_fewshot < 0 else config.num_fewshot,
            limit=config.limit or None,
            log_samples=False,
        )
    print(utils.make_table(results))
    values = {name: dict(result) for name, result in results["results"].items()}
    write_json(Path(config.out_dir) / "harness.json", {"step": record["step"], "results": values})


if __name__ == "__main__":
    run_main(main, HarnessConfig, USAGE)
