"""What can be claimed of measured rows: gaps to the baseline, trends over tokens, recodings.

Variants share a seed's batches and all initial weights but the input layer's, so they are compared
within seeds: `contrasts` fits one additive model to all variants, and `verdicts` asks in this
order, with a margin that was set beforehand (docs/statistics.md):

    not worse      the difference is below the margin, and may be zero or an improvement
    equivalent     it is within the margin
    better, worse  it is not zero (also beside "equivalent")
    not resolved   none of these can be claimed
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inputcodes import stats
from inputcodes.runs import BySeed, Point, Row, present
from inputcodes.stats import ALPHA, Comparison, PowerLaw, Sample, mean, ratio
from model import GPTConfig

Interval = tuple[float, float]
DRAWS = 1000  # of seeds and documents


@dataclass(frozen=True)
class Additive:
    """Least squares of result = variant + seed: the variants' means, each as if it had all seeds.

    `covariance` times the residual variance, `rss` / `df`, is that of the means.
    """

    means: NDArray[np.float64]
    covariance: NDArray[np.float64]
    rss: float
    df: int


def additive(table: Sequence[Sequence[float | None]]) -> Additive:
    """Fit rows of variants with a column a seed; None where a run is missing.

    Where no chain of common seeds connects two variants, their means say nothing of each other.
    """
    y = np.array(table, dtype=float)
    y = y[:, ~np.isnan(y).all(axis=0)]
    k, seeds = y.shape
    row, seed = np.nonzero(~np.isnan(y))
    # The effects of the seeds sum to nothing: the last one is minus the sum of the others.
    effects = np.vstack([np.eye(seeds - 1), -np.ones((1, seeds - 1))])
    design = np.hstack([np.eye(k)[row], effects[seed]])
    covariance = np.linalg.pinv(design.T @ design, hermitian=True)
    fitted = covariance @ design.T @ y[row, seed]
    # Runs can be identical in every bit: what only rounding left is no residual and no difference.
    rss = float(np.sum(np.round(y[row, seed] - design @ fitted, 12) ** 2))
    df = len(row) - int(np.linalg.matrix_rank(design))
    return Additive(np.round(fitted[:k], 12), covariance[:k, :k], rss, df)


@dataclass(frozen=True)
class Contrast:
    """A variant minus the first one of its table.

    `judged` has the residual pooled over all variants. Where one of the two scatters more than the
    others (`uneven`) it is `paired`, the test of these two alone.
    """

    judged: Comparison
    paired: Comparison | None  # None below two common seeds
    uneven: bool


def contrasts(table: Sequence[Sequence[float | None]]) -> list[Contrast | None]:
    """All but the first row of `table` (see `additive`) against the first; None with one seed."""
    fit = additive(table)
    if fit.df < 1:
        return [None for _ in table[1:]]
    noisy = [_scatters_more(table, fit, i) for i in range(len(table))]
    results: list[Contrast | None] = []
    for i, row in enumerate(table[1:], 1):
        pairs = present(differences(row, table[0]))
        alone = stats.t_test(pairs) if len(pairs) > 1 else None
        V = fit.covariance
        variance = float(V[i, i] + V[0, 0] - 2 * V[i, 0]) * fit.rss / fit.df
        difference = float(fit.means[i] - fit.means[0])
        pooled = stats.comparison(difference, math.sqrt(max(variance, 0)), fit.df)
        uneven = alone is not None and (noisy[0] or noisy[i])
        results.append(Contrast(alone if alone and uneven else pooled, alone, uneven))
    return results


def differences(ours: Sequence[float | None], base: Sequence[float | None]) -> BySeed:
    """By seed; None where one of the two has none."""
    return [None if a is None or b is None else a - b for a, b in zip(ours, base, strict=True)]


def _scatters_more(table: Sequence[Sequence[float | None]], fit: Additive, i: int) -> bool:
    """Whether the residual is smaller without row `i` than chance explains, by an F-test at 5%."""
    without = additive([*table[:i], *table[i + 1 :]])
    if without.df < 1 or without.df == fit.df:
        return False
    above = fit.df - without.df
    f = ratio((fit.rss - without.rss) / above, without.rss / without.df)
    return stats.f_tail(f, above, without.df) < ALPHA


def verdicts(rows: Sequence[Contrast | None], margins: Sample) -> list[str]:
    """What can be claimed of every row of a study, its p-values corrected for their number (Holm).

    A difference above zero is worse; `margins` are in the unit of the differences. Each of the
    three questions has at most 5% of studies with a false claim.
    """
    known = [(row.judged, m) for row, m in zip(rows, margins, strict=True) if row]
    # One-sided against the margin: what has to be refuted is a difference of `m` or more.
    below = stats.holm([stats.t_cdf(ratio(c.difference - m, c.se), c.df) for c, m in known])
    within = stats.holm([stats.tost(c, m) for c, m in known])
    differ = stats.holm([c.p for c, _ in known])
    said = []
    for (c, _), not_worse, equivalent, different in zip(known, below, within, differ, strict=True):
        words = ["equivalent"] * (equivalent < ALPHA)
        words += ["worse" if c.difference > 0 else "better"] * (different < ALPHA)
        words = words or ["not worse" if not_worse < ALPHA else "not resolved"]
        said.append(", ".join(words))
    judged = iter(said)
    return [next(judged) if row else "one seed, no verdict" for row in rows]


@dataclass(frozen=True)
class Blocked:
    """What treatments, blocks and the rest contribute (standard deviations), and the F-test."""

    treatments_sd: float
    blocks_sd: float
    residual_sd: float
    f: float
    p: float


def blocked_anova(rows: Sequence[Sample]) -> Blocked:
    """Two-way analysis of variance, one number a cell: rows are treatments, columns blocks.

    `f` and `p` test that all treatments are the same (Montgomery, Design and Analysis of
    Experiments, section 4.1). Of the standard deviations what the rest adds to a mean is taken
    out, down to 0. Two or more of each.
    """
    fit, (k, n) = additive(rows), np.shape(rows)
    rest = fit.rss / fit.df
    by_row, by_column = (float(np.var(np.mean(rows, axis), ddof=1)) for axis in (1, 0))
    f = ratio(n * by_row, rest)
    treatments, blocks = max(0.0, by_row - rest / n), max(0.0, by_column - rest / k)
    p = stats.f_tail(f, k - 1, fit.df)
    return Blocked(math.sqrt(treatments), math.sqrt(blocks), math.sqrt(rest), f, p)


# ---------------------------------------------------------------------------------------------
# Gaps


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
    interval: Interval | None  # of `nats`, as the next two
    paired: Interval | None  # from these two variants alone
    over_documents: Interval | None  # seeds and documents drawn again
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


def judge(groups: list[list[Row]], margin: float) -> list[list[Gap]]:
    """Every row but the first of its group against the first; p-values corrected over all rows."""
    tables = [contrasts([row.losses for row in rows]) for rows in groups]
    flat = [contrast for table in tables for contrast in table]
    claims = iter(verdicts(flat, [margin * rows[0].loss for rows in groups for _ in rows[1:]]))
    gaps = []
    for rows, table in zip(groups, tables, strict=True):
        each = zip(rows[1:], gap_points(rows), table, strict=True)
        gaps.append([gap_of(rows[0], *facts, next(claims), margin, len(flat)) for facts in each])
    return gaps


def gap_of(
    base: Row,
    row: Row,
    points: list[GapPoint],
    test: Contrast | None,
    verdict: str,
    margin: float,
    rows: int,
) -> Gap:
    """The gap at the end of the runs, one of `rows` of the study, and its `points` on the way."""
    judged, alone = (test.judged, test.paired) if test else (None, None)
    pairs = present(differences(row.losses, base.losses))
    nats = judged.difference if judged else mean(pairs)
    needed = ""
    if judged and verdict == "not resolved":
        needed = stats.seeds_needed(judged, len(pairs), margin * base.loss, rows)
    return Gap(
        variant=row.variant,
        baseline=base.variant,
        nats=nats,
        share=nats / base.loss,
        bits_per_byte=nats * mean(present(base.bits_per_byte)) / base.loss,  # of the same text
        data=data_multiple(row, base, row.curve[-1]),
        interval=(judged.low, judged.high) if judged else None,
        paired=(alone.low, alone.high) if alone else None,
        over_documents=over_documents(row, base),
        uneven=bool(test and test.uneven),
        verdict=verdict,
        seeds_needed=needed,
        points=points,
        fits=fits_of(points, margin) if row.constant_rate and nats > 0 else [],
    )


def over_documents(row: Row, base: Row) -> Interval | None:
    """95% interval of the gap over seeds and documents, both drawn with replacement.

    Drawing n seeds shows (n - 1) / n of their variance, so the deviation of the drawn seeds is
    widened by that (Davison and Hinkley 1997, section 2.3). None without losses by document.
    """
    pairs = [(a, b) for a, b in zip(row.documents, base.documents, strict=True) if a and b]
    if len(pairs) < 2 or len({tuple(n for _, n in run) for pair in pairs for run in pair}) > 1:
        return None
    runs = np.array(pairs, dtype=float)  # (seeds, 2, documents, 2): nats and tokens of each
    nats, tokens = runs[:, 0, :, 0] - runs[:, 1, :, 0], runs[0, 0, :, 1]
    n, documents = nats.shape
    rng = np.random.default_rng(1)
    drawn = rng.multinomial(documents, [1 / documents] * documents, DRAWS)
    by_seed = (drawn @ nats.T) / (drawn @ tokens)[:, None]
    centre = by_seed.mean(1)
    seeds = np.take_along_axis(by_seed, rng.integers(n, size=by_seed.shape), 1).mean(1)
    means = centre + math.sqrt(n / (n - 1)) * (seeds - centre)
    low, high = np.quantile(means, (ALPHA / 2, 1 - ALPHA / 2)).tolist()
    return low, high


def data_multiple(row: Row, base: Row, point: Point) -> float | None:
    """How many times the baseline's tokens the row needs for its loss at `point`.

    Geometric mean over seeds, by interpolation on the baseline's curve; where the row is ahead of
    all of it, on the row's own. None where neither curve reaches so far.
    """
    multiples = []
    at = next((p.losses for p in base.curve if p.tokens == point.tokens), [])
    for seed, (loss, base_loss) in enumerate(zip(point.losses, at, strict=False)):
        if loss is None or base_loss is None:
            continue
        if needed := stats.tokens_for(loss, *_curve(base, seed)):
            multiples.append(point.tokens / needed)
        elif loss < base_loss and (needed := stats.tokens_for(base_loss, *_curve(row, seed))):
            multiples.append(needed / point.tokens)
        else:
            return None
    return math.exp(mean([math.log(x) for x in multiples])) if multiples else None


def _curve(row: Row, seed: int) -> tuple[Sample, Sample]:
    known = [(p.tokens, loss) for p in row.curve if (loss := p.losses[seed]) is not None]
    return [tokens for tokens, _ in known], [loss for _, loss in known]


def gap_points(rows: list[Row]) -> list[list[GapPoint]]:
    """The gap of every row but the first at each number of tokens that all rows have."""
    points: list[list[GapPoint]] = [[] for _ in rows[1:]]
    curves = [{point.tokens: point for point in row.curve} for row in rows]
    for tokens in curves[0]:
        if not all(tokens in curve for curve in curves):
            continue
        first, *others = (curve[tokens] for curve in curves)
        centre = mean(present(first.losses))
        table = contrasts([first.losses, *(point.losses for point in others)])
        for i, (point, contrast) in enumerate(zip(others, table, strict=True)):
            nats = differences(point.losses, first.losses)
            shares = [None if one is None else one / centre for one in nats]
            judged = contrast.judged if contrast else None
            share = judged.difference / centre if judged else mean(present(shares))
            interval = (judged.low / centre, judged.high / centre) if judged else None
            data = data_multiple(rows[i + 1], rows[0], point)
            points[i].append(GapPoint(tokens, shares, share, interval, data))
    return points


def fits_of(points: list[GapPoint], margin: float) -> list[Fit]:
    """Power laws from a twentieth of the tokens on, without and with offset.

    Nothing below six points, where the gap has not fallen (no power law describes it then) or
    was within the margin from the start.
    """
    late = [point for point in points if point.tokens >= 0.05 * points[-1].tokens]
    seeds = [i for i, share in enumerate(points[-1].shares if points else []) if share is not None]
    if len(late) < 6 or late[0].share <= max(margin, late[-1].share):
        return []
    tokens = [point.tokens for point in late]
    shares = [[point.shares[i] or 0.0 for point in late] for i in seeds]
    fits = []
    for with_offset in (False, True):
        laws = [stats.power_law(tokens, each, with_offset) for each in shares]
        crossings = [law.reaches(margin) for law in laws]
        logs = [math.log(crossing) for crossing in crossings]
        crossing = math.exp(mean(logs)) if math.isfinite(sum(logs)) else None
        interval = None
        if crossing and len(logs) > 1:
            ends = stats.t_test(logs)
            interval = math.exp(ends.low), math.exp(ends.high) if ends.high < 700 else math.inf
        fits.append(Fit(with_offset, laws, crossings, crossing, interval))
    return fits


def best_of_each(groups: list[list[Row]], margin: float) -> list[Gap]:
    """Each kind of input layer at its best against the first, of groups that differ in recipe."""
    others = {field.name for field in dataclasses.fields(GPTConfig)} | {"dataset", "eval_tokens"}
    changed = {word.partition("=")[0] for rows in groups for word in rows[0].group.split()}
    rows = [row for group in groups for row in group]
    alike = len({row.tokens for row in rows}) == 1 and not changed & others
    if len(groups) < 2 or not changed or not alike:
        return []
    # Of the seeds of the fullest row alone: the mean of fewer could be lower by luck.
    fullest = max(rows, key=lambda row: len(present(row.losses)))
    whole = [row for row in rows if _missing(row) == _missing(fullest)]
    kinds = dict.fromkeys(row.kind for row in whole)
    best = [min((r for r in whole if r.kind == kind), key=lambda r: r.loss) for kind in kinds]
    return judge([best], margin)[0]


def _missing(row: Row) -> list[bool]:
    return [loss is None for loss in row.losses]


def recodings_of(rows: list[Row]) -> list[Recodings]:
    """The families of rows that differ in `code_seed` alone, of the seeds that all have."""
    families: dict[str, list[Row]] = {}
    for row in rows:
        rest = {name: value for name, value in row.settings.items() if name != "code_seed"}
        families.setdefault(json.dumps(rest, sort_keys=True), []).append(row)
    results = []
    for family in families.values():
        by_seed = zip(*(row.losses for row in family), strict=True)
        seeds = [present(losses) for losses in by_seed if None not in losses]
        recoded = len({row.settings["code_seed"] for row in family}) > 1
        if recoded and len(seeds) > 1:
            spread = blocked_anova(list(zip(*seeds, strict=True)))
            results.append(Recodings([row.variant for row in family], len(seeds), spread))
    return results
