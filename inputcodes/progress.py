"""What a training run shows: its description, how far it is, its end, and its curves elsewhere."""

import dataclasses
import json
import math
import os
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from inputcodes.configurator import UserError, command, config_files
from inputcodes.distributed import Processes, autocast
from inputcodes.documents import END_OF_TURN
from inputcodes.files import read_json, write_text
from inputcodes.resume import memory_needed, start_of
from model import count_parameters

SAMPLE_TOKENS = 200  # of the sample that closes a run
USABLE = 0.95  # of a GPU's memory; CUDA itself takes the rest
CURVE_SECONDS = 10.0  # between two pictures: one takes about half a second

Write = Callable[[dict[str, Any]], None]


class Progress:
    """How far a run is: a bar on a terminal; elsewhere a plain line for each line of metrics."""

    def __init__(self, max_steps: int, step: int, shown: bool) -> None:
        """`shown` is False in all processes but the first."""
        self._shown, off = shown, None if shown else True  # None: where there is no terminal
        self._bar = tqdm(total=max_steps, initial=step, unit="step", ncols=80, disable=off)
        self._losses: list[float] = []  # since the last `log`
        self._batches = 0  # of the evaluation

    def step(self, loss: float) -> None:
        self._losses.append(loss)
        self._bar.update()

    def log(self, step: int, tokens_per_s: float) -> None:
        loss = sum(self._losses) / len(self._losses)
        self._losses.clear()
        text = f"loss {loss:.3f}, {tokens_per_s:,.0f} tokens/s"
        self._bar.set_postfix_str(text)
        if self._shown and self._bar.disable:
            print(f"step {step:>6,}: {text}", file=sys.stderr, flush=True)

    def evaluating(self) -> None:
        self._batches += 1
        self._bar.set_description_str(f"evaluating, batch {self._batches:,}")

    def evaluated(self, step: int, result: object) -> None:
        self._batches = 0
        self._bar.set_description_str("")
        if self._shown:
            self._bar.write(f"step {step:>6,}: {result}")
            sys.stdout.flush()

    def close(self) -> None:
        self._bar.close()


def describe(trainer: Any, argv: Sequence[str]) -> str:
    """The run of a Trainer that `argv` started, in lines of at most 80 columns."""
    config, data, files = trainer.config, trainer.data, config_files(type(trainer.config), argv)
    total, inputs = count_parameters(config)
    tokens = config.max_steps * config.tokens_per_step
    steps = f"{config.max_steps:,} step{'s' * (config.max_steps > 1)}"
    epochs = tokens / config.block_size / trainer.rows.rows.count
    doing, source = "writing to", "the defaults"
    if trainer.resuming:
        doing, source = f"resuming at step {trainer.step:,} in", "the checkpoint's"
    elif base := trainer.origin["base"]:
        source = "the checkpoint's"
        doing = f"fine-tuning {base['out_dir']} as of step {base['step']:,} in"
    elif config.init_from != "scratch":
        doing = "no checkpoint to resume yet: starting from scratch in"
    lines = [
        f"config: {' '.join(files) or source}",
        f"        seed {config.seed}, {config.dtype} on {trainer.processes.device}",
        f"model:  {config.input_layer} input, {inputs:,} of {total:,} parameters in it",
        f"data:   {data.path}, V={data.vocab_size:,}",
        f"        {trainer.rows.rows} to train on",
        f"        {data.rows('val', config.block_size)} to validate",
        f"recipe: {steps} x {config.tokens_per_step:,} tokens = {tokens:,} ({epochs:.2f} epochs)",
        memory_report(config, trainer.processes),
    ]
    changed = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) != f.default]
    idle = config.without_effect(changed)
    lines += [f"note:   {config.input_layer} input has no {n}: it changes nothing" for n in idle]
    change = "change: {name} {from} up to step {step:,}, {to} from there on"
    lines += map(change.format_map, trainer.origin["changes"])
    return "\n".join([*lines, f"{doing} {config.out_dir}"])


