"""Statistics for comparing methods over seeds; standard library only.

Used by autoenc_study.py and by judging.py, which has the model of a whole study. Differences are in
the unit of the samples. A large p-value of a t-test says that no difference was seen, not that
there is none: that takes a margin.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from statistics import fmean as mean
from statistics import stdev as sd

Sample = Sequence[float]
ALPHA = 0.05  # the level of every claim, one-sided for margins and two-sided for differences
POWER = 0.8  # the chance of a claim that a number of seeds is asked for


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


def beta_inc(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function I_x(a, b) for a, b > 0 and 0 <= x <= 1.

    The continued fraction of DLMF 8.17.22, by the modified Lentz method, where it converges fast.
    """
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
    """P(T <= t) for Student's t with df > 0 (Abramowitz and Stegun 26.7.1); t may be infinite."""
    if not df > 0 or math.isnan(t):
        raise ValueError(f"t_cdf(t={t}, df={df}): expected a number t and df > 0")
    tail = 0.5 * beta_inc(df / 2, 0.5, df / (df + t * t))
    return tail if t < 0 else 1 - tail


@functools.cache
def t_quantile(p: float, df: float) -> float:
    """The t with P(T <= t) = p, 0 < p < 1, by bisection."""
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


def comparison(difference: float, se: float, df: float) -> Comparison:
    """The 95% interval of a difference with this standard error, and its t-test."""
    half, t = t_quantile(1 - ALPHA / 2, df) * se, ratio(difference, se)
    ends = difference - half, difference + half
    return Comparison(difference, se, df, *ends, t, 2 * t_cdf(-abs(t), df))


def ratio(value: float, se: float) -> float:
    """value / se; matched runs can be identical in every bit, so se = 0 has its limit as answer."""
    if se > 0:
        return value / se
    return math.copysign(math.inf, value) if value else 0.0


def t_test(sample: Sample) -> Comparison:
    """The mean of a sample against 0: of paired differences, the paired t-test."""
    n = len(sample)
    return comparison(mean(sample), sd(sample) / math.sqrt(n), n - 1)


def paired(a: Sample, b: Sample) -> Comparison:
    """t-test of mean(a) - mean(b), where a[i] and b[i] belong together."""
    return t_test([x - y for x, y in zip(a, b, strict=True)])


def cohens_d(a: Sample, b: Sample) -> float:
    """Cohen's d: the difference in units of the pooled standard deviation (Cohen 1988, 2.5.1)."""
    squares = (len(a) - 1) * sd(a) ** 2 + (len(b) - 1) * sd(b) ** 2
    return ratio(mean(a) - mean(b), math.sqrt(squares / (len(a) + len(b) - 2)))


def tost(result: Comparison, margin: float) -> float:
    """p-value of |difference| >= margin, by two one-sided t-tests."""
    # Of the two one-sided tests the one with the larger p decides: that of the nearer bound.
    return t_cdf(ratio(abs(result.difference) - margin, result.se), result.df)


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


def f_tail(f: float, above: float, below: float) -> float:
    """P(F > f) with these degrees of freedom (Abramowitz and Stegun 26.6.2)."""
    if math.isinf(f):
        return 0.0
    return beta_inc(below / 2, above / 2, below / (below + above * max(f, 0)))


def noncentral_t_cdf(t: float, df: float, shift: float) -> float:
    """P((Z + shift) / sqrt(X / df) <= t), Z standard normal, X chi-square with `df` degrees.

    By the midpoint rule over s = sqrt(X / df); within 1e-5 for df >= 1.
    """
    low, high = max(0.0, 1 - 12 / math.sqrt(2 * df)), 1 + 12 / math.sqrt(2 * df)
    width = (high - low) / 4000
    log_front = math.log(2) + df / 2 * math.log(df / 2) - math.lgamma(df / 2)
    normal, total = NormalDist(), 0.0
    for i in range(4000):
        s = low + (i + 0.5) * width
        density = math.exp(log_front + (df - 1) * math.log(s) - df * s * s / 2)
        total += density * normal.cdf(t * s - shift)
    return total * width


def power(difference: float, se: float, df: float, margin: float, rows: int) -> float:
    """The chance that a study of `rows` rows claims "not worse", or "better" or "worse", of one.

    Exact for the first p-value of Holm's rule, and so a lower bound for the later ones, were
    `difference` and `se` the true ones; the larger of the two chances.
    """
    level = ALPHA / rows
    if se <= 0:
        return 1.0
    inside = noncentral_t_cdf(-t_quantile(1 - level, df), df, (difference - margin) / se)
    critical = t_quantile(1 - level / 2, df)
    return max(inside, 1 - noncentral_t_cdf(critical, df, abs(difference) / se))


