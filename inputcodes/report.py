"""What compare.py says of finished runs: whether they are matched, tables, verdicts, JSON.

A run is what train.py left in its directory. Variants share a seed's batches and all initial
weights but the input layer's, so they are compared seed by seed: the paired difference to the
baseline with Student's 95% interval, and a verdict with a margin that was set beforehand.

    equivalent   two one-sided paired t-tests at 5% place the difference within the margin
    better       not that, and the interval is below zero
    worse        not that, and the interval is above zero
    not resolved none of these; with the seeds that would settle it if what was seen were true
"""

import contextlib
import dataclasses
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inputcodes.configurator import UserError, names_where
from inputcodes.figures import draw_figures
from inputcodes.stats import (
    Sample,
    blocked_anova,
    markdown_table,
    mean,
    paired,
    pairs_needed,
    tost_paired,
)
from model import INPUT_LAYERS, GPTConfig, count_parameters

INPUT_FIELDS = names_where(GPTConfig, "of_input_layer")
# What neither decides what a run computes nor how its loss is measured.
FREE_FIELDS = {"out_dir", "data_dir", "init_from", "log_interval", "seed"}


@dataclass(frozen=True)
class Variant:
    """A row of the table; those of one group agree in all but the input layer."""

    label: str
    settings: dict[str, Any]  # what its runs set, besides seed and directory
    group: str = ""  # what the group sets of its own, as "n_layer=2"
    kind: str = ""  # the rest of the label; empty: all of it


@dataclass(frozen=True)
class Run:
    """What a run left: run.json, and the lines of metrics.jsonl."""

    path: Path
    record: dict[str, Any]
    lines: list[dict[str, float]]

    @property
    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = self.record["config"]
        return config

    @property
    def evaluations(self) -> list[dict[str, float]]:
        return [line for line in self.lines if math.isfinite(line.get("val_loss", math.nan))]

    @property
    def last(self) -> dict[str, float]:
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


def read_run(path: Path) -> Run | None:
    """The run in `path`; None if there is none that has begun."""
    try:
        record = json.loads((path / "run.json").read_text())
        text = (path / "metrics.jsonl").read_text()
    except (OSError, json.JSONDecodeError):
        return None
    lines = []
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # a line that is being written
            lines.append(json.loads(line))
    return Run(path, record, lines)


def differences(facts: dict[str, list[dict[str, Any]]], free: set[str]) -> list[str]:
    """A line for every fact, besides those `free`, in which runs (by label, by seed) differ."""
    found = []
    for name in dict.fromkeys(name for those in facts.values() for one in those for name in one):
        values = {label: [one.get(name) for one in those] for label, those in facts.items()}
        if name in free or len({repr(v) for those in values.values() for v in those}) == 1:
            continue
        shown = [
            f"{those[0] if all(v == those[0] for v in those) else those!r} ({label})"
            for label, those in values.items()
        ]
        found.append(f"{name}: {', '.join(shown)}")
    return found