def memory_report(config: Any, processes: Processes) -> str:
    """One line for the start of a run, and a second one where a GPU is too small for it."""
    needed, device = memory_needed(config, processes.world), processes.device
    size = f"{needed / 1e9:.1f} GB" if needed > 1e9 else f"{needed / 1e6:.0f} MB"
    line = f"memory: about {size} besides the program itself"
    if device.type != "cuda":
        return line
    there = torch.cuda.get_device_properties(device).total_memory
    line += f", of {there / 1e9:.1f} GB ({torch.cuda.get_device_name(device)})"
    if needed <= USABLE * there:
        return line
    ways = [way_to_fit(config, processes.world, USABLE * there, r) for r in (False, True)]
    words = " or ".join(dict.fromkeys(way for way in ways if way))
    advice = f"the same steps fit with {words}" if words else "make the model smaller"
    return f"{line}\nwarning: that will not fit; {advice}"


def way_to_fit(config: Any, processes: int, limit: float, recompute: bool) -> str:
    """Words that make the same step fit in `limit` bytes, by more micro-steps; empty if none do."""
    share, recompute = config.batch_size // processes, recompute or config.recompute
    for parts in (n for n in range(1, share + 1) if share % n == 0):
        split = {
            "batch_size": config.batch_size // parts,
            "gradient_accumulation_steps": config.gradient_accumulation_steps * parts,
        }
        other = dataclasses.replace(config, recompute=recompute, **split)
        if memory_needed(other, processes) <= limit:
            words = [f"--{name}={value}" for name, value in split.items() if parts > 1]
            return " ".join(["--recompute"] * (recompute > config.recompute) + words)
    return ""


def not_finite(trainer: Any, loss: float, grad_norm: float) -> UserError:
    """What to say of the step that a Trainer stops at, as one of these is not finite."""
    what, path = "gradient" if math.isfinite(loss) else "loss", trainer.out_dir / "last.pt"
    cause = "no update came before: check init_from, table_std and code_scale"
    if trainer.step:
        cause = "a lower learning_rate or weight_decay may help"
    return UserError(
        f"step {trainer.step + 1}: the {what} is not finite (loss {loss}, gradient norm"
        f" {grad_norm}): stopped before the update; {cause};"
        f" {f'the last checkpoint is {path}' if path.is_file() else 'no checkpoint yet'}"
    )


def sample(trainer: Any) -> str:
    """A text, or the first prompt of the validation data and the reply to it."""
    model, tokenizer = trainer.raw_model, trainer.data.tokenizer
    device, ids = trainer.processes.device, tokenizer.encode("\n")
    if trainer.data.chat:
        tokens = trainer.data.val.shards[0]
        ids = tokens[: np.argmax(tokens == tokenizer.special["<|assistant|>"]) + 1].tolist()
    torch.use_deterministic_algorithms(False)  # drawing from a cumulative sum has none on CUDA
    generator = torch.Generator(device).manual_seed(1)
    ends = tokenizer.end_of_text, tokenizer.special[END_OF_TURN]
    prompt = torch.tensor([ids], device=device)
    with autocast(trainer.config.dtype, device):
        written = model.generate(
            prompt, SAMPLE_TOKENS, temperature=0.8, generator=generator, ends=ends
        )
        return str(tokenizer.decode([*ids, *map(int, written)]))


def close(trainer: Any, argv: Sequence[str]) -> None:
    """Print how the run ended, a short sample, and what to try next."""
    if trainer.step < trainer.config.max_steps or trainer.owed:
        print(f"stopped after step {trainer.step:,} and saved; this resumes it:")
        words = [word for word in argv if not word.startswith("--init_from=")]
        choice = trainer.config.init_from
        resume = choice if start_of(choice)[0] else "resume"
        print(f"  {train_command(*words, f'--init_from={resume}')}")
        return
    if trainer.elapsed_s >= CURVE_SECONDS:
        _draw(trainer.out_dir)  # with the last evaluation, which may have come too soon
    seconds = trainer.elapsed_s
    duration = f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} s"
    print(f"\ndone after {duration}: {trainer.result}\na sample:")
    try:
        print(sample(trainer))
    except (Exception, KeyboardInterrupt) as error:  # the run is done and saved, whatever this is
        print(f"(none: {type(error).__name__}: {error})")
    print("\nnext: " + "\n      ".join(next_commands(trainer, argv)))


