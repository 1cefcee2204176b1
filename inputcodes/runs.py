"""What runs left in their directories, what they measured, and whether they are matched."""

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inputcodes.configurator import Settings, UserError
from inputcodes.files import read_json, read_json_lines, write_json, write_text
from inputcodes.stats import mean
from model import INPUT_LAYERS, GPTConfig, count_parameters

BySeed = list[float | None]  # None where a seed has no such run
# Settings that decide neither what a run computes nor how its loss is measured.
FREE_FIELDS = {
    *("out_dir", "data_dir", "init_from", "seed"),
    *("log_interval", "log_to", "save_interval"),
}
CIRCUMSTANCES = ("device", "platform", "cpus", "threads", "torch", "python", "commit")


@dataclass(frozen=True)
class Variant:
    """A row of the report; those of one group agree in all but the input layer."""

    label: str
    settings: dict[str, Any]  # what its runs set, besides seed and directory
    group: str = ""  # what the group sets of its own, as "n_layer=2"
    kind: str = ""  # the rest of the label; empty: all of it


@dataclass(frozen=True)
class Run:
    """What a run left: run.json, its settings, and the lines of metrics.jsonl."""

    path: Path
    record: dict[str, Any]
    config: dict[str, Any]
    lines: list[dict[str, Any]]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if math.isfinite(line.get("val_loss", math.nan))]

    @property
    def last(self) -> dict[str, Any]:
        """The evaluation that counts: the last, not the best, which would be a choice."""
        return self.evaluations[-1]

    @property
    def complete(self) -> bool:
        return bool(self.evaluations) and self.last["step"] == self.config["max_steps"]

    @property
    def facts(self) -> dict[str, Any]:
        """What a matched run has in common with this one."""
        base = self.record.get("base") or {}
        return {name: v for name, v in self.config.items() if name not in FREE_FIELDS} | {
            "tokenizer": self.record["tokenizer_sha256"][:12],
            "data": self.record["data_sha256"][:12],
            "fine-tuned from": (base.get("step"), base.get("data_sha256")),
            "tokens": self.last["tokens"] if self.evaluations else 0,
        }


