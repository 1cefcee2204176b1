"""The report of a study: matched runs are measured, judged, and written as tables and notes."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from input_layers import INPUT_FIELDS
from inputcodes import judging
from inputcodes.configurator import UserError
from inputcodes.judging import Fit, Gap, Interval, Recodings
from inputcodes.runs import Row, Run, Variant, circumstances, measure, present, refuse_unmatched
from inputcodes.stats import markdown_table, mean

Group = Sequence[tuple[Variant, Sequence[Run | None]]]
SUMMARY = """\
Means over seeds ({seeds}), losses in nats per token. Differences within seeds, as shares of the
baseline's loss; margin {margin:.2%}; verdicts at 5%, corrected for the number of rows. Data: how
many times the baseline's tokens the variant needs for its loss (further from 1 in truth, where
the learning rate decays)."""
SIZES = """\
Parameters: trainable ones, at the input and in all. Range: (max - min) / mean of the perplexity
over seeds."""
DIVIDED = """\
The losses divided, in nats per token: over targets that are new behind their token in the window,
and over those that have followed it there before, which a model can copy."""
NATS = """\
Differences from the baseline, in nats per token. Intervals: judged with all variants of the group,
with the two alone, and with the validation documents drawn again as well as the seeds. Seeds:
how many would settle it in 4 studies of 5, from five seeds on."""
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
        done = [v.label for v, runs in group if any(run and run.complete for run in runs)]
        if apart := [label for label in done if label not in by_label]:
            why = f"no seed in common with {used[0][0].label}"
            notes.append(f"Left out, {why}: {'; '.join(apart)}.")
        refuse_unmatched(by_label, may_differ)
        rows.append([measure(variant, runs) for variant, runs in used])
        if len(group) == 1 < len(groups):
            alone = "is compared with no other: none agrees in all but the input layer."
            notes.append(f"{group[0][0].label} {alone}")
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
        notes=notes + worse_than_counting(rows) + differing,
        groups=rows,
        gaps=judging.judge(rows, margin),
        best=judging.best_of_each(rows, margin),
        recodings=[recodings for group in rows for recodings in judging.recodings_of(group)],
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


def worse_than_counting(groups: list[list[Row]]) -> list[str]:
    """One note for each group whose baseline is, with the others of its rows that are."""
    notes = []
    for rows in groups:
        worse = [row.variant for row in rows if row.bigram and row.loss > row.bigram]
        if worse[1:] and worse[0] == rows[0].variant:
            say = "Worse than counts of token pairs, so that their differences say little"
            notes.append(f"{say}: {', '.join(worse)}.")
    return notes


# ---------------------------------------------------------------------------------------------
# Writing


def summary_of(report: Report) -> str:
    """The answer: the table of losses and verdicts, and the notes."""
    parts = [
        main_table(report.groups, report.gaps, report.margin),
        best_table(report),
        "\n".join(f"- {note}" for note in report.notes),
    ]
    return "\n\n".join(part for part in parts if part)


def details_of(report: Report) -> str:
    """The tables behind it."""
    gaps = [gap for group in report.gaps for gap in group]
    parts = [
        size_table([row for group in report.groups for row in group]),
        nats_table(gaps),
        division_table(report.groups),
        fit_table([(gap, fit) for gap in gaps for fit in gap.fits], report.margin),
        *map(recoding_text, report.recodings),
    ]
    return "\n\n".join(part for part in parts if part)


def short_count(n: float) -> str:
    """Tokens or parameters, short: 5.73 M."""
    for size, letter in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if n >= 0.99995 * size:  # four digits of 999,990 are 1 M
            return f"{n / size:.4g}{letter}"
    return f"{n:.4g}"


def _interval(ends: Interval | None) -> str:
    return f"[{ends[0]:+.4f}, {ends[1]:+.4f}]" if ends else "-"


def section(heading: str, header: str, lines: list[list[str]]) -> str:
    """A table under its heading; empty without lines."""
    return f"{heading}\n\n{markdown_table(header, lines)}" if lines else ""


def _judged(gap: Gap, base: Row) -> list[str]:
    """A gap as a share of the baseline's loss and in data, and its verdict."""
    share = f"{gap.share:+.2%}"
    if gap.interval:
        low, high = (100 * end / base.loss for end in gap.interval)
        share += f" [{low:+.2f}, {high:+.2f}]"
    return [share, f"{gap.data:.2f}x" if gap.data else "-", gap.verdict]


