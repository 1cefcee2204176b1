"""The report of a study: matched runs are measured, judged, and written as tables and notes."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from input_layers import INPUT_FIELDS
from inputcodes.configurator import UserError
from inputcodes.judging import Fit, Gap, Interval, Recodings, best_of_each, judge, recodings_of
from inputcodes.runs import Row, Run, Variant, circumstances, measure, present, refuse_unmatched
from inputcodes.stats import markdown_table, mean

Group = Sequence[tuple[Variant, Sequence[Run | None]]]
DIFFERENCES = """\
Differences within seeds; margin {margin:.2%} of the baseline's loss; verdicts at 5%,
corrected for the number of rows. Data: how many times the baseline's tokens the variant
needs for its loss (further from 1 in truth, where the learning rate decays)."""
MEASURED = """\
Means over seeds ({seeds}). Loss, chance and bigram (counts of the same training tokens): nats
per token. Range: (max - min) / mean of the perplexity over seeds. Parameters: trainable ones, at
the input and in all."""
DIVIDED = """\
The losses divided, in nats per token: over targets that are new behind their token in the window,
and over those that have followed it there before, which a model can copy."""
CHECKED = """\
Checks, in nats per token: the two variants alone, and with the validation documents drawn again
as well as the seeds. Seeds: how many would settle it in 4 studies of 5, from five seeds on."""
UNEVEN = "\n(*) One of the two scatters more than the others: the verdict is of these two alone."
LAWS = """\
Power laws fitted to the gap (a share of the baseline's loss) against tokens, by seed, and the
tokens at which they reach the margin of {margin:.2%}."""


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
        record = dataclasses.asdict(self)
        for group in record["groups"]:
            for row in group:
                del row["documents"]
        return record


def make_report(
    groups: Sequence[Group],
    seeds: Sequence[int],
    margin: float,
    may_differ: set[str] = INPUT_FIELDS,
) -> Report:
    """Measure and judge; a variant's runs are by seed, None where there is none.

    Runs that are not complete are left out, and said.
    """
    rows, notes = [], left_out(groups, seeds)
    for group in groups:
        used = usable(group)
        if not used:
            notes.append(f"Nothing to compare with: {group[0][0].label} has no complete run.")
            continue
        by_label = {variant.label: [run for run in runs if run] for variant, runs in used}
        refuse_unmatched(by_label, may_differ)
        rows.append([measure(variant, runs) for variant, runs in used])
        if not all(any(point.losses) for point in rows[-1][0].curve):
            advice = "no gap is a share of that; compare on another text"
            raise UserError(f"{used[0][0].label} has a validation loss of 0: {advice}")
    if not rows:
        raise UserError("\n".join(["there is nothing to report", *notes]))
    every = [run for group in groups for _, runs in group for run in runs if run]
    made_by, differing = circumstances(every)
    return Report(
        margin=margin,
        made_by=made_by,
        notes=notes + lonely(rows) + worse_than_counting(rows) + differing,
        groups=rows,
        gaps=judge(rows, margin),
        best=best_of_each(rows, margin),
        recodings=[recodings for group in rows for recodings in recodings_of(group)],
    )


def usable(group: Group) -> list[tuple[Variant, list[Run | None]]]:
    """The variants with their complete runs (others None) that share a seed with the baseline."""
    whole = [(v, [run if run and run.complete else None for run in runs]) for v, runs in group]
    base = whole[0][1]
    return [(v, runs) for v, runs in whole if any(a and b for a, b in zip(runs, base, strict=True))]


def left_out(groups: Sequence[Group], seeds: Sequence[int]) -> list[str]:
    """One note on all runs that are not complete, if there are any."""
    words = []
    for variant, runs in (row for group in groups for row in group):
        pairs = zip(seeds, runs, strict=True)
        missing = [str(seed) for seed, run in pairs if not (run and run.complete)]
        if missing:
            several = "s" * (len(missing) > 1)
            which = "" if len(missing) == len(runs) else f" (seed{several} {', '.join(missing)})"
            words.append(variant.label + which)
    return [f"Left out, not complete: {'; '.join(words)}."] if words else []


def lonely(groups: list[list[Row]]) -> list[str]:
    return [
        f"{rows[0].variant} is compared with no other: none agrees in all but the input layer."
        for rows in groups
        if len(rows) == 1 and len(groups) > 1
    ]


def worse_than_counting(groups: list[list[Row]]) -> list[str]:
    return [
        f"{row.variant} and {base.variant} are both worse than counts of token pairs"
        f" ({row.bigram:.3f} nats per token): their difference says little."
        for base, *others in groups
        for row in others
        if row.bigram and base.bigram and row.loss > row.bigram and base.loss > base.bigram
    ]


# ---------------------------------------------------------------------------------------------
# Writing


def text_of(report: Report) -> str:
    gaps = [gap for group in report.gaps for gap in group]
    parts = [
        result_table([row for group in report.groups for row in group]),
        gap_table(DIFFERENCES.format(margin=report.margin), gaps),
        division_table(report.groups),
        check_table([gap for gap in gaps if gap.paired]),
        fit_table([(gap, fit) for gap in gaps for fit in gap.fits], report.margin),
        *map(recoding_text, report.recodings),
        gap_table("Each at its best, chosen after looking.", report.best),
        "\n".join(f"- {note}" for note in report.notes),
    ]
    return "\n\n".join(part for part in parts if part)


def short_count(n: float) -> str:
    """Tokens or parameters, short: 5.73 M."""
    for size, letter in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if n >= size:
            return f"{n / size:.4g}{letter}"
    return f"{n:.4g}"


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _interval(ends: Interval | None) -> str:
    return f"[{ends[0]:+.4f}, {ends[1]:+.4f}]" if ends else "-"


def section(heading: str, header: str, lines: list[list[str]]) -> str:
    """A table under its heading; empty without lines."""
    return f"{heading}\n\n{markdown_table(header, lines)}" if lines else ""


def result_table(rows: list[Row]) -> str:
    seeds = " or ".join(map(str, sorted({len(present(row.losses)) for row in rows})))
    lines = []
    for row in rows:
        cells = [row.variant, f"{row.input_parameters:,}", f"{row.parameters:,}"]
        cells += [short_count(row.tokens), f"{row.loss:.4f}"]
        cells += [_cell(row.bigram, ".4f"), _cell(row.chance, ".4f"), f"{row.perplexity:.3f}"]
        cells += [_cell(row.perplexity_range, ".2%"), f"{mean(present(row.bits_per_byte)):.4f}"]
        lines.append(cells)
    header = "variant | at input | in all | tokens | loss | bigram | chance | perplexity | range"
    return section(MEASURED.format(seeds=seeds), f"{header} | bits per byte", lines)


def gap_table(heading: str, gaps: list[Gap]) -> str:
    lines = []
    for gap in gaps:
        interval = _interval(gap.interval) if gap.interval else ""
        cells = [f"{gap.variant} - {gap.baseline}", f"{gap.nats:+.4f} {interval}"]
        cells += [f"{gap.share:+.2%}", f"{gap.bits_per_byte:+.4f}"]
        lines.append([*cells, f"{gap.data:.2f}x" if gap.data else "-", gap.verdict])
    header = "variant - baseline | nats per token [95%] | % | bits per byte | data | verdict"
    return section(heading, header, lines)


def division_table(groups: list[list[Row]]) -> str:
    """Where in the loss the gaps are; empty for runs made before evaluations said it."""
    lines = []
    for rows in groups:
        for row in rows:
            cells = [row.variant]
            for losses, base in ((row.new, rows[0].new), (row.again, rows[0].again)):
                pairs = zip(losses, base, strict=True)
                gaps = [a - b for a, b in pairs if a is not None and b is not None]
                if gaps:
                    cells += [f"{mean(present(losses)):.4f}", f"{mean(gaps):+.4f}"]
            if len(cells) == 5:
                lines.append(cells)
    return section(DIVIDED, "variant | new | - baseline | again | - baseline", lines)


def check_table(gaps: list[Gap]) -> str:
    heading = CHECKED + (UNEVEN if any(gap.uneven for gap in gaps) else "")
    lines = []
    for gap in gaps:
        name = f"{gap.variant} - {gap.baseline}{' (*)' if gap.uneven else ''}"
        intervals = [_interval(gap.paired), _interval(gap.over_documents)]
        lines.append([name, *intervals, gap.seeds_needed or "-"])
    header = "variant - baseline | alone [95%] | over documents too [95%] | seeds to settle it"
    return section(heading, header, lines)


def fit_table(fits: list[tuple[Gap, Fit]], margin: float) -> str:
    lines = []
    for gap, fit in fits:
        exponent = mean([law.exponent for law in fit.laws])
        offset = f"{mean([law.offset for law in fit.laws]):+.2%}" if fit.with_offset else "none"
        error = mean([law.error for law in fit.laws])
        cells = [f"{gap.variant} - {gap.baseline}", f"{exponent:.2f}", offset]
        lines.append([*cells, f"{error:.2%}", _crossing(fit)])
    header = "variant - baseline | exponent | offset | error | tokens at the margin"
    return section(LAWS.format(margin=margin), header, lines)


def _crossing(fit: Fit) -> str:
    if fit.crossing is None:
        never = sum(math.isinf(tokens) for tokens in fit.crossings)
        return f"never, in {never} of {len(fit.crossings)} seeds"
    ends = [_token_count(tokens) for tokens in fit.interval or ()]
    return _token_count(fit.crossing) + (f" [{', '.join(ends)}]" if ends else "")


def _token_count(tokens: float) -> str:
    return short_count(tokens) if tokens < 1e15 else "over 1e15"  # more than there is text


def recoding_text(recodings: Recodings) -> str:
    spread, names = recodings.spread, recodings.variants
    return f"""\
{len(names)} recodings x {recodings.seeds} seeds ({names[0]} to {names[-1]}): the standard deviation
due to the recoding is {spread.treatments_sd:.4f} nats per token, to the seed \
{spread.blocks_sd:.4f}, to neither {spread.residual_sd:.4f};
all recodings alike: F = {spread.f:.2f}, p = {spread.p:.2g}."""
