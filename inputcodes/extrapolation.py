"""What the runs of a study say beyond themselves; standard library only.

How many seeds would settle a comparison, how far a difference holds for other documents, how much
data a loss is worth, and where a gap that shrinks with the tokens would reach a margin.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from inputcodes.stats import ALPHA, Comparison, Sample, mean, t_quantile

POWER = 0.8  # the chance of a claim that a number of seeds is asked for


def noncentral_t_cdf(t: float, df: float, shift: float) -> float:
    """P((Z + shift) / sqrt(X / df) <= t), Z standard normal, X chi-square with `df` degrees.

    By Simpson's rule over s = sqrt(X / df); within 1e-6 for df >= 1.
    """
    low, high = max(0.0, 1 - 12 / math.sqrt(2 * df)), 1 + 12 / math.sqrt(2 * df)
    steps = 400
    width = (high - low) / steps
    log_front = math.log(2) + df / 2 * math.log(df / 2) - math.lgamma(df / 2)
    total = 0.0
    for i in range(steps + 1):
        s = low + i * width
        if s <= 0:
            density = 0.0 if df > 1 else math.exp(log_front)
        else:
            density = math.exp(log_front + (df - 1) * math.log(s) - df * s * s / 2)
        normal = 0.5 * math.erfc((shift - t * s) / math.sqrt(2))
        total += (1 if i in (0, steps) else 4 if i % 2 else 2) * density * normal
    return total * width / 3


def power(difference: float, se: float, df: float, margin: float) -> float:
    """The chance that a study claims "not worse", or "better" or "worse", of one row.

    Exact, were `difference` and `se` the true ones; the larger of the two chances.
    """
    if se <= 0:
        return 1.0
    inside = noncentral_t_cdf(-t_quantile(1 - ALPHA, df), df, (difference - margin) / se)
    critical = t_quantile(1 - ALPHA / 2, df)
    return max(inside, 1 - noncentral_t_cdf(critical, df, abs(difference) / se))


def seeds_needed(found: Comparison, seeds: int, margin: float, most: int = 1000) -> str:
    """How many seeds would settle a row in 4 studies of 5, as a range; empty below five seeds.

    The range is that over the ends of the interval and the estimate: what a few seeds say of the
    number that is needed is no more certain than what they say of the difference.
    """
    if seeds < 5:
        return ""

    def needed(difference: float) -> int:
        low, high = 1, most + 1  # too few, enough
        while high - low > 1:
            n = (low + high) // 2
            se, df = found.se * math.sqrt(seeds / n), found.df * (n - 1) / (seeds - 1)
            low, high = (low, n) if power(difference, se, df, margin) >= POWER else (n, high)
        return high

    numbers = [needed(difference) for difference in (found.low, found.difference, found.high)]
    low, high = min(numbers), max(numbers)
    return f"{low:,} to {high:,}" if high <= most else f"{low:,} or more"


def bootstrap(
    differences: Sequence[Sample], weights: Sample, draws: int = 2000
) -> tuple[float, float]:
    """95% interval of a mean difference over seeds and documents, both drawn with replacement.

    `differences` are summed over the tokens of a document, a row a seed and a column a document;
    `weights` are the documents' tokens. Drawing n seeds shows (n - 1) / n of their variance, so
    the deviation of the drawn seeds is widened by that (Davison and Hinkley 1997, section 2.3).
    """
    rng = random.Random(1)
    n, documents = len(differences), range(len(weights))
    widen = math.sqrt(n / (n - 1))
    found = []
    for _ in range(draws):
        picked = rng.choices(documents, k=len(documents))
        tokens = math.fsum(weights[d] for d in picked)
        by_seed = [math.fsum(map(row.__getitem__, picked)) / tokens for row in differences]
        centre = math.fsum(by_seed) / n
        drawn = math.fsum(rng.choices(by_seed, k=n)) / n
        found.append(centre + widen * (drawn - centre))
    found.sort()
    return found[round(0.025 * (draws - 1))], found[round(0.975 * (draws - 1))]


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
        """The tokens at which the gap is `level`; infinite if it never is."""
        share = (level - self.offset) / self.scale if self.scale else 0.0
        return share ** (-1 / self.exponent) if share > 0 else math.inf


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
    """The tokens after which a curve is first at `loss`, between its points; None if it never is.

    Straight lines of loss over the logarithm of the tokens. None too for a curve that starts below
    `loss`.
    """
    for i, (there, value) in enumerate(zip(tokens, losses, strict=True)):
        if value <= loss:
            if i == 0:
                return there if value == loss else None
            share = (losses[i - 1] - loss) / (losses[i - 1] - value)
            return tokens[i - 1] * (there / tokens[i - 1]) ** share
    return None