def _bits(row: Row, nats: float | None = None) -> str:
    """Bits per byte of a row, or of another loss on its text."""
    bits = mean(present(row.bits_per_byte))
    return f"{bits if nats is None else nats * bits / row.loss:.4f}"


def _references(base: Row) -> list[list[str]]:
    """What counting token pairs of the same training tokens, and guessing, reach."""
    known = (("(bigram of counts)", base.bigram), ("(uniform guess)", base.chance))
    return [[n, f"{x:.4f}", _bits(base, x), "", "", ""] for n, x in known if x is not None]


def main_table(groups: list[list[Row]], gaps: list[list[Gap]], margin: float) -> str:
    numbers = sorted({len(present(row.losses)) for rows in groups for row in rows})
    seeds = " or ".join(map(str, numbers))
    lines: list[list[str]] = []
    for number, (rows, others) in enumerate(zip(groups, gaps, strict=True)):
        judged = [["", "", "baseline"], *(_judged(gap, rows[0]) for gap in others)]
        for row, cells in zip(rows, judged, strict=True):
            lines.append([row.variant, f"{row.loss:.4f}", _bits(row), *cells])
        references = _references(rows[0])
        if number + 1 == len(groups) or references != _references(groups[number + 1][0]):
            lines += references
    header = "variant | loss | bits per byte | to the baseline [95%] | data | verdict"
    return section(SUMMARY.format(seeds=seeds, margin=margin), header, lines)


def best_table(report: Report) -> str:
    rows = {row.variant: row for group in report.groups for row in group}
    lines = [[gap.variant, *_judged(gap, rows[gap.baseline])] for gap in report.best]
    baseline = report.best[0].baseline if report.best else ""
    heading = f"Each at its best, chosen after looking, against {baseline}."
    return section(heading, "variant | to the baseline [95%] | data | verdict", lines)


def size_table(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        cells = [row.variant, f"{row.input_parameters:,}", f"{row.parameters:,}"]
        cells += [short_count(row.tokens), f"{row.perplexity:.3f}"]
        spread = row.perplexity_range
        lines.append([*cells, "-" if spread is None else f"{spread:.2%}"])
    return section(SIZES, "variant | at input | in all | tokens | perplexity | range", lines)


def nats_table(gaps: list[Gap]) -> str:
    lines = []
    for gap in gaps:
        nats = f"{gap.nats:+.4f} {_interval(gap.interval) if gap.interval else ''}"
        cells = [gap.variant + " (*)" * gap.uneven, nats, f"{gap.bits_per_byte:+.4f}"]
        cells += [_interval(gap.paired), _interval(gap.over_documents)]
        lines.append([*cells, gap.seeds_needed or "-"])
    header = "variant | all [95%] | bits per byte | two alone [95%] | documents too [95%] | seeds"
    return section(NATS + UNEVEN * any(gap.uneven for gap in gaps), header, lines)


def division_table(groups: list[list[Row]]) -> str:
    """Where in the loss the gaps are; empty for runs made before evaluations said it."""
    lines = []
    for rows in groups:
        for row in rows:
            cells = [row.variant]
            for losses, base in ((row.new, rows[0].new), (row.again, rows[0].again)):
                if gaps := present(judging.differences(losses, base)):
                    cells += [f"{mean(present(losses)):.4f}", f"{mean(gaps):+.4f}"]
            if len(cells) == 5:
                lines.append(cells)
    return section(DIVIDED, "variant | new | - baseline | again | - baseline", lines)


def fit_table(fits: list[tuple[Gap, Fit]], margin: float) -> str:
    lines = []
    for gap, fit in fits:
        exponent = mean([law.exponent for law in fit.laws])
        offset = f"{mean([law.offset for law in fit.laws]):+.2%}" if fit.with_offset else "none"
        error = mean([law.error for law in fit.laws])
        cells = [gap.variant, f"{exponent:.2f}", offset]
        lines.append([*cells, f"{error:.2%}", _crossing(fit)])
    header = "variant | exponent | offset | error | tokens at the margin"
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
