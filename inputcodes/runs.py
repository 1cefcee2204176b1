"""The runs of a study: started as processes, read back, checked to be matched, and measured."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inputcodes.checkpoint import NOT_IN_RUN_JSON, ROOT, check_record
from inputcodes.configurator import Settings, UserError, from_record
from inputcodes.distributed import PARENT
from inputcodes.files import damage_named, read_json, read_json_lines, write_json, write_text
from inputcodes.stats import mean
from inputcodes.workers import cores, progress_bar
from model import GPTConfig, count_parameters

BySeed = list[float | None]  # None where a seed has no such run
# Settings that decide neither what a run computes nor how its loss is measured.
FREE_FIELDS = {
    *("out_dir", "data_dir", "init_from", "seed"),
    *("log_interval", "log_to", "save_interval"),
}
TAIL = 2**15  # bytes at the end of metrics.jsonl, in which its last line is


@dataclass(frozen=True)
class Variant:
    """A row of the report; those of one group agree in all but the input layer."""

    label: str
    settings: dict[str, Any]  # what its runs set, besides seed and directory
    group: str = ""  # what the group sets of its own, as "n_layer=2"
    kind: str = ""  # the rest of the label; empty: the layer's name, or all of it without group


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
    """The run in `path`, None if none has begun; settings unknown to it have their defaults."""
    if not (path / "run.json").is_file():
        return None
    advice = "delete the directory and run the command again"
    record = read_json(path / "run.json", advice)
    with damage_named(path / "run.json", advice):
        check_record(record, elsewhere=NOT_IN_RUN_JSON)
    config = from_record(settings, record["config"], path / "run.json")
    lines = read_json_lines(path / "metrics.jsonl")
    for line in lines:
        needed = [line.get(name) for name in ("tokens", "val_loss", "val_bits_per_byte")]
        numbers = [value for value in line.values() if isinstance(value, int | float)]
        if "val_loss" in line and (None in needed or not all(0 <= n < 1e100 for n in numbers)):
            step = line["step"]
            raise UserError(f"{path / 'metrics.jsonl'} is damaged at step {step:,}: {advice}")
    return Run(path, record, dataclasses.asdict(config), lines)


def differences(facts: Mapping[str, list[dict[str, Any]]], free: set[str]) -> list[str]:
    """A line for every fact, besides those `free`, in which runs (by label, by seed) differ."""
    lines = []
    for name in dict.fromkeys(name for runs in facts.values() for run in runs for name in run):
        values = {label: [run.get(name) for run in runs] for label, runs in facts.items()}
        if name not in free and len({repr(v) for each in values.values() for v in each}) > 1:
            shown = {k: v[0] if len(set(map(repr, v))) == 1 else v for k, v in values.items()}
            lines.append(f"{name}: " + ", ".join(f"{v!r} ({label})" for label, v in shown.items()))
    return lines


def refuse_unmatched(runs: Mapping[str, list[Run]], free: set[str]) -> None:
    """Raise UserError if anything, besides the facts in `free`, keeps these runs from matching."""
    lines = differences({label: [run.facts for run in each] for label, each in runs.items()}, free)
    for label, each in runs.items():
        bases = {(run.record.get("base") or {}).get("sha256") for run in each}
        tables = {run.record.get("table_sha256") for run in each} - {None}  # not always recorded
        if max(len(bases), len(tables)) > 1:
            lines.append(f"the weights that init_from or table_of gave to the runs of {label}")
    changed = [run for each in runs.values() for run in each if run.record.get("changes")]
    refuse_differences(lines + [f"{run.path} was resumed with changed settings" for run in changed])


def refuse_differences(lines: Sequence[str]) -> None:
    if lines:
        shown = "\n".join(f"  {line}" for line in lines)
        raise UserError(f"not matched: besides the input layer these differ in\n{shown}")


def circumstances(runs: Sequence[Run]) -> tuple[dict[str, Any], list[str]]:
    """Those of the first run, and notes on what others had though it should not decide."""
    made_by = ("device", "platform", "cpus", "threads", "torch", "python", "commit")
    compared = ("device", "threads", "torch", "code_sha256")
    seen = {name: sorted({str(run.record.get(name)) for run in runs}) for name in compared}
    seen["code_sha256"] = [sha256[:12] for sha256 in seen["code_sha256"]]
    notes = [f"The runs differ in {k}: {', '.join(v)}." for k, v in seen.items() if len(v) > 1]
    return {name: runs[0].record.get(name) for name in made_by}, notes


def keep_record(run: Run, path: Path) -> None:
    """Copy run.json and metrics.jsonl to `path`, the losses by document of the last line alone."""
    lines = [dict(line) for line in run.lines]
    for line in lines:
        if line not in run.evaluations[-1:]:
            line.pop("val_documents", None)
    write_text(path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write_json(path / "run.json", run.record)


# ---------------------------------------------------------------------------------------------
# Running


def jobs_at_once(device: str, nproc: int) -> int:
    """One at a time on a GPU; on a CPU as many as it has cores for."""
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if device != "cpu" and (gpu or device != "auto"):
        return 1
    return max(1, cores() // nproc)


class Runner:
    """Trains runs, given as directory: (text of its config.py, tokens that it will train on)."""

    def __init__(self, plans: Mapping[Path, tuple[str, int]], jobs: int, nproc: int) -> None:
        self.plans, self.waiting, self.nproc = plans, list(plans), nproc
        self.jobs = max(1, min(jobs, len(plans)))
        self.tokens = {path: tokens_of(path) for path in plans}  # trained on so far
        self.active: dict[Path, subprocess.Popen[bytes]] = {}
        self.failed: list[str] = []
        threads = max(1, cores() // (self.jobs * nproc))
        self.environment = {"OMP_NUM_THREADS": str(threads), **os.environ, PARENT: str(os.getpid())}

    def run(self) -> list[str]:
        total, done = sum(n for _, n in self.plans.values()), sum(self.tokens.values())
        with progress_bar("", done, "tokens", total, shown=bool(self.plans)) as bar:
            try:
                while self.waiting or self.active:
                    self.look_after()
                    left = f"{len(self.waiting) + len(self.active)} of {len(self.plans)} runs left"
                    bar.set_description_str(left, False)
                    bar.update(sum(self.tokens.values()) - bar.n)
            finally:
                for process in self.active.values():
                    process.terminate()  # it saves
                for process in self.active.values():
                    process.wait()
        return self.failed

    def look_after(self) -> None:
        if self.waiting and len(self.active) < self.jobs:
            self.start(self.waiting.pop(0))
        time.sleep(0.2)
        ended = [path for path, process in self.active.items() if process.poll() is not None]
        for path in self.active:  # a resumed run repeats steps, which do not count again
            self.tokens[path] = max(self.tokens[path], tokens_of(path))
        for path in ended:
            status, log = self.active.pop(path).returncode, path / "log.txt"
            if not log.is_file():
                self.failed.append(f"{path} has been deleted while it ran")
            elif status or self.tokens[path] < self.plans[path][1]:
                lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                errors = [line for line in lines if line.startswith("error: ")] or lines[-3:]
                killed = "was killed (out of memory? try --jobs=1)"
                self.failed.append(f"{path} {killed if status == -9 else 'failed'}, says {log}:")
                self.failed += [line.removeprefix("error: ") for line in errors]

    def start(self, path: Path) -> None:
        write_text(path / "config.py", self.plans[path][0])
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.nproc}"]
        script = [str(ROOT / "train.py"), str(path / "config.py")]
        command = [sys.executable, *torchrun * (self.nproc > 1), *script]
        with open(path / "log.txt", "wb") as log:
            self.active[path] = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=self.environment
            )


def tokens_of(path: Path) -> int:
    try:
        with open(path / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            return int(re.findall(rb'"tokens": (\d+)', file.read())[-1])
    except (OSError, IndexError):  # none yet, or being replaced
        return 0


def stop(number: int, _: object) -> None:
    """Handle a signal that ends the study: raise SystemExit with the status that shells expect."""
    print("stopping: the runs save, and the same command goes on", file=sys.stderr)
    raise SystemExit(128 + number)


# ---------------------------------------------------------------------------------------------
# Measuring


@dataclass(frozen=True)
class Point:
    tokens: float
    losses: BySeed
    bigram: float | None


@dataclass(frozen=True)
class Row:
    """What the runs of a variant measured; losses in nats per token."""

    variant: str
    group: str
    kind: str
    settings: dict[str, Any]
    losses: BySeed
    new: BySeed  # losses on targets that are new behind their token; None for older runs
    again: BySeed  # and on those that are not
    bits_per_byte: BySeed
    perplexity: float  # mean over seeds
    perplexity_range: float | None  # (max - min) / mean over seeds; None for one
    chance: float | None
    bigram: float | None  # of counts of the same training tokens
    tokens: int
    constant_rate: bool  # then every point of the curve is worth as much as an end
    parameters: int
    input_parameters: int
    curve: list[Point]
    documents: list[Any] = dataclasses.field(repr=False)  # by seed (nats, tokens) of each

    @property
    def loss(self) -> float:
        return mean(present(self.losses))

    @property
    def code_length(self) -> int | None:
        """The positions of the code that come before it is tiled; None for other layers."""
        settings = self.settings
        K = (settings["vocab_size"] - 1).bit_length()
        chosen = settings["code_length"] or settings["n_embd"]
        codeword = min(chosen, 2**K - 1)  # no more masks are different
        lengths = {"codeword": codeword, "random": chosen, "fixed": K, "affine": K}
        return lengths.get(settings["input_layer"])


def present(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def measure(variant: Variant, by_seed: Sequence[Run | None]) -> Row:
    runs = [run for run in by_seed if run]
    config = from_record(GPTConfig, runs[0].config, runs[0].path / "run.json")
    parameters, inputs = count_parameters(config)

    def last(name: str) -> BySeed:
        return [run.last.get(name) if run else None for run in by_seed]

    perplexities = [math.exp(min(loss, 700.0)) for loss in present(last("val_loss"))]
    spread = max(perplexities) - min(perplexities)
    lines = [{line["tokens"]: line for line in run.evaluations} if run else {} for run in by_seed]
    curve = []
    for tokens, line in next(filter(None, lines)).items():
        if all(tokens in one for one in lines if one):  # a run can have lost lines
            losses = [one[tokens]["val_loss"] if one else None for one in lines]
            curve.append(Point(tokens, losses, line.get("val_bigram")))
    return Row(
        variant=variant.label,
        group=variant.group,
        kind=variant.kind or (config.input_layer if variant.group else variant.label),
        settings=variant.settings | dataclasses.asdict(config),
        losses=last("val_loss"),
        new=last("val_new"),
        again=last("val_again"),
        bits_per_byte=last("val_bits_per_byte"),
        perplexity=mean(perplexities),
        perplexity_range=spread / mean(perplexities) if len(runs) > 1 else None,
        chance=runs[0].last.get("val_chance"),
        bigram=mean(bigrams) if (bigrams := present(last("val_bigram"))) else None,
        tokens=max(run.last["tokens"] for run in runs),
        constant_rate=runs[0].config.get("min_lr") == runs[0].config.get("learning_rate"),
        parameters=parameters,
        input_parameters=inputs,
        curve=curve,
        documents=[run.last.get("val_documents") if run else None for run in by_seed],
    )