def read_run(path: Path, settings: type[Settings]) -> Run | None:
    """The run in `path`; None if none has begun there.

    Of a run made before a setting existed, that setting has its default. Raises UserError if the
    files are damaged.
    """
    if not (path / "run.json").is_file():
        return None
    record = read_json(path / "run.json", "delete the directory and run the command again")
    known = dataclasses.fields(settings)
    config = {field.name: record["config"].get(field.name, field.default) for field in known}
    return Run(path, record, config, read_metrics(path))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl in `path`; none if there is no such file.

    A last line that is being written, or was when the run was killed, does not count. Raises
    UserError, with the number of the line, for any other that is damaged.
    """
    return read_json_lines(path / "metrics.jsonl")


def differences(facts: Mapping[str, list[dict[str, Any]]], free: set[str]) -> list[str]:
    """A line for every fact, besides those `free`, in which runs (by label, by seed) differ."""
    found = []
    for name in dict.fromkeys(name for runs in facts.values() for one in runs for name in one):
        values = {label: [one.get(name) for one in runs] for label, runs in facts.items()}
        if name in free or len({repr(v) for some in values.values() for v in some}) == 1:
            continue
        shown = [
            f"{some[0] if all(v == some[0] for v in some) else some!r} ({label})"
            for label, some in values.items()
        ]
        found.append(f"{name}: {', '.join(shown)}")
    return found


def unmatched(runs: Mapping[str, list[Run]], free: set[str]) -> list[str]:
    """A line for everything, besides the facts in `free`, that keeps these runs from matching."""
    found = differences({label: [run.facts for run in some] for label, some in runs.items()}, free)
    changed = [run for some in runs.values() for run in some if run.record.get("changes")]
    return found + [f"{run.path} was resumed with changed settings" for run in changed]


def not_matched(found: Sequence[str]) -> UserError:
    """What to say of variants between which `found` differs."""
    lines = "\n".join(f"  {line}" for line in found)
    return UserError(
        f"not matched: besides the input layer these differ in\n{lines}\n"
        "(--unmatched reports them all the same, without a verdict)"
    )


def circumstances(runs: Sequence[Run]) -> list[str]:
    """Notes on what was not the same for all runs, though it should not decide the result."""
    notes = []
    for name in ("device", "threads", "torch", "code_sha256"):
        values = sorted({str(run.record.get(name))[:12] for run in runs})
        if len(values) > 1:
            notes.append(f"The runs differ in {name}: {', '.join(values)}.")
    return notes


def keep_record(run: Run, path: Path) -> None:
    """Copy run.json and metrics.jsonl to `path`, the losses by document of the last line alone."""
    lines = [line if line is run.last else _short(line) for line in run.lines]
    write_text(path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write_json(path / "run.json", run.record)


def _short(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name != "val_documents"}


# ---------------------------------------------------------------------------------------------
# Measuring


@dataclass(frozen=True)
class Point:
    """An evaluation of all runs of a row."""

    tokens: float
    losses: BySeed


@dataclass(frozen=True)
class Row:
    """What the runs of a variant measured; losses in nats per token."""

    variant: str
    group: str
    kind: str
    settings: dict[str, Any]
    losses: BySeed
    bits_per_byte: BySeed
    perplexity: float  # mean over seeds
    perplexity_range: float  # (max - min) / mean over seeds
    chance: float | None
    bigram: float | None  # of counts of the same training tokens
    tokens: int
    constant_rate: bool  # then every point of the curve is worth as much as an end
    parameters: int
    input_parameters: int
    input_bytes: dict[str, int]
    peak_mb: float
    tokens_per_s: float
    seconds: list[float]
    curve: list[Point]
    documents: list[Any] = dataclasses.field(repr=False)  # by seed (nats, tokens) of each

    @property
    def loss(self) -> float:
        return mean(present(self.losses))

    @property
    def code_length(self) -> int | None:
        """The positions of the code that come before it is tiled; None for other layers."""
        config = _config(self.settings)
        K = (config.vocab_size - 1).bit_length()
        lengths = dict.fromkeys(("codeword", "random"), config.code_length or config.n_embd)
        return (lengths | {"fixed": K, "affine": K}).get(config.input_layer)


def present(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _config(settings: dict[str, Any]) -> GPTConfig:
    names = {field.name for field in dataclasses.fields(GPTConfig)}
    return GPTConfig(**{name: v for name, v in settings.items() if name in names})


def measure(variant: Variant, by_seed: Sequence[Run | None]) -> Row:
    """What the runs of a variant measured."""
    runs = [run for run in by_seed if run]
    config = _config(runs[0].config)
    parameters, inputs = count_parameters(config)

    def last(name: str) -> BySeed:
        return [run.last.get(name) if run else None for run in by_seed]

    perplexities = [math.exp(min(loss, 700.0)) for loss in present(last("val_loss"))]
    curve = []
    for lines in zip(*(run.evaluations for run in runs), strict=False):
        losses = iter(line["val_loss"] for line in lines)
        curve.append(Point(lines[0]["tokens"], [next(losses) if run else None for run in by_seed]))
    return Row(
        variant=variant.label,
        group=variant.group,
        kind=variant.kind or variant.label,
        settings=variant.settings | dataclasses.asdict(config),
        losses=last("val_loss"),
        bits_per_byte=last("val_bits_per_byte"),
        perplexity=mean(perplexities),
        perplexity_range=(max(perplexities) - min(perplexities)) / mean(perplexities),
        chance=runs[0].last.get("val_chance"),
        bigram=mean(bigrams) if (bigrams := present(last("val_bigram"))) else None,
        tokens=max(run.last["tokens"] for run in runs),
        constant_rate=runs[0].config.get("min_lr") == runs[0].config.get("learning_rate"),
        parameters=parameters,
        input_parameters=inputs,
        input_bytes=input_memory(config),
        peak_mb=max(line.get("peak_mb", math.nan) for run in runs for line in run.evaluations),
        tokens_per_s=statistics.median(line["tokens_per_s"] for run in runs for line in run.lines),
        seconds=[run.last["elapsed_s"] for run in runs],
        curve=curve,
        documents=[run.last.get("val_documents") if run else None for run in by_seed],
    )


def input_memory(config: GPTConfig) -> dict[str, int]:
    """Bytes of the input layer in training: its weights, what they cost, and fixed tables."""
    with torch.device("meta"):
        layer = INPUT_LAYERS[config.input_layer](config)
    trained = sum(weight.numel() for weight in layer.parameters())
    return {
        "parameters": 4 * trained,
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
        "fixed": sum(buffer.numel() * buffer.element_size() for buffer in layer.buffers()),
    }
