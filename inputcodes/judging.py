"""What can be claimed of measured rows: gaps to the baseline, trends over tokens, recodings.

Variants share a seed's batches and all initial weights but the input layer's, so they are compared
within seeds, by stats.contrasts and stats.verdicts, with a margin that was set beforehand.

    equivalent     the difference is within the margin
    better, worse  it is not zero (also beside "equivalent")
    not worse      it is below the margin, and may be zero or an improvement
    not resolved   none of these can be claimed
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from inputcodes.extrapolation import PowerLaw, bootstrap, power_law, seeds_needed, tokens_for
from inputcodes.runs import BySeed, Point, Row, present
from inputcodes.stats import (
    Blocked,
    Contrast,
    Sample,
    blocked_anova,
    contrasts,
    mean,
    mean_interval,
    verdicts,
)
from model import GPTConfig

Interval = tuple[float, float]


@dataclass(frozen=True)
class GapPoint:
    """A gap after so many tokens: by seed and its interval, as shares of the baseline's loss."""

    tokens: float
    shares: BySeed
    share: float
    interval: Interval | None
    data: float | None  # as Gap.data


@dataclass(frozen=True)
class Fit:
    """Power laws of a gap against tokens, one a seed, and where they reach the margin."""

    with_offset: bool
    laws: list[PowerLaw]  # of the gap as a share of the baseline's loss
    crossings: list[float]  # tokens; infinite where the law never reaches the margin
    crossing: float | None  # their geometric mean; None if one is infinite
    interval: Interval | None


@dataclass(frozen=True)
class Gap:
    """A row minus its baseline: one difference in four units, and what can be claimed of it."""

    variant: str
    baseline: str
    nats: float
    share: float  # of the baseline's loss
    bits_per_byte: float
    data: float | None  # how many times the baseline's data the variant needs for the same loss
    interval: Interval | None  # of `nats`, as those below
    paired: Interval | None  # from these two variants alone
    over_documents: Interval | None  # seeds and documents drawn anew
    uneven: bool  # one scatters more than the others, so `interval` is `paired`
    verdict: str
    seeds_needed: str
    points: list[GapPoint]
    fits: list[Fit]


@dataclass(frozen=True)
class Recodings:
    """Rows that differ in `code_seed` alone: do they differ by more than seeds explain?"""

    variants: list[str]
    seeds: int
    spread: Blocked


def judge(groups: list[list[Row]], margin: float, matched: Sequence[bool]) -> list[list[Gap]]:
    """Every row but the first of its group against the first; p-values corrected over all rows."""
    found = [contrasts([row.losses for row in rows]) for rows in groups]
    flat = [contrast for some in found for contrast in some]
    said = iter(verdicts(flat, [margin * rows[0].loss for rows in groups for _ in rows[1:]]))
    gaps: list[list[Gap]] = []
    for rows, some, fine in zip(groups, found, matched, strict=True):
        points = gap_points(rows)
        gaps.append([])
        for i, row in enumerate(rows[1:]):
            verdict = next(said)
            gap = gap_of(row, rows[0], some[i], verdict if fine else "not matched", margin)
            fits = fits_of(points[i], margin) if row.constant_rate and gap.share > 0 else []
            gaps[-1].append(dataclasses.replace(gap, points=points[i], fits=fits))
    return gaps


def gap_of(row: Row, base: Row, found: Contrast | None, verdict: str, margin: float) -> Gap:
    """The gap at the end of the runs; `points` and `fits` are left empty."""
    bits = _differences(row.bits_per_byte, base.bits_per_byte)
    nats = found.judged.difference if found else mean(_differences(row.losses, base.losses))
    needed = ""
    if found and verdict == "not resolved":
        needed = seeds_needed(found.judged, len(present(row.losses)), margin * base.loss)
    return Gap(
        variant=row.variant,
        baseline=base.variant,
        nats=nats,
        share=nats / base.loss,
        bits_per_byte=mean(bits),
        data=data_multiple(row, base, row.curve[-1]) if row.curve else None,
        interval=(found.judged.low, found.judged.high) if found else None,
        paired=(found.paired.low, found.paired.high) if found and found.paired else None,
        over_documents=over_documents(row, base),
        uneven=bool(found and found.uneven),
        verdict=verdict,
        seeds_needed=needed,
        points=[],
        fits=[],
    )


def _differences(ours: BySeed, base: BySeed) -> list[float]:
    """Of the seeds that both have."""
    both = zip(ours, base, strict=True)
    return [a - b for a, b in both if a is not None and b is not None]


def over_documents(row: Row, base: Row) -> Interval | None:
    """The interval of the gap over seeds and documents; None without losses by document."""
    pairs = [(a, b) for a, b in zip(row.documents, base.documents, strict=True) if a and b]
    if len(pairs) < 2 or len({tuple(n for _, n in some) for pair in pairs for some in pair}) > 1:
        return None
    nats = [[x - y for (x, _), (y, _) in zip(a, b, strict=True)] for a, b in pairs]
    return bootstrap(nats, [n for _, n in pairs[0][0]], draws=1000)


