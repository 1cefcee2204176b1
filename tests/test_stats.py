"""stats.py against closed forms, published tables and published analyses; no SciPy needed."""

import itertools
import math
import random
import re

import pytest

from inputcodes import judging, stats

# Student (1908), Biometrika 6: extra hours of sleep under two drugs, the `sleep` data of R.
SLEEP_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SLEEP_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]

# NIST StRD "AtmWtAg" (Powell, Murphy and Gramlich 1982): the atomic weight of silver by two
# instruments, here 1e7 * (value - 107.868), which is a whole number.
SILVER_1 = [1568, 1465, 1572, 1785, 1446, 1903, 1526, 1494, 1616, 1587, 1519, 1486]
SILVER_1 += [1419, 1569, 1508, 1672, 1385, 1518, 1662, 1424, 1360, 1333, 1610, 1477]
SILVER_2 = [1079, 1344, 1513, 1197, 1604, 1385, 1642, 1365, 1151, 1082, 1517, 1448]
SILVER_2 += [1198, 1482, 1334, 1609, 1101, 1512, 1469, 1360, 1254, 1261, 1450, 1368]

# The `clinic` data of the R package multeq, two groups of 15: the first two endpoints.
# The expected numbers are those R's packages equivalence (tost) and stats (t.test) print for them.
CLINIC_1A = [2.84, 2.51, 2.41, 2.95, 3.14, 3.79, 4.14, 3.85, 3.02, 3.45, 5.37, 3.81]
CLINIC_1A += [4.19, 3.16, 3.84]
CLINIC_1B = [2.60, 2.82, 2.18, 3.46, 4.01, 3.04, 3.47, 4.06, 2.91, 3.59, 4.51, 3.16]
CLINIC_1B += [3.86, 3.31, 3.02]
CLINIC_2A = [4.00, 3.26, 4.14, 3.42, 3.25, 4.34, 4.97, 4.31, 3.11, 3.41, 5.02, 4.21]
CLINIC_2A += [4.59, 5.30, 4.32]
CLINIC_2B = [3.76, 3.66, 3.65, 3.60, 3.48, 2.87, 3.24, 3.92, 3.99, 4.21, 4.21, 3.31]
CLINIC_2B += [3.61, 2.97, 2.73]


def close(expected: float, digits: int = 6):
    return pytest.approx(expected, rel=0.5 * 10.0**-digits)


