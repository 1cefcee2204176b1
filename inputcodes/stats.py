"""Statistics for comparing methods over seeds; standard library only.

Used by autoenc_study.py and report.py. Runs of one seed share batches and noise, so a difference is
taken within seeds: `paired` for two methods alone, `contrasts` for all variants of a study under
one additive model, whose pooled residual has more degrees of freedom. Differences are in the unit
of the samples; that of `paired(a, b)` is mean(a) - mean(b).

A large p-value of a t-test says that no difference was seen, not that there is none. `verdicts`
asks in this order, with a margin chosen before looking: not worse by the margin, equivalent within
it, better or worse.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

Sample = Sequence[float]
ALPHA = 0.05  # the level of every claim, one-sided for margins and two-sided for differences


@dataclass(frozen=True)
class Comparison:
    """The difference of two means: its estimate, standard error, degrees of freedom and test.

    `low` and `high` bound the confidence interval; `t` and `p` (two-sided) test difference = 0.
    """

    difference: float
    se: float
    df: float
    low: float
    high: float
    t: float
    p: float


def mean(sample: Sample) -> float:
    """Arithmetic mean. ValueError when the sample is empty or holds a number that is not finite."""
    if not sample or not all(map(math.isfinite, sample)):
        raise ValueError(f"sample={list(sample)}: expected one or more finite numbers")
    return math.fsum(sample) / len(sample)


def sd(sample: Sample) -> float:
    """Sample standard deviation (n - 1 in the denominator). ValueError below two numbers."""
    centre = mean(sample)
    if len(sample) < 2:
        raise ValueError(f"sample={list(sample)}: a standard deviation needs 2 or more numbers")
    return math.sqrt(math.fsum((x - centre) ** 2 for x in sample) / (len(sample) - 1))


def beta_inc(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function I_x(a, b) for a, b > 0 and 0 <= x <= 1.

    The continued fraction of DLMF 8.17.22, evaluated by the modified Lentz method, on the side of
    the mean where it converges fast. ValueError outside the domain.
    """
    if not (a > 0 and b > 0 and 0 <= x <= 1):
        raise ValueError(f"beta_inc(a={a}, b={b}, x={x}): expected a > 0, b > 0 and 0 <= x <= 1")
    if x in (0, 1):
        return float(x)
    if x > (a + 1) / (a + b + 2):
        return 1 - beta_inc(b, a, 1 - x)
    log_front = a * math.log(x) + b * math.log1p(-x) - math.log(a)
    log_front += math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return math.exp(log_front) / _beta_fraction(a, b, x)


def _beta_fraction(a: float, b: float, x: float) -> float:
    """1 + d1/(1 + d2/(1 + ...)) with the coefficients of DLMF 8.17.23."""
    tiny = 1e-300  # Lentz's guard against a zero denominator
    value, c, d = 1.0, 1.0, 0.0
    for k in range(1, 10_000):
        m = k // 2
        if k % 2:
            coefficient = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            coefficient = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / (1 + coefficient * d or tiny)
        c = 1 + coefficient / c or tiny
        value *= c * d
        if abs(c * d - 1) < 1e-16:
            return value
    raise ArithmeticError(f"beta_inc(a={a}, b={b}, x={x}): the continued fraction did not converge")


def t_cdf(t: float, df: float) -> float:
    """P(T <= t) for Student's t with df > 0 degrees of freedom; t may be infinite.

    Through the incomplete beta function (Abramowitz and Stegun 26.7.1); the small tail keeps its
    relative precision. ValueError for df <= 0 or a t that is not a number.
    """
    if not df > 0 or math.isnan(t):
        raise ValueError(f"t_cdf(t={t}, df={df}): expected a number t and df > 0")
    tail = 0.5 * beta_inc(df / 2, 0.5, df / (df + t * t))
    return tail if t < 0 else 1 - tail


@functools.cache
def t_quantile(p: float, df: float) -> float:
    """The t with P(T <= t) = p, by bisection. ValueError unless 0 < p < 1 and df > 0."""
    if not 0 < p < 1:
        raise ValueError(f"t_quantile(p={p}, df={df}): expected 0 < p < 1")
    if p == 0.5:
        return 0.0
    if p > 0.5:
        return -t_quantile(1 - p, df)
    low, high = -1.0, 0.0
    while t_cdf(low, df) > p:
        low, high = 2 * low, low
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if t_cdf(middle, df) > p else (middle, high)
    return high