def next_commands(trainer: Any, argv: Sequence[str]) -> list[str]:
    """What to try after a run that was started by `argv`."""
    config = trainer.config
    out_dir = f"--out_dir={config.out_dir}"
    data_dir = [f"--data_dir={config.data_dir}"] if config.data_dir != "data" else []
    commands = [
        command("sample.py", out_dir, *["--chat"] * trainer.data.chat),
        command("evaluate.py", out_dir, *data_dir),
    ]
    other = "learned" if config.input_layer != "learned" else "fixed"
    matched = dataclasses.replace(config, input_layer=other)
    if config.init_from == "scratch" and not matched.problems():
        words = [word for word in argv if not word.startswith(("--input_layer=", "--out_dir="))]
        place = Path(config.out_dir)
        place = (place.parent if place.name == config.input_layer else place) / other
        commands.append(train_command(*words, f"--input_layer={other}", f"--out_dir={place}"))
    return commands


def train_command(*words: str) -> str:
    """The command that trains with these words, by torchrun if that has started this one."""
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
    launcher = f"torchrun --nproc_per_node={processes}" if processes != "1" else "python"
    return command("train.py", *words).replace("python", launcher, 1)


# ---------------------------------------------------------------------------------------------
# Weights & Biases, TensorBoard, curve.png: of run.json and metrics.jsonl


def open_dashboard(log_to: str, out_dir: Path, last_step: int) -> Write:
    """What takes the lines of metrics.jsonl after `last_step`, and draws curve.png now and then."""
    made_by = read_json(out_dir / "run.json")
    opened = {"wandb": _wandb, "tensorboard": _tensorboard}.get(log_to)
    try:
        send = opened(out_dir, made_by, last_step) if opened else None
    except Exception as error:  # nobody has logged in, say, or there is no network
        raise UserError(f"log_to={log_to!r} does not start: {error}") from error
    drawn = time.perf_counter()

    def write(line: dict[str, Any]) -> None:
        nonlocal drawn, send
        try:
            if send:
                send(line)
        except Exception as error:  # a run does not end for what metrics.jsonl has anyway
            tqdm.write(f"{log_to} gets no more of this run: {error}")
            send = None
        if "val_loss" in line and time.perf_counter() - drawn >= CURVE_SECONDS:
            _draw(out_dir)
            drawn = time.perf_counter()

    return write


def _draw(out_dir: Path) -> None:
    try:
        from inputcodes import figures  # needs matplotlib

        figures.save(figures.curve_figure([out_dir]), out_dir / "curve.png")
    except Exception as error:  # a run does not end for its picture
        tqdm.write(f"no {out_dir / 'curve.png'}: {error}")


def _wandb(out_dir: Path, made_by: dict[str, Any], last_step: int) -> Write:
    import wandb

    file = out_dir / "wandb_id"
    if not (last_step and file.is_file()):
        write_text(file, uuid.uuid4().hex[:8])
    known = {"id": file.read_text(encoding="utf-8"), "dir": out_dir, "config": made_by}
    run = wandb.init(project="input-codes", name=str(out_dir), resume="allow", **known)
    return lambda line: run.log(line, step=line["step"])


def _tensorboard(out_dir: Path, made_by: dict[str, Any], last_step: int) -> Write:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(out_dir / "tensorboard", purge_step=last_step + 1)
    if not last_step:
        writer.add_text("run.json", f"```\n{json.dumps(made_by, indent=1)}\n```")

    def write(line: dict[str, Any]) -> None:
        for name, value in line.items():
            if isinstance(value, int | float) and name != "step":
                writer.add_scalar(name, value, line["step"])
        writer.flush()

    return write