def data_multiple(row: Row, base: Row, point: Point) -> float | None:
    """How many times the baseline's tokens the row needs for its loss at `point`.

    Geometric mean over seeds, by interpolation on the baseline's curve; where the row is ahead of
    all of it, on the row's own. None where neither curve reaches so far.
    """
    multiples = []
    at = next((p.losses for p in base.curve if p.tokens == point.tokens), [])
    for seed, (loss, theirs) in enumerate(zip(point.losses, at, strict=False)):
        if loss is None or theirs is None:
            continue
        if needed := tokens_for(loss, *_curve(base, seed)):
            multiples.append(point.tokens / needed)
        elif loss < theirs and (own := tokens_for(theirs, *_curve(row, seed))):
            multiples.append(own / point.tokens)
        else:
            return None
    return math.exp(mean([math.log(x) for x in multiples])) if multiples else None


def _curve(row: Row, seed: int) -> tuple[Sample, Sample]:
    known = [(p.tokens, loss) for p in row.curve if (loss := p.losses[seed]) is not None]
    return [tokens for tokens, _ in known], [loss for _, loss in known]


def gap_points(rows: list[Row]) -> list[list[GapPoint]]:
    """The gap of every row but the first at each number of tokens that all rows have."""
    points: list[list[GapPoint]] = [[] for _ in rows[1:]]
    for first, *others in zip(*(row.curve for row in rows), strict=False):
        if any(point.tokens != first.tokens for point in others):
            break
        centre = mean(present(first.losses))
        found = contrasts([first.losses, *(point.losses for point in others)])
        for i, (point, contrast) in enumerate(zip(others, found, strict=True)):
            both = zip(point.losses, first.losses, strict=True)
            shares = [None if a is None or b is None else (a - b) / centre for a, b in both]
            interval = None
            if contrast:
                interval = contrast.judged.low / centre, contrast.judged.high / centre
            data = data_multiple(rows[i + 1], rows[0], point)
            points[i].append(GapPoint(first.tokens, shares, mean(present(shares)), interval, data))
    return points


def fits_of(points: list[GapPoint], margin: float) -> list[Fit]:
    """Power laws from a twentieth of the tokens on, without and with offset; six points or more."""
    late = [point for point in points if point.tokens >= 0.05 * points[-1].tokens]
    seeds = [i for i, share in enumerate(points[-1].shares if points else []) if share is not None]
    if len(late) < 6:
        return []
    fits = []
    for with_offset in (False, True):
        laws = [
            power_law([p.tokens for p in late], [p.shares[i] or 0.0 for p in late], with_offset)
            for i in seeds
        ]
        crossings = [law.reaches(margin) for law in laws]
        logs = [math.log(tokens) for tokens in crossings]
        crossing = math.exp(mean(logs)) if math.isfinite(sum(logs)) else None
        interval = None
        if crossing and len(logs) > 1:
            low, high = mean_interval(logs)
            interval = math.exp(low), math.exp(min(high, 100.0))
        fits.append(Fit(with_offset, laws, crossings, crossing, interval))
    return fits


def best_of_each(groups: list[list[Row]], margin: float) -> list[Gap]:
    """Each kind of input layer where its mean loss is lowest, against the first kind at its own.

    For groups that differ in the recipe alone, as in a sweep of learning rates; else nothing.
    """
    shape = {field.name for field in dataclasses.fields(GPTConfig)} | {"dataset"}
    changed = {word.partition("=")[0] for rows in groups for word in rows[0].group.split()}
    if len(groups) < 2 or not changed or changed & shape:
        return []
    rows = [row for group in groups for row in group]
    most = max(len(present(row.losses)) for row in rows)
    best: dict[str, Row] = {}
    for row in rows:
        if len(present(row.losses)) < most:
            continue  # the mean of fewer could be lower by luck
        known = best.setdefault(row.kind, row)
        if row.loss < known.loss:
            best[row.kind] = row
    first, *others = best.values()
    found = contrasts([row.losses for row in best.values()])
    said = verdicts(found, [margin * first.loss] * len(others))
    return [
        gap_of(row, first, contrast, verdict, margin)
        for row, contrast, verdict in zip(others, found, said, strict=True)
    ]


def recodings_of(rows: list[Row]) -> list[Recodings]:
    """The families of rows that differ in `code_seed` alone, of the seeds that all have."""
    alike: dict[str, list[Row]] = {}
    for row in rows:
        rest = {name: value for name, value in row.settings.items() if name != "code_seed"}
        alike.setdefault(json.dumps(rest, sort_keys=True), []).append(row)
    found = []
    for family in alike.values():
        columns = [row.losses for row in family]
        seeds = [by_seed for by_seed in zip(*columns, strict=True) if None not in by_seed]
        if len(family) > 1 and len(seeds) > 1:
            spread = blocked_anova([present(losses) for losses in zip(*seeds, strict=True)])
            found.append(Recodings([row.variant for row in family], len(seeds), spread))
    return found