def _compare(difference: float, se: float, df: float, confidence: float = 0.95) -> Comparison:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: expected a number between 0 and 1, as 0.95")
    half = t_quantile((1 + confidence) / 2, df) * se
    t = _ratio(difference, se)
    return Comparison(
        difference, se, df, difference - half, difference + half, t, 2 * t_cdf(-abs(t), df)
    )


def _ratio(value: float, se: float) -> float:
    """value / se; matched runs can be identical in every bit, so se = 0 has its limit as answer."""
    if se > 0:
        return value / se
    return math.copysign(math.inf, value) if value else 0.0


def mean_interval(sample: Sample, confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a mean, from Student's t with n - 1 degrees of freedom."""
    se = sd(sample) / math.sqrt(len(sample))
    result = _compare(mean(sample), se, len(sample) - 1, confidence)
    return result.low, result.high


def paired(a: Sample, b: Sample, confidence: float = 0.95) -> Comparison:
    """Paired t-test: a[i] and b[i] belong together. ValueError when the lengths differ."""
    if len(a) != len(b):
        raise ValueError(f"paired samples have {len(a)} and {len(b)} numbers: expected as many")
    differences = [a[i] - b[i] for i in range(len(a))]
    se = sd(differences) / math.sqrt(len(differences))
    return _compare(mean(differences), se, len(differences) - 1, confidence)


def cohens_d(a: Sample, b: Sample) -> float:
    """Cohen's d: the difference in units of the pooled standard deviation (Cohen 1988, 2.5.1)."""
    squares = (len(a) - 1) * sd(a) ** 2 + (len(b) - 1) * sd(b) ** 2
    return _ratio(mean(a) - mean(b), math.sqrt(squares / (len(a) + len(b) - 2)))


def tost_paired(a: Sample, b: Sample, margin: float) -> float:
    """p-value of |mean paired difference| >= margin, by two one-sided paired t-tests."""
    return _tost(paired(a, b), margin)


def _tost(result: Comparison, margin: float) -> float:
    if not 0 < margin < math.inf:
        raise ValueError(f"margin={margin}: expected a positive number in the unit of the samples")
    # Of the two one-sided tests the one with the larger p decides: that of the nearer bound.
    return t_cdf(_ratio(abs(result.difference) - margin, result.se), result.df)


def holm(p_values: Sample) -> list[float]:
    """p-values corrected for their number, so that one of many is rarely small by chance.

    The step-down rule of Holm (1979): the k-th smallest of n is multiplied by n - k + 1 and never
    falls below the one before it.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


@dataclass(frozen=True)
class Additive:
    """Least squares of result = variant + seed: the variants' means, each as if it had all seeds.

    `covariance` times the residual variance, `rss` / `df`, is that of the means.
    """

    means: list[float]
    covariance: list[list[float]]
    rss: float
    df: int


def additive(table: Sequence[Sequence[float | None]]) -> Additive:
    """Fit rows of variants with a column a seed; None where a run is missing.

    ValueError where the runs that are there do not connect all variants through common seeds.
    """
    seeds = [column for column in zip(*table, strict=True) if any(y is not None for y in column)]
    k, size = len(table), len(table) + len(seeds)
    # Normal equations beside the unit matrix. Seed effects sum to nothing: the last line of size.
    lines = [[0.0] * (2 * size + 2) for _ in range(size + 1)]
    cells = [(i, j, y) for j, seed in enumerate(seeds) for i, y in enumerate(seed) if y is not None]
    for i, j, _ in cells:
        for one in (i, k + j):
            lines[one][i] += 1
            lines[one][k + j] += 1
    for j in range(k, size):
        lines[size][j] = lines[j][size] = 1
    for i, line in enumerate(lines):
        line[size + 1 + i] = 1
    inverse = _inverse(lines)
    totals = [math.fsum(y for i, j, y in cells if one in (i, k + j)) for one in range(size)]
    effects = [math.fsum(map(float.__mul__, line, [*totals, 0.0])) for line in inverse]
    rss = math.fsum((y - effects[i] - effects[k + j]) ** 2 for i, j, y in cells)
    return Additive(effects[:k], [line[:k] for line in inverse[:k]], rss, len(cells) - size + 1)


def _inverse(lines: list[list[float]]) -> list[list[float]]:
    """The inverse of a square matrix with the unit matrix at its right, by Gauss and Jordan."""
    n = len(lines)
    for i in range(n):
        best = max(range(i, n), key=lambda row: abs(lines[row][i]))
        lines[i], lines[best] = lines[best], lines[i]
        if abs(pivot := lines[i][i]) < 1e-9:
            raise ValueError("these runs have no seeds in common that connect all variants")
        lines[i] = [x / pivot for x in lines[i]]
        for row in range(n):
            if row != i and (factor := lines[row][i]):
                lines[row] = [x - factor * y for x, y in zip(lines[row], lines[i], strict=True)]
    return [line[n:] for line in lines]


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
    found: list[Contrast | None] = []
    for i, row in enumerate(table[1:], 1):
        both = [
            (a, b) for a, b in zip(row, table[0], strict=True) if a is not None and b is not None
        ]
        differences = [a - b for a, b in both]
        alone = paired(differences, [0.0] * len(both)) if len(both) > 1 else None
        share = fit.covariance
        variance = (share[i][i] + share[0][0] - 2 * share[i][0]) * fit.rss / fit.df
        pooled = _compare(fit.means[i] - fit.means[0], math.sqrt(max(variance, 0)), fit.df)
        uneven = alone is not None and (noisy[0] or noisy[i])
        found.append(Contrast(alone if alone and uneven else pooled, alone, uneven))
    return found


def _scatters_more(table: Sequence[Sequence[float | None]], fit: Additive, i: int) -> bool:
    """Whether the residual is smaller without row `i` than chance explains, by an F-test at 5%."""
    rest = [row for j, row in enumerate(table) if j != i]
    without = additive(rest) if len(rest) > 1 else None
    if without is None or without.df < 1 or without.df == fit.df:
        return False
    own = (fit.rss - without.rss) / (fit.df - without.df)
    f = _ratio(own, without.rss / without.df)
    return f_tail(f, fit.df - without.df, without.df) < ALPHA


def f_tail(f: float, above: float, below: float) -> float:
    """P(F > f) with these degrees of freedom (Abramowitz and Stegun 26.6.2)."""
    if math.isinf(f):
        return 0.0
    return beta_inc(below / 2, above / 2, below / (below + above * max(f, 0)))


def verdicts(rows: Sequence[Contrast | None], margins: Sample) -> list[str]:
    """What can be claimed of every row of a study, its p-values corrected for their number (Holm).

    A difference above zero is worse; `margins` are in the unit of the differences. Each of the
    questions of the module's docstring has at most 5% of studies with a false claim.
    """
    known = [(row.judged, m) for row, m in zip(rows, margins, strict=True) if row]
    # One-sided against the margin: what has to be refuted is a difference of `m` or more.
    below = holm([t_cdf(_ratio(c.difference - m, c.se), c.df) for c, m in known])
    within = holm([_tost(c, m) for c, m in known])
    differ = holm([c.p for c, _ in known])
    claims = iter(zip(known, below, within, differ, strict=True))
    said = []
    for row in rows:
        if row is None:
            said.append("one seed, no verdict")
            continue
        (c, _), not_worse, equivalent, different = next(claims)
        side = ("worse" if c.difference > 0 else "better") if different < ALPHA else ""
        if equivalent < ALPHA:
            said.append(f"equivalent, {side}" if side else "equivalent")
        else:
            said.append(side or ("not worse" if not_worse < ALPHA else "not resolved"))
    return said


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
    out, down to 0. ValueError unless there are two or more of each.
    """
    fit = additive(rows)
    k, n = len(rows), len(rows[0])
    if k < 2 or n < 2:
        raise ValueError(f"{k} rows of {n} numbers: expected 2 or more of each")
    rest = fit.rss / fit.df
    by_row, by_column = sd(fit.means) ** 2, sd([mean(c) for c in zip(*rows, strict=True)]) ** 2
    f = _ratio(n * by_row, rest)
    treatments, blocks = max(0, by_row - rest / n), max(0, by_column - rest / k)
    p = f_tail(f, k - 1, fit.df)
    return Blocked(math.sqrt(treatments), math.sqrt(blocks), math.sqrt(rest), f, p)


def markdown_table(header: str, rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table that is aligned as plain text, too; `header` is "first | second | ...".

    Columns are as wide as their widest cell, the first to the left and the others to the right.
    """
    lines = [[str(cell).strip() for cell in line] for line in (header.split("|"), *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    out = []
    for first, *others in lines:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        out.append(f"| {' | '.join([first.ljust(widths[0]), *cells])} |")
    return "\n".join(out)
