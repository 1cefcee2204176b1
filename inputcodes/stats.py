"""Statistics for comparing two methods over seeds, standard library only (Python 3.9 and newer).

Used by autoenc_study.py and compare.py. `a` and `b` are the results of two methods, one number a
seed; every difference is mean(a) - mean(b), in the unit of the samples. Matched runs, where a[i]
and b[i] share a seed and everything that follows from it, take the paired functions; independent
runs take the Welch ones, which do not assume equal variances.

A large p-value of a t-test says that no difference was seen, not that there is none. To claim
equivalence take a TOST, with a margin chosen before looking.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

Sample = Sequence[float]


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


def _compare(difference: float, se: float, df: float, confidence: float) -> Comparison:
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


def welch(a: Sample, b: Sample, confidence: float = 0.95) -> Comparison:
    """Welch's t-test of two independent samples, 2 or more numbers each (Welch 1947)."""
    var_a, var_b = sd(a) ** 2 / len(a), sd(b) ** 2 / len(b)
    total = var_a + var_b
    if total > 0:
        df = total**2 / (var_a**2 / (len(a) - 1) + var_b**2 / (len(b) - 1))
    else:
        df = float(len(a) + len(b) - 2)
    return _compare(mean(a) - mean(b), math.sqrt(total), df, confidence)


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


def tost_welch(a: Sample, b: Sample, margin: float) -> float:
    """p-value of |difference| >= margin, by two one-sided Welch tests (Schuirmann 1987).

    p < 0.05 claims equivalence within the margin (in the unit of the samples) at the 5% level.
    """
    return _tost(welch(a, b), margin)


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


def pairs_needed(difference: float, sd: float, margin: float, most: int = 1000) -> int | None:
    """How many pairs would settle a comparison whose differences have this mean and deviation.

    The fewest at which a TOST or a two-sided t-test, both at the 5% level, would succeed in 4
    studies of 5, were the mean and the deviation the true ones (the normal approximation to power
    with Student quantiles; Chow et al., Sample Size Calculations, section 3.2). None above `most`.
    """
    inside = margin - abs(difference)
    for n in range(2, most + 1):
        se = sd / math.sqrt(n)
        power = t_quantile(0.8, n - 1)
        # A mean near zero can fail on either side, so the TOST is asked for 0.9 on each.
        equivalent = inside > (t_quantile(0.95, n - 1) + t_quantile(0.9, n - 1)) * se
        if equivalent or abs(difference) > (t_quantile(0.975, n - 1) + power) * se:
            return n
    return None


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

    `f` = treatments' mean square over the residual's; `p` for "all treatments are the same"
    (Montgomery, Design and Analysis of Experiments, section 4.1). The standard deviations are the
    analysis-of-variance estimates: what the rest adds to a mean is taken out, down to 0.
    ValueError unless there are two or more of each and all rows are as long.
    """
    k, n = len(rows), len(rows[0]) if rows else 0
    if k < 2 or n < 2 or any(len(row) != n for row in rows):
        raise ValueError(
            f"{k} rows of {[len(row) for row in rows]} numbers: expected 2 or more, as long each"
        )
    by_row = [mean(row) for row in rows]
    by_column = [mean([row[j] for row in rows]) for j in range(n)]
    centre = mean(by_row)
    squares = math.fsum(
        (rows[i][j] - by_row[i] - by_column[j] + centre) ** 2 for i in range(k) for j in range(n)
    )
    df = (k - 1) * (n - 1)
    rest = squares / df
    spread = sd(by_row) ** 2, sd(by_column) ** 2
    f = _ratio(n * spread[0], rest)
    # P(F > f) through the incomplete beta function (Abramowitz and Stegun 26.6.2)
    p = 0.0 if math.isinf(f) else beta_inc(df / 2, (k - 1) / 2, df / (df + (k - 1) * f))
    treatments, blocks = max(0, spread[0] - rest / n), max(0, spread[1] - rest / k)
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