def seeds_needed(result: Comparison, seeds: int, margin: float, rows: int, most: int = 1000) -> str:
    """How many seeds would settle one row of `rows` in 4 studies of 5; empty below five seeds.

    The range is that over the interval: what a few seeds say of the number that is needed is no
    more certain than what they say of the difference.
    """
    if seeds < 5:
        return ""

    def needed(difference: float) -> int:
        low, high = 1, most + 1  # too few, enough
        while high - low > 1:
            n = (low + high) // 2
            se, df = result.se * math.sqrt(seeds / n), result.df * (n - 1) / (seeds - 1)
            low, high = (low, n) if power(difference, se, df, margin, rows) >= POWER else (n, high)
        return high

    # Hardest is a difference between zero and the margin, as many standard errors from either as
    # "worse" and "not worse" ask for.
    z = NormalDist().inv_cdf
    worse, not_worse = (z(POWER) + z(1 - level) for level in (ALPHA / rows / 2, ALPHA / rows))
    hardest = margin * worse / (worse + not_worse)
    inside = min(max(hardest, result.low), result.high)
    numbers = [needed(difference) for difference in (result.low, inside, result.high)]
    low, high = min(numbers), max(numbers)
    return f"{low:,} to {high:,}" if high <= most else f"{low:,} or more"


@dataclass(frozen=True)
class PowerLaw:
    """gap = scale * tokens^-exponent + offset, and its root mean square error."""

    scale: float
    exponent: float
    offset: float
    error: float

    def at(self, tokens: float) -> float:
        return self.scale * tokens**-self.exponent + self.offset

    def reaches(self, level: float) -> float:
        """The tokens at which the gap has fallen to `level`; infinite if it never does."""
        share = (level - self.offset) / self.scale if self.scale > 0 else 0.0
        log = -math.log(share) / self.exponent if share > 0 else math.inf
        return math.exp(log) if log < 700 else math.inf  # about the largest that a float holds


def power_law(tokens: Sample, gaps: Sample, with_offset: bool) -> PowerLaw:
    """The power law of least squares through three points or more, exponents from 0.02 to 3.

    For one exponent scale and offset are linear; the exponent is the best of a grid, refined.
    """

    def fit(exponent: float) -> PowerLaw:
        xs = [(t / tokens[-1]) ** -exponent for t in tokens]
        x0 = mean(xs) if with_offset else 0.0
        y0 = mean(gaps) if with_offset else 0.0
        squares = math.fsum((x - x0) ** 2 for x in xs)
        products = math.fsum((x - x0) * (y - y0) for x, y in zip(xs, gaps, strict=True))
        slope = products / squares
        offset = y0 - slope * x0
        errors = [(slope * x + offset - y) ** 2 for x, y in zip(xs, gaps, strict=True)]
        return PowerLaw(slope * tokens[-1] ** exponent, exponent, offset, math.sqrt(mean(errors)))

    low, high = 0.02, 3.0
    for _ in range(4):
        grid = [low * (high / low) ** (i / 40) for i in range(41)]
        best = min(grid, key=lambda exponent: fit(exponent).error)
        low, high = max(low, best / (high / low) ** 0.05), min(high, best * (high / low) ** 0.05)
    return fit(best)


def tokens_for(loss: float, tokens: Sample, losses: Sample) -> float | None:
    """The tokens after which a curve is first at `loss`, linear in their logarithm, or None."""
    for i, (there, value) in enumerate(zip(tokens, losses, strict=True)):
        if value <= loss:
            if i == 0:
                return there if value == loss else None
            share = (losses[i - 1] - loss) / (losses[i - 1] - value)
            return tokens[i - 1] * (there / tokens[i - 1]) ** share
    return None


def markdown_table(header: str, rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table that is aligned as plain text, too; `header` is "first | second | ..."."""
    titles = [title.strip() for title in header.split("|")]
    lines = [titles, *([str(cell).strip().replace("|", "\\|") for cell in row] for row in rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    out = []
    for first, *others in lines:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        out.append(f"| {' | '.join([first.ljust(widths[0]), *cells])} |")
    return "\n".join(out)