def not_matched(found: list[str]) -> UserError:
    """What to say of variants between which `found` differs."""
    return UserError(
        "not matched: besides the input layer these differ in\n"
        + "\n".join(f"  {line}" for line in found)
        + "\n(--unmatched reports them all the same, without a verdict)"
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


def compared(ours: Sample, theirs: Sample, margin: float) -> dict[str, Any]:
    """The paired difference ours - theirs in nats, its interval, and the verdict on it.

    `margin` is a share of the mean of `theirs`. With one pair there is no verdict.
    """
    base = mean(theirs)
    difference = mean(ours) - base
    result: dict[str, Any] = {"baseline": base, "difference": difference}
    result["relative"] = difference / base
    if len(ours) < 2:
        return result | {"verdict": "one seed, no verdict"}
    test = paired(ours, theirs)
    nats = margin * base
    p = tost_paired(ours, theirs, nats)
    result |= {"low": test.low, "high": test.high, "p": test.p, "tost_p": p, "margin": nats}
    if p < 0.05:
        verdict = f"equivalent within {margin:.2%}".replace(".00%", "%")
    elif test.low > 0 or test.high < 0:
        verdict = "worse" if difference > 0 else "better"
    else:
        needed = pairs_needed(difference, test.se * math.sqrt(len(ours)), nats)
        seeds = f"{needed} would" if needed else "over 1,000 would be needed"
        verdict = f"not resolved with {len(ours)} seeds ({seeds})"
        result["seeds_needed"] = needed
    return result | {"verdict": verdict}


def curve(runs: list[Run], base: list[Run], margin: float) -> list[dict[str, Any]]:
    """Loss by tokens, one point an evaluation that all of these runs have."""
    points = []
    for lines in zip(*(run.evaluations for run in runs), strict=False):
        tokens = lines[0]["tokens"]
        losses = [line["val_loss"] for line in lines]
        point = {"tokens": tokens, "val_loss": losses}
        point["val_bits_per_byte"] = [line["val_bits_per_byte"] for line in lines]
        if runs is not base:
            theirs = [
                line["val_loss"]
                for run in base
                for line in run.evaluations
                if line["tokens"] == tokens
            ]
            if len(theirs) == len(losses):  # else not matched
                point |= compared(losses, theirs, margin)
        points.append(point)
    return points


def entered(points: list[dict[str, Any]]) -> float | None:
    """The tokens from which on every point is equivalent; None if the last is not."""
    since = None
    for point in points:
        inside = point.get("verdict", "").startswith("equivalent")
        since = (since or point["tokens"]) if inside else None
    return since


def summary(variant: Variant, runs: list[Run], base: list[Run], margin: float) -> dict[str, Any]:
    """All that is known of a variant, as report.json has it."""
    names = {field.name for field in dataclasses.fields(GPTConfig)}
    config = GPTConfig(**{k: v for k, v in runs[0].config.items() if k in names})
    total, inputs = count_parameters(config)
    losses = [run.last["val_loss"] for run in runs]
    result: dict[str, Any] = {
        "variant": variant.label,
        "group": variant.group,
        "kind": variant.kind or variant.label,
        "settings": variant.settings,
        "seeds": [run.config["seed"] for run in runs],
        "input_parameters": inputs,
        "parameters": total,
        "tokens": max(run.last["tokens"] for run in runs),
        "val_loss": losses,
        "mean_val_loss": mean(losses),
        "perplexity": math.exp(min(mean(losses), 700.0)),  # the largest that a float holds
        "bits_per_byte": mean([run.last["val_bits_per_byte"] for run in runs]),
        "seed_range": (max(losses) - min(losses)) / mean(losses),
        "input_bytes": input_memory(config),
        "peak_mb": max(line.get("peak_mb", math.nan) for run in runs for line in run.evaluations),
        "tokens_per_s": statistics.median(
            line["tokens_per_s"] for run in runs for line in run.lines
        ),
        "seconds": [run.last["elapsed_s"] for run in runs],
        "curve": curve(runs, base, margin),
    }
    if runs is not base:
        result["against_baseline"] = compared(losses, [r.last["val_loss"] for r in base], margin)
        result["equivalent_from_tokens"] = entered(result["curve"])
    return result


def write_report(
    directory: Path,
    groups: list[list[tuple[Variant, list[Run | None]]]],
    seeds: list[int],
    margin: float,
    unmatched: bool = False,
) -> str:
    """Compare the runs of each group; write report.json, report.md and figures; return the text.

    A variant's runs are by seed, None where there is none yet. Seeds of which a group does not
    have every run, complete, are left out, and said. Raises UserError if runs that should be
    matched are not (unless `unmatched`), or if there is nothing to report.
    """
    notes: list[str] = []
    reported: list[list[dict[str, Any]]] = []
    spreads = []
    for group in groups:
        runs, missing = whole_seeds(group, seeds, unmatched)
        notes += [f"left out: {what}" for what in missing]
        if not all(runs.values()):
            continue
        facts = {label: [run.facts for run in those] for label, those in runs.items()}
        differing = differences(facts, INPUT_FIELDS)
        if differing and not unmatched:
            raise not_matched(differing)
        notes += [f"NOT MATCHED, {line}" for line in differing]
        base = next(iter(runs.values()))
        rows = [summary(variant, runs[variant.label], base, margin) for variant, _ in group]
        if len(rows) == 1 < len(groups):
            notes.append(
                f"compared with no other: {rows[0]['variant']} (none agrees in all but the input"
                " layer)"
            )
        if differing:
            withdraw_verdicts(rows)
        else:
            spreads.append(spread_of_recodings(rows, margin))
        reported.append(rows)
    if not reported:
        raise UserError("\n".join(["no seed has all its runs", *notes]))
    every = [run for group in groups for _, those in group for run in those if run]
    notes += differing_circumstances(every)
    rows = [row for group in reported for row in group]
    recodings = [found for found in spreads if found]
    best = best_of_each(reported, margin)
    parts = [result_table(rows), verdict_table(rows, margin), cost_table(rows)]
    parts += [*map(recoding_text, recodings), best_text(best), "\n".join(notes)]
    text = "\n\n".join(part for part in parts if part)
    result = {
        "margin": margin,
        "made_by": {name: every[0].record.get(name) for name in CIRCUMSTANCES},
        "notes": notes,
        "variants": rows,
        "recodings": recodings,
        "best": best,
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.json").write_text(json.dumps(result, indent=1) + "\n")
    (directory / "report.md").write_text(text + "\n")
    files = draw_figures(directory, reported, margin)
    names = ", ".join(f"{name}.png/.svg" for name in files)
    return f"\n{text}\n\nin {directory}: report.json, report.md,\n{names}"


def whole_seeds(
    group: list[tuple[Variant, list[Run | None]]], seeds: list[int], unmatched: bool
) -> tuple[dict[str, list[Run]], list[str]]:
    """By variant the runs of the seeds that all variants have; and what is missing."""

    def usable(run: Run | None) -> bool:
        return run is not None and (run.complete or (unmatched and bool(run.evaluations)))

    keep = [all(usable(runs[i]) for _, runs in group) for i in range(len(seeds))]
    missing = []
    for variant, runs in group:
        for seed, run in zip(seeds, runs, strict=True):
            if not usable(run):
                at = "no evaluation yet"
                if run and run.evaluations:
                    at = f"at step {run.last['step']:,} of {run.config['max_steps']:,}"
                missing.append(f"{variant.label}, seed {seed}: {at}")
    kept = {
        variant.label: [run for run, kept in zip(runs, keep, strict=True) if kept and run]
        for variant, runs in group
    }
    return kept, missing


def withdraw_verdicts(rows: list[dict[str, Any]]) -> None:
    """Of runs that are not matched differences are shown and nothing is concluded."""
    for row in rows[1:]:
        row["equivalent_from_tokens"] = None
        for found in (row["against_baseline"], *row["curve"]):
            if "verdict" in found:
                found["verdict"] = "not matched"


CIRCUMSTANCES = ("device", "platform", "cpus", "threads", "torch", "python", "commit")


def differing_circumstances(runs: list[Run]) -> list[str]:
    """Notes on what was not the same for all runs, though it should not decide the result."""
    notes = []
    for name in ("device", "threads", "torch", "code_sha256"):
        values = sorted({str(run.record.get(name))[:12] for run in runs})
        if len(values) > 1:
            notes.append(f"note: the runs differ in {name}: {', '.join(values)}")
    return notes


def spread_of_recodings(rows: list[dict[str, Any]], margin: float) -> dict[str, Any] | None:
    """Whether variants that differ in `code_seed` alone spread more than seeds explain.

    And how their mean compares with the baseline, if that is none of them.
    """
    alike: dict[str, list[Sample]] = {}
    for row in rows:
        rest = {k: v for k, v in row["settings"].items() if k != "code_seed"}
        alike.setdefault(json.dumps(rest), []).append(row["val_loss"])
    table = max(alike.values(), key=len)
    if len(table) < 2 or len(table[0]) < 2:
        return None
    found: dict[str, Any] = {"recodings": len(table), "seeds": len(table[0])}
    found |= dataclasses.asdict(blocked_anova(table))
    if rows[0]["val_loss"] not in table:
        by_seed = [mean(losses) for losses in zip(*table, strict=True)]
        found["against_baseline"] = compared(by_seed, rows[0]["val_loss"], margin)
        found["baseline"] = rows[0]["variant"]
    return found


def recoding_text(found: dict[str, Any]) -> str:
    text = f"""\
{found["recodings"]} recodings x {found["seeds"]} seeds; standard deviation that is due to the \
recoding {found["treatments_sd"]:.4f} nats,
to the seed {found["blocks_sd"]:.4f}, to neither {found["residual_sd"]:.4f}; all recodings alike: \
F = {found["f"]:.2f}, p = {found["p"]:.2g}"""
    if "against_baseline" in found:
        pooled = found["against_baseline"]
        text += f"\nmean of the recodings - {found['baseline']}: {difference_text(pooled)}:"
        text += f" {pooled['verdict']}"
    return text


def best_of_each(groups: list[list[dict[str, Any]]], margin: float) -> list[dict[str, Any]]:
    """Each kind of input layer where its mean loss is lowest, against the first kind at its own.

    For groups that differ in the recipe alone, as in a sweep of learning rates; else nothing.
    """
    shape = {field.name for field in dataclasses.fields(GPTConfig)} | {"dataset"}
    changed = {word.partition("=")[0] for group in groups for word in group[0]["group"].split()}
    if len(groups) < 2 or not changed or changed & shape:
        return []
    rows = [row for group in groups for row in group]
    most = max((row["seeds"] for row in rows), key=len)
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["seeds"] != most:
            continue  # the mean of fewer could be lower by luck
        known = best.setdefault(row["kind"], row)
        if row["mean_val_loss"] < known["mean_val_loss"]:
            best[row["kind"]] = row
    first, *others = best.values()
    return [
        {"variant": row["variant"], "against": first["variant"]}
        | compared(row["val_loss"], first["val_loss"], margin)
        for row in others
    ]


def best_text(best: list[dict[str, Any]]) -> str:
    lines = [
        f"{found['variant']} - {found['against']}: {difference_text(found)}: {found['verdict']}"
        for found in best
    ]
    return "\n".join(["Each at its best (chosen after looking):", *lines] if lines else [])


def difference_text(found: dict[str, Any]) -> str:
    """+0.0100 [-0.0796, +0.0996], +0.93%"""
    interval = f" [{found['low']:+.4f}, {found['high']:+.4f}]" if "low" in found else ""
    return f"{found['difference']:+.4f}{interval}, {found['relative']:+.2%}"


# ---------------------------------------------------------------------------------------------
# Tables


def millions(n: float) -> str:
    """Tokens or parameters, short: 5.73 M."""
    for size, letter in ((1e9, " B"), (1e6, " M")):
        if n >= size:
            return f"{n / size:.4g}{letter}"
    return f"{n:,.0f}"


def result_table(rows: list[dict[str, Any]]) -> str:
    seeds = " or ".join(map(str, sorted({len(row["seeds"]) for row in rows})))
    return (
        f"Means over {seeds} seeds. Parameters: trainable ones at the input and in all.\n"
        "Range: (max - min) / mean over seeds.\n\n"
    ) + markdown_table(
        "variant | at input | in all | tokens | loss | ppl | bits/B | range",
        [
            [
                row["variant"],
                f"{row['input_parameters']:,}",
                f"{row['parameters']:,}",
                millions(row["tokens"]),
                f"{row['mean_val_loss']:.4f}",
                f"{row['perplexity']:.3f}",
                f"{row['bits_per_byte']:.4f}",
                f"{row['seed_range']:.2%}",
            ]
            for row in rows
        ],
    )


def verdict_table(rows: list[dict[str, Any]], margin: float) -> str:
    lines, base = [], ""
    for row in rows:
        found = row.get("against_baseline")
        if not found:
            base = row["variant"]
            continue
        since = row["equivalent_from_tokens"]
        nats, _, share = difference_text(found).rpartition(", ")
        lines.append(
            [
                f"{row['variant']} - {base}",
                nats,
                share,
                found["verdict"] + (f", from {millions(since)} tokens on" if since else ""),
            ]
        )
    if not lines:
        return ""
    return f"Paired by seed; margin {margin:.2%} of the baseline's loss.\n\n" + markdown_table(
        "variant - baseline | nats [95% interval] | in % | verdict", lines
    )


def cost_table(rows: list[dict[str, Any]]) -> str:
    parts = ("parameters", "gradients", "optimizer", "fixed")
    return (
        "MB of the input layer, and the peak of a whole run; tokens/s of a run as it was,\n"
        "beside others unless --jobs=1.\n\n"
    ) + markdown_table(
        "variant | parameters | gradients | optimizer | fixed | peak | tokens/s",
        [
            [
                row["variant"],
                *(f"{row['input_bytes'][part] / 1e6:,.3f}" for part in parts),
                f"{row['peak_mb']:,.0f}",
                f"{row['tokens_per_s']:,.0f}",
            ]
            for row in rows
        ],
    )
