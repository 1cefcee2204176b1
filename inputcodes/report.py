"""The report of a study: matched runs are measured, judged, and written as tables and notes."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inputcodes.configurator import UserError, names_where
from inputcodes.judging import Fit, Gap, Interval, Recodings, best_of_each, judge, recodings_of
from inputcodes.runs import (
    CIRCUMSTANCES,
    Row,
    Run,
    Variant,
    circumstances,
    measure,
    not_matched,
    present,
    unmatched,
)
from inputcodes.stats import markdown_table, mean
from model import GPTConfig

INPUT_FIELDS = names_where(GPTConfig, "of_input_layer")
Group = Sequence[tuple[Variant, Sequence[Run | None]]]


@dataclass(frozen=True)
class Report:
    margin: float
    made_by: dict[str, Any]
    notes: list[str]
    groups: list[list[Row]]
    gaps: list[list[Gap]]  # of each group, the first row is the baseline of the others
    best: list[Gap]  # each input layer where it is best, chosen after looking
    recodings: list[Recodings]

    def to_json(self) -> dict[str, Any]:
        """What report.json holds; infinite numbers as None."""
        record = dataclasses.asdict(self)
        for row in (row for group in record["groups"] for row in group):
            del row["documents"]
        text = json.dumps(record).replace("Infinity", "null")
        result: dict[str, Any] = json.loads(text)
        return result


def make_report(
    groups: Sequence[Group], seeds: Sequence[int], margin: float, allow_unmatched: bool = False
) -> Report:
    """Measure and judge; a variant's runs are by seed, None where there is none.

    Runs that are not complete are left out, and said. Raises UserError if runs that should be
    matched are not (unless `allow_unmatched`), or if there is nothing to report.
    """
    rows, notes, matched = [], [], []
    for group in groups:
        runs, left_out = usable(group, seeds, allow_unmatched)
        notes += left_out
        if not runs:
            continue
        facts = {variant.label: [run for run in some if run] for variant, some in runs}
        found = unmatched(facts, INPUT_FIELDS)
        if found and not allow_unmatched:
            raise not_matched(found)
        notes += [f"NOT MATCHED: {line}" for line in found]
        rows.append([measure(variant, some) for variant, some in runs])
        matched.append(not found)
    if not rows:
        raise UserError("\n".join(["there is nothing to report", *notes]))
    gaps = judge(rows, margin, matched)
    every = [run for group in groups for _, some in group for run in some if run]
    notes += lonely(rows) + worse_than_counting(rows) + circumstances(every)
    return Report(
        margin=margin,
        made_by={name: every[0].record.get(name) for name in CIRCUMSTANCES},
        notes=notes,
        groups=rows,
        gaps=gaps,
        best=best_of_each(rows, margin) if all(matched) else [],
        recodings=[found for group in rows for found in recodings_of(group)],
    )


def usable(
    group: Group, seeds: Sequence[int], unfinished: bool
) -> tuple[list[tuple[Variant, list[Run | None]]], list[str]]:
    """The variants with their complete runs (others None), and a note on every run left out."""
    kept, notes = [], []
    for variant, runs in group:
        some: list[Run | None] = []
        for seed, run in zip(seeds, runs, strict=True):
            evaluated = run is not None and bool(run.evaluations)
            good = run is not None and (run.complete or (unfinished and evaluated))
            some.append(run if good else None)
            if not good:
                at = "no evaluation yet"
                if run and evaluated:
                    at = f"at step {run.last['step']:,} of {run.config['max_steps']:,}"
                notes.append(f"Left out: {variant.label}, seed {seed}: {at}.")
        if any(some):
            kept.append((variant, some))
        elif variant is group[0][0]:
            return [], [*notes, f"Nothing to compare with: {variant.label} has no complete run."]
    return kept, notes


def lonely(groups: list[list[Row]]) -> list[str]:
    """A note on every row that is compared with no other."""
    return [
        f"{rows[0].variant} is compared with no other: none agrees in all but the input layer."
        for rows in groups
        if len(rows) == 1 and len(groups) > 1
    ]


def worse_than_counting(groups: list[list[Row]]) -> list[str]:
    """A note on every comparison of two that are both worse than the bigram."""
    notes = []
    for base, *others in groups:
        for row in others:
            if row.bigram and base.bigram and row.loss > row.bigram and base.loss > base.bigram:
                notes.append(
                    f"{row.variant} and {base.variant} are both worse than counts of token pairs"
                    f" ({row.bigram:.3f} nats per token): their difference says little."
                )
    return notes


# ---------------------------------------------------------------------------------------------
# Writing


def text_of(report: Report) -> str:
    """The report as Markdown."""
    rows = [row for group in report.groups for row in group]
    gaps = [gap for group in report.gaps for gap in group]
    parts = [result_table(rows)]
    if gaps:
        parts += [gap_table(gaps, report.margin), check_table(gaps)]
    fits = [(gap, fit) for gap in gaps for fit in gap.fits]
    parts += [fit_table(fits, report.margin)] if fits else []
    parts += [recoding_text(found) for found in report.recodings]
    if report.best:
        parts.append("Each at its best, chosen after looking.\n\n" + gap_lines(report.best))
    parts += [cost_table(rows), "\n".join(f"- {note}" for note in report.notes)]
    return "\n\n".join(part for part in parts if part)


def millions(n: float) -> str:
    """Tokens or parameters, short: 5.73 M."""
    for size, letter in ((1e9, " B"), (1e6, " M")):
        if n >= size:
            return f"{n / size:.4g}{letter}"
    return f"{n:,.0f}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _interval(ends: Interval | None, form: str = "+.4f") -> str:
    return f"[{ends[0]:{form}}, {ends[1]:{form}}]" if ends else "-"


def result_table(rows: list[Row]) -> str:
    seeds = " or ".join(map(str, sorted({len(present(row.losses)) for row in rows})))
    return (
        f"Means over {seeds} seeds. Loss, chance and bigram (counts of the same training tokens):\n"
        "nats per token. Range: (max - min) / mean of the perplexity over seeds. Parameters:\n"
        "trainable ones, at the input and in all.\n\n"
    ) + markdown_table(
        "variant | at input | in all | tokens | loss | bigram | chance | perplexity | range"
        " | bits per byte",
        [
            [
                row.variant,
                f"{row.input_parameters:,}",
                f"{row.parameters:,}",
                millions(row.tokens),
                f"{row.loss:.4f}",
                _number(row.bigram, ".4f"),
                _number(row.chance, ".4f"),
                f"{row.perplexity:.3f}",
                f"{row.perplexity_range:.2%}",
                f"{mean(present(row.bits_per_byte)):.4f}",
            ]
            for row in rows
        ],
    )


def gap_table(gaps: list[Gap], margin: float) -> str:
    return (
        f"Differences within seeds; margin {margin:.2%} of the baseline's loss; verdicts at 5%,\n"
        "corrected for the number of rows. Data: how many times the baseline's tokens the variant\n"
        "needs for its loss (at least, where the learning rate decays).\n\n"
    ) + gap_lines(gaps)


def gap_lines(gaps: list[Gap]) -> str:
    return markdown_table(
        "variant - baseline | nats per token [95%] | % | bits per byte | data | verdict",
        [
            [
                f"{gap.variant} - {gap.baseline}",
                f"{gap.nats:+.4f} {_interval(gap.interval) if gap.interval else ''}".strip(),
                f"{gap.share:+.2%}",
                f"{gap.bits_per_byte:+.4f}",
                f"{gap.data:.2f}x" if gap.data else "-",
                gap.verdict,
            ]
            for gap in gaps
        ],
    )


def check_table(gaps: list[Gap]) -> str:
    """The same differences, checked in other ways; empty where there is one seed."""
    lines = [
        [
            f"{gap.variant} - {gap.baseline}" + (" (*)" if gap.uneven else ""),
            _interval(gap.paired),
            _interval(gap.over_documents),
            gap.seeds_needed or "-",
        ]
        for gap in gaps
        if gap.paired
    ]
    if not lines:
        return ""
    uneven = any(gap.uneven for gap in gaps)
    return (
        "Checks, in nats per token: the two variants alone, and with the validation documents\n"
        "drawn anew as well as the seeds. Seeds: how many would settle it in 4 studies of 5, said\n"
        "from five seeds on."
        + (" (*) scatters more than the others and is judged alone." if uneven else "")
        + "\n\n"
        + markdown_table(
            "variant - baseline | alone [95%] | over documents too [95%] | seeds to settle it",
            lines,
        )
    )


def fit_table(fits: list[tuple[Gap, Fit]], margin: float) -> str:
    """Power laws of the gap against tokens."""
    lines = [
        [
            f"{gap.variant} - {gap.baseline}",
            f"{mean([law.exponent for law in fit.laws]):.2f}",
            f"{mean([law.offset for law in fit.laws]):+.2%}" if fit.with_offset else "none",
            f"{mean([law.error for law in fit.laws]):.2%}",
            _crossing(fit),
        ]
        for gap, fit in fits
    ]
    return (
        "Power laws fitted to the gap (a share of the baseline's loss) against tokens, by seed, and"
        f"\nthe tokens at which they reach the margin of {margin:.2%}.\n\n"
    ) + markdown_table(
        "variant - baseline | exponent | offset | error | tokens at the margin", lines
    )


def _crossing(fit: Fit) -> str:
    if fit.crossing is None:
        never = sum(math.isinf(tokens) for tokens in fit.crossings)
        return f"never, in {never} of {len(fit.crossings)} seeds"
    ends = fit.interval
    return millions(fit.crossing) + (f" [{millions(ends[0])}, {millions(ends[1])}]" if ends else "")


def recoding_text(found: Recodings) -> str:
    spread = found.spread
    return f"""\
{len(found.variants)} recodings x {found.seeds} seeds ({found.variants[0]} to \
{found.variants[-1]}): the standard deviation
due to the recoding is {spread.treatments_sd:.4f} nats per token, to the seed \
{spread.blocks_sd:.4f}, to neither {spread.residual_sd:.4f};
all recodings alike: F = {spread.f:.2f}, p = {spread.p:.2g}."""


def cost_table(rows: list[Row]) -> str:
    parts = ("parameters", "gradients", "optimizer", "fixed")
    return (
        "MB of the input layer, and the peak of a whole run; tokens/s of a run as it was, beside\n"
        "others unless --jobs=1.\n\n"
    ) + markdown_table(
        "variant | parameters | gradients | optimizer | fixed | peak | tokens/s",
        [
            [
                row.variant,
                *(f"{row.input_bytes[part] / 1e6:,.3f}" for part in parts),
                f"{row.peak_mb:,.0f}",
                f"{row.tokens_per_s:,.0f}",
            ]
            for row in rows
        ],
    )