def t_between(t: float, df: int) -> float:
    """P(-t < T < t) by the finite series of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    theta = math.atan(t / math.sqrt(df))
    if df % 2 == 0:
        term = total = 1.0
        for k in range(1, df // 2):
            term *= (2 * k - 1) / (2 * k) * math.cos(theta) ** 2
            total += term
        return math.sin(theta) * total
    total, term = 0.0, math.cos(theta)
    for k in range(1, (df - 1) // 2 + 1):
        total += term
        term *= 2 * k / (2 * k + 1) * math.cos(theta) ** 2
    return 2 / math.pi * (theta + math.sin(theta) * total)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 9, 10, 18, 29, 60, 121])
def test_t_cdf_is_the_finite_series(df):
    for t in (0.0, 0.1, 0.7, 1.0, 1.96, 2.5, 4.0, 12.7):
        inside = t_between(t, df)
        assert stats.t_cdf(t, df) - stats.t_cdf(-t, df) == pytest.approx(inside, abs=1e-12)
        assert stats.t_cdf(t, df) == pytest.approx(0.5 + inside / 2, abs=1e-12)


def test_beta_inc_is_the_binomial_tail():
    # Abramowitz and Stegun 26.5.24: I_p(k, n - k + 1) = P(at least k of n successes).
    for n, p in itertools.product((1, 4, 9, 40), (0.01, 0.3, 0.5, 0.9)):
        for k in range(1, n + 1):
            tail = math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))
            assert stats.beta_inc(k, n - k + 1, p) == pytest.approx(tail, rel=1e-11)


def test_small_tail_keeps_its_relative_precision():
    # df = 2 has the closed form P(T < t) = (1 + t / sqrt(2 + t^2)) / 2, about 1 / (2 t^2) far out.
    t = -1e8
    assert stats.t_cdf(t, 2) == pytest.approx(1 / (2 * t * t), rel=1e-12)
    assert stats.t_cdf(-math.inf, 5) == 0
    assert stats.t_cdf(math.inf, 5) == 1


# NIST/SEMATECH e-Handbook 1.3.6.7.2, upper critical values (0.90, 0.95, 0.975, 0.99, 0.995, 0.999).
NIST_CRITICAL = {
    1: (3.078, 6.314, 12.706, 31.821, 63.657, 318.309),
    2: (1.886, 2.920, 4.303, 6.965, 9.925, 22.327),
    5: (1.476, 2.015, 2.571, 3.365, 4.032, 5.893),
    9: (1.383, 1.833, 2.262, 2.821, 3.250, 4.297),
    18: (1.330, 1.734, 2.101, 2.552, 2.878, 3.610),
    30: (1.310, 1.697, 2.042, 2.457, 2.750, 3.385),
    100: (1.290, 1.660, 1.984, 2.364, 2.626, 3.174),
}


@pytest.mark.parametrize("df", NIST_CRITICAL)
def test_t_quantile_prints_the_nist_table(df):
    probabilities = (0.90, 0.95, 0.975, 0.99, 0.995, 0.999)
    assert tuple(round(stats.t_quantile(p, df), 3) for p in probabilities) == NIST_CRITICAL[df]


def test_t_quantile_against_closed_forms():
    for p in (0.001, 0.025, 0.2, 0.5, 0.9, 0.975, 0.9995):
        # df = 1 is Cauchy; df = 2 and df = 4 by Shaw (2006), "Sampling Student's T distribution".
        cauchy = math.tan(math.pi * (p - 0.5))
        assert stats.t_quantile(p, 1) == pytest.approx(cauchy, rel=1e-12, abs=1e-12)
        a = 4 * p * (1 - p)
        assert stats.t_quantile(p, 2) == pytest.approx((2 * p - 1) * math.sqrt(2 / a), abs=1e-12)
        q = math.cos(math.acos(math.sqrt(a)) / 3) / math.sqrt(a)
        expected = math.copysign(2 * math.sqrt(max(q - 1, 0)), p - 0.5)
        assert stats.t_quantile(p, 4) == pytest.approx(expected, rel=1e-9, abs=1e-7)


def test_quantile_inverts_the_cdf_at_fractional_degrees_of_freedom():
    for df, p in itertools.product((0.7, 3.3, 17.776, 250.5), (0.001, 0.3, 0.6, 0.99)):
        assert stats.t_cdf(stats.t_quantile(p, df), df) == pytest.approx(p, rel=1e-12)


def test_mean_and_sd_and_interval_of_textbook_data():
    # Student's differences: mean 1.58, and R's t.test interval 0.7001142 to 2.4598858.
    differences = [b - a for a, b in zip(SLEEP_1, SLEEP_2, strict=True)]
    assert stats.mean(differences) == close(1.58, 12)
    test = stats.t_test(differences)
    assert (test.low, test.high) == (close(0.7001142), close(2.4598858))
    # Whole numbers with a known answer: the squares of 2, 4, 4, 4, 5, 5, 7, 9 about 5 sum to 32.
    assert stats.sd([2, 4, 4, 4, 5, 5, 7, 9]) == close(math.sqrt(32 / 7), 14)


def test_paired_on_students_sleep_data():
    # R, t.test(paired = TRUE): t = -4.0621, df = 9, p = 0.002833.
    result = stats.paired(SLEEP_1, SLEEP_2)
    assert (result.low, result.high) == (close(-2.4598858), close(-0.7001142))
    assert (round(result.t, 4), result.df, round(result.p, 6)) == (-4.0621, 9, 0.002833)


def test_paired_against_r_on_the_clinic_data():
    result = stats.paired(CLINIC_1A, CLINIC_1B)
    assert (result.df, result.t) == (14, close(1.213001548676048, 12))
    assert result.p == close(0.245199929713149, 12)
    assert (result.low, result.high) == (
        close(-0.1264911434745851, 12),
        close(0.4558244768079186, 12),
    )


def test_tost_against_r_on_the_clinic_data():
    # equivalence::tost(..., epsilon = 0.6, paired = TRUE)
    assert stats.tost(stats.paired(CLINIC_1A, CLINIC_1B), 0.6) == close(0.003166881489265175, 12)
    assert stats.tost(stats.paired(CLINIC_2A, CLINIC_2B), 0.6) == close(0.4412034046017588, 12)


def test_tost_agrees_with_the_ninety_percent_interval():
    for margin in (0.2, 0.35, 0.39, 0.4, 0.5, 1.0):
        found = stats.paired(CLINIC_1B, CLINIC_1A)
        half = stats.t_quantile(0.95, found.df) * found.se
        inside = -margin < found.difference - half and found.difference + half < margin
        assert (stats.tost(found, margin) < 0.05) == inside


def test_swapping_the_methods_changes_only_the_sign():
    forward, backward = stats.paired(SLEEP_1, SLEEP_2), stats.paired(SLEEP_2, SLEEP_1)
    assert (forward.low, forward.high) == (-backward.high, -backward.low)
    assert (forward.t, forward.p) == (-backward.t, backward.p)
    assert stats.cohens_d(SLEEP_1, SLEEP_2) == -stats.cohens_d(SLEEP_2, SLEEP_1)
    assert stats.tost(forward, 3) == stats.tost(backward, 3)


def test_identical_runs_are_equal_and_equivalent():
    same = [0.5, 0.7, 0.6]
    result = stats.paired(same, same)
    assert (result.difference, result.t, result.p) == (0, 0, 1)
    assert stats.tost(stats.paired(same, same), 1e-9) == 0
    assert stats.cohens_d([1, 1], [1, 1]) == 0
    shifted = stats.paired([2, 2, 2], [1, 1, 1])
    assert (shifted.t, shifted.p, shifted.low, shifted.high) == (math.inf, 0, 1, 1)
    assert stats.tost(stats.paired([2, 2], [1, 1]), 0.5) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.mean([]), "at least one data point"),
        (lambda: stats.t_test([1.0]), "at least two data points"),
        (lambda: stats.paired([1, 2], [1, 2, 3]), "is longer"),
        (lambda: stats.t_cdf(1, 0), "expected a number t and df > 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


# Montgomery, Design and Analysis of Experiments, Table 4.3: vascular grafts, 4 extrusion
# pressures (treatments) on 6 batches of resin (blocks).
GRAFTS = [
    [90.3, 89.2, 98.2, 93.9, 87.4, 97.9],
    [92.5, 89.5, 90.6, 94.7, 87.0, 95.8],
    [85.5, 90.8, 89.6, 86.2, 88.0, 93.4],
    [82.5, 89.5, 85.6, 87.4, 78.9, 90.7],
]


def test_blocked_anova_prints_montgomerys_table():
    found = judging.blocked_anova(GRAFTS)
    assert found.f == pytest.approx(8.11, abs=0.005)
    assert found.p == pytest.approx(0.0019, abs=0.00005)
    assert found.residual_sd**2 == pytest.approx(7.33, abs=0.005)
    # its mean squares are those of the residual plus 6 or 4 times the variance of each
    assert 6 * found.treatments_sd**2 + 7.33 == pytest.approx(59.39, abs=0.01)
    assert 4 * found.blocks_sd**2 + 7.33 == pytest.approx(38.45, abs=0.01)


def test_blocked_anova_finds_nothing_in_noise_and_what_there_is():
    rng, found = random.Random(0), []
    for _ in range(300):
        codes, seeds = [rng.gauss(0, 2) for _ in range(8)], [rng.gauss(0, 1) for _ in range(8)]
        table = [[code + seed + rng.gauss(0, 0.5) for seed in seeds] for code in codes]
        found.append(judging.blocked_anova(table))
    for name, expected in (("treatments_sd", 2), ("blocks_sd", 1), ("residual_sd", 0.5)):
        squares = [getattr(one, name) ** 2 for one in found]
        assert stats.mean(squares) == pytest.approx(expected**2, rel=0.1)
    noise = [[[rng.gauss(0, 1) for _ in range(3)] for _ in range(8)] for _ in range(400)]
    small = [judging.blocked_anova(table).p < 0.05 for table in noise]
    assert 0.02 < stats.mean(small) < 0.09


def test_blocked_anova_of_two_treatments_is_the_paired_test():
    test = stats.paired(SLEEP_1, SLEEP_2)
    found = judging.blocked_anova([SLEEP_1, SLEEP_2])
    assert found.f == pytest.approx(test.t**2)
    assert found.p == pytest.approx(test.p)
    assert stats.f_tail(-1e-3, 2, 4) == 1  # as rounding makes it of runs that are nearly identical


def test_holm_by_its_definition():
    # Holm (1979): reject the smallest while p <= alpha / (number not yet rejected).
    p_values = [0.01, 0.04, 0.03, 0.005, 0.2]
    adjusted = stats.holm(p_values)
    assert adjusted == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.2])
    for alpha in (0.02, 0.03, 0.05, 0.1, 0.3):
        rejected, left = set(), sorted(range(5), key=lambda i: p_values[i])
        while left and p_values[left[0]] <= alpha / len(left):
            rejected.add(left.pop(0))
        assert {i for i in range(5) if adjusted[i] <= alpha} == rejected
    assert stats.holm([]) == []
    assert stats.holm([0.6, 0.7]) == [1, 1]  # a probability


def test_a_table_is_markdown_and_aligned():
    assert stats.markdown_table("run | loss", [["out/a", "1.25"], ["b|c", 10]]) == "\n".join(
        ["| run   | loss |", "| ----- | ---: |", "| out/a | 1.25 |", "| b\\|c  |   10 |"]
    )


def test_cohens_d_of_nist_certified_data():
    # With equal group sizes t^2 is the F of a one-way analysis of variance, certified by NIST to
    # 15 digits; and d = t sqrt(2 / n).
    assert stats.cohens_d(SILVER_1, SILVER_2) == close(math.sqrt(15.9467335677930 * 2 / 24), 12)
    # Of unequal sizes, by hand: means 1 and 3, variances 2 (1 degree of freedom) and 9 (2).
    assert stats.cohens_d([0, 2], [0, 3, 6]) == close(-2 / math.sqrt((2 + 2 * 9) / 3), 12)


def test_an_additive_model_of_whole_tables_is_the_analysis_of_variance():
    fit = judging.additive(GRAFTS)
    assert fit.means == pytest.approx([stats.mean(row) for row in GRAFTS])
    assert fit.df == 15
    assert fit.rss / fit.df == pytest.approx(7.33, abs=0.005)
    for contrast, row in zip(judging.contrasts(GRAFTS), GRAFTS[1:], strict=True):
        alone = stats.paired(row, GRAFTS[0])
        assert contrast.paired.difference == pytest.approx(alone.difference)
        assert contrast.judged.difference == pytest.approx(alone.difference)
        assert contrast.judged.se == pytest.approx(math.sqrt(2 * fit.rss / fit.df / 6))


def test_rows_that_only_the_baseline_connects_are_compared():
    """Without it their seeds have nothing in common, so each half is a paired test of its own."""
    table = [[1.0, 2.0, 1.5, 1.7], [1.1, 2.16, None, None], [None, None, 1.62, 1.8]]
    halves = [(0.1, 0.16), (0.12, 0.1)]  # the differences from the baseline
    variance = sum((a - b) ** 2 / 4 for a, b in halves) / 2  # of a residual, two degrees of freedom
    for contrast, (a, b) in zip(judging.contrasts(table), halves, strict=True):
        assert contrast.judged.difference == pytest.approx((a + b) / 2)
        assert contrast.judged.se == pytest.approx(math.sqrt(variance))  # 2 runs of 2 rows


def test_an_additive_model_with_runs_missing_is_least_squares():
    """Against a descent on the sum of squares, which knows no algebra."""
    table = [[1.0, 2.0, None], [1.5, None, 3.7], [0.5, 1.8, 2.9]]
    variants, seeds = [0.0] * 3, [0.0] * 3
    cells = [(i, j, y) for i, row in enumerate(table) for j, y in enumerate(row) if y is not None]
    for _ in range(2000):  # each effect in turn at its best
        for i in range(3):
            variants[i] = stats.mean([y - seeds[j] for k, j, y in cells if k == i])
        for j in range(3):
            seeds[j] = stats.mean([y - variants[i] for i, k, y in cells if k == j])
    rss = sum((y - variants[i] - seeds[j]) ** 2 for i, j, y in cells)
    fit, contrasts = judging.additive(table), judging.contrasts(table)
    assert (fit.rss, fit.df) == (pytest.approx(rss), 2)
    for i in (1, 2):
        difference = variants[i] - variants[0]
        assert fit.means[i] - fit.means[0] == pytest.approx(difference)
        # The standard error: how the estimate answers to each result, by finite differences.
        answers = []
        for k, j, y in cells:
            moved = [list(row) for row in table]
            moved[k][j] = y + 1
            other = judging.additive(moved)
            answers.append(other.means[i] - other.means[0] - difference)
        variance = sum(answer**2 for answer in answers) * rss / 2
        assert contrasts[i - 1].judged.se ** 2 == pytest.approx(variance)


def test_a_variant_that_scatters_more_is_judged_alone():
    rng = random.Random(3)
    table = [[rng.gauss(0, 0.1) for _ in range(5)] for _ in range(6)]
    table[4] = [10 * y for y in table[4]]
    found = judging.contrasts(table)
    assert [contrast.uneven for contrast in found] == [False, False, False, True, False]
    assert found[3].judged == found[3].paired
    few = judging.contrasts([[1.0, 2.0], [1.0, 2.001], [1.0, 9.0]])  # two seeds are enough
    assert [contrast.uneven for contrast in few] == [False, True]
    noise = [[[rng.gauss(0, 1) for _ in range(4)] for _ in range(4)] for _ in range(300)]
    said = [contrast.uneven for table in noise for contrast in judging.contrasts(table)]
    assert 0.05 < stats.mean(said) < 0.12  # of one of the two, each in 5% of cases
    assert judging.contrasts([[1.0], [2.0]]) == [None]


def test_variants_that_are_identical_in_every_bit_are_equivalent_and_no_more():
    rng = random.Random(6)
    for variants, seeds in itertools.product((2, 3, 5), (2, 3, 4)):
        table = [[rng.gauss(3, 1) for _ in range(seeds)]] * variants
        rows = judging.contrasts(table)
        assert [(row.judged.difference, row.judged.p) for row in rows] == [(0, 1)] * len(rows)
        assert judging.verdicts(rows, [0.03] * len(rows)) == ["equivalent"] * len(rows)


def simulated(truth: list[float], seeds: int, sd: float, rng: random.Random) -> list[str]:
    """The verdicts of one study whose margin is 1 and whose rows have these true differences."""
    blocks = [rng.gauss(0, 2) for _ in range(seeds)]
    table = [[d + block + rng.gauss(0, sd) for block in blocks] for d in [0.0, *truth]]
    return judging.verdicts(judging.contrasts(table), [1.0] * len(truth))


@pytest.mark.parametrize(
    ("truth", "false"),
    [
        (0.0, {"better", "worse", "equivalent, better", "equivalent, worse"}),
        (1.0, {"not worse", "equivalent", "better", "equivalent, better", "equivalent, worse"}),
        (-1.0, {"worse", "equivalent", "equivalent, better", "equivalent, worse"}),
    ],
)
def test_at_most_one_study_in_twenty_has_a_false_claim(truth, false):
    rng, studies = random.Random(1), 600
    bad = sum(bool(false & set(simulated([truth] * 4, 3, 0.4, rng))) for _ in range(studies))
    assert bad / studies < 0.05 + 2 * math.sqrt(0.05 * 0.95 / studies)


def test_what_is_there_is_claimed():
    rng, studies = random.Random(2), 100
    said = [simulated([0.0, 3.0, -3.0], 5, 0.3, rng) for _ in range(studies)]
    assert sum(one[0].startswith("equivalent") for one in said) > 0.9 * studies
    assert sum(one[1] == "worse" for one in said) == studies
    assert sum(one[2] == "better" for one in said) == studies


def test_the_power_is_the_share_of_studies_that_succeed():
    rng, n, sd, margin = random.Random(4), 5, 1.0, 2.0
    for difference in (0.0, 1.0, 3.0):
        wins = 0
        for _ in range(1500):
            test = stats.paired([rng.gauss(difference, sd) for _ in range(n)], [0.0] * n)
            below = stats.t_cdf((test.difference - margin) / test.se, test.df) < 0.05
            wins += below if difference < 2 else test.p < 0.05
        exact = stats.power(difference, sd / math.sqrt(n), n - 1, margin, rows=1)
        assert exact == pytest.approx(wins / 1500, abs=0.04)


def test_the_power_among_other_rows_is_no_more_than_that_of_whole_studies():
    rng, studies, seeds, sd = random.Random(6), 300, 6, 0.5
    said = [simulated([0.0] * 4, seeds, sd, rng) for _ in range(studies)]
    settled = sum(one[0] != "not resolved" for one in said) / studies
    safe, of_one = (stats.power(0, sd * math.sqrt(2 / seeds), 20, 1.0, rows) for rows in (4, 1))
    assert safe - 0.05 < settled < of_one - 0.05


def test_the_noncentral_t_is_its_definition():
    # With one degree of freedom and by symmetry at zero: P(T <= 0) is that of the shifted normal.
    for shift in (-1.0, 0.5, 3.0):
        normal = 0.5 * math.erfc(shift / math.sqrt(2))
        for df in (1, 4, 30):
            assert stats.noncentral_t_cdf(0, df, shift) == pytest.approx(normal, abs=1e-6)
    for df, t in itertools.product((1, 2, 7, 40), (-2.5, 0.3, 4.0)):
        central = stats.noncentral_t_cdf(t, df, 0.0)
        assert central == pytest.approx(stats.t_cdf(t, df), abs=1e-6)
    rng = random.Random(5)
    drawn = [
        rng.gauss(2.0, 1) / math.sqrt(sum(rng.gauss(0, 1) ** 2 for _ in range(5)) / 5)
        for _ in range(20_000)
    ]
    share = sum(t <= 3.0 for t in drawn) / len(drawn)
    assert stats.noncentral_t_cdf(3.0, 5, 2.0) == pytest.approx(share, abs=0.01)


def test_seeds_are_asked_for_as_a_range_and_only_from_five_on():
    found = stats.Comparison(0.5, 0.5, 16, -0.56, 1.56, 1.0, 0.33)
    assert stats.seeds_needed(found, 4, 1.0, 1) == ""
    low, high = stats.seeds_needed(found, 5, 1.0, 1).split(" to ")
    assert 2 < int(low) < int(high) < 1000
    assert stats.seeds_needed(found, 5, 1.0, 1, most=int(high) - 1) == f"{low} or more"
    on_the_margin = stats.Comparison(1.0, 0.01, 16, 0.9999, 1.0001, 0, 1)
    assert stats.seeds_needed(on_the_margin, 5, 1.0, 1, most=3) == "2 to 2"  # "worse"


@pytest.mark.parametrize(("difference", "df"), [(1.2, 16), (1.2, 4), (2.9, 16)])
def test_the_range_of_seeds_is_that_of_all_differences_in_the_interval(difference, df):
    """Neither of its ends nor the estimate has to be the difference that asks for most."""
    found = stats.comparison(difference, 0.5, df)
    low, high = map(int, stats.seeds_needed(found, 5, 1.0, 4).split(" to "))

    def settled(difference: float, seeds: int) -> bool:
        freedom = df / 4 * (seeds - 1)
        return stats.power(difference, 0.5 * math.sqrt(5 / seeds), freedom, 1.0, 4) >= 0.8

    inside = [found.low + i / 16 * (found.high - found.low) for i in range(17)]
    assert all(settled(difference, high) for difference in inside)
    assert not all(settled(difference, min(high - 1, round(0.9 * high))) for difference in inside)
    assert any(settled(difference, low) for difference in inside)
    assert not any(settled(difference, low - 1) for difference in inside)


def test_a_power_law_is_found_with_its_offset():
    tokens = [100.0 * 1.3**i for i in range(20)]
    gaps = [3.0 * t**-0.6 + 0.02 for t in tokens]
    law = stats.power_law(tokens, gaps, with_offset=True)
    assert (law.exponent, law.offset) == (
        pytest.approx(0.6, rel=1e-2),
        pytest.approx(0.02, rel=0.05),
    )
    assert law.reaches(0.05) == pytest.approx((3 / 0.03) ** (1 / 0.6), rel=0.02)
    assert law.reaches(0.01) == math.inf
    assert stats.PowerLaw(1.0, 0.02, 0.0, 0.0).reaches(1e-7) == math.inf  # 1e350
    assert stats.PowerLaw(-2500.0, 1.0, 0.03, 0.0).reaches(0.01) == math.inf  # it leaves the level
    plain = stats.power_law(tokens, gaps, with_offset=False)
    assert plain.error > 10 * law.error
    assert plain.offset == 0
    steep = stats.power_law(tokens, [3.0 * t**-2.5 for t in tokens], with_offset=False)
    assert steep.exponent == pytest.approx(2.5, rel=1e-2)


def test_tokens_for_a_loss_are_read_off_a_curve():
    tokens, losses = [100.0, 200.0, 400.0], [3.0, 2.0, 1.0]
    assert stats.tokens_for(1.5, tokens, losses) == pytest.approx(200 * 2**0.5)
    assert stats.tokens_for(2.0, tokens, losses) == pytest.approx(200)
    assert [stats.tokens_for(loss, tokens, losses) for loss in (3.0, 1.0)] == [100, 400]
    assert stats.tokens_for(0.5, tokens, losses) is None
    assert stats.tokens_for(3.5, tokens, losses) is None
