"""Reports of runs that are written here by hand, and their figures."""

import dataclasses
import json
import math
import random
import re
from pathlib import Path

import pytest

from inputcodes import figures, judging, report, runs, stats
from inputcodes.configurator import UserError
from inputcodes.files import read_json_lines, write_json
from train import TrainConfig

SHAPE = {"vocab_size": 256, "block_size": 8, "n_layer": 1, "n_head": 1, "n_embd": 16}
OTHERS = {"code_seed": 1, "max_steps": 10, "learning_rate": 0.1}
BASE = {"out_dir": "out/base", "sha256": "weights"}


def write_run(
    path: Path, losses: list[float], config: dict, record=None, line=None, documents=None
) -> runs.Run:
    """What a run with an evaluation every 100 tokens would leave, read back."""
    hashes = {name: name for name in ("tokenizer_sha256", "data_sha256", "code_sha256")}
    write_json(path / "run.json", {**hashes, "config": SHAPE | OTHERS | config, **(record or {})})
    lines = [
        {
            "step": step,
            "tokens": 100 * step,
            "elapsed_s": step,
            "tokens_per_s": 1000.0,
            "train_loss": loss,
            "val_loss": loss,
            "val_bits_per_byte": 2 * loss,
            "peak_mb": 100.0,
        }
        | (line or {})
        for step, loss in enumerate(losses, 1)
    ]
    if documents:
        lines[-1]["val_documents"] = documents
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = runs.read_run(path, TrainConfig)
    assert run is not None
    return run


def falling(end: float, steps: int = 10) -> list[float]:
    """Losses that fall by 0.1 a step, down to `end`."""
    return [end + (steps - step) / 10 for step in range(1, steps + 1)]


def group_of(directory: Path, documents=None, steps: int = 10, **variants):
    """A group of variants given as last losses by seed, or as (losses, keywords of write_run)."""
    group = []
    split = {name: v if isinstance(v, tuple) else (v, {}) for name, v in variants.items()}
    most = max(len(ends) for ends, _ in split.values())
    for name, (ends, given) in split.items():
        config = {"input_layer": name.split("_")[0]} | given.get("config", {})
        rest = {key: value for key, value in given.items() if key not in ("config", "steps")}
        some: list[runs.Run | None] = [None] * most
        for i, end in enumerate(ends):
            if end is not None:
                path = directory / f"{name}-s{i + 1}"
                curve = falling(end, given.get("steps", steps))
                one = {"documents": documents[name][i]} if documents else {}
                some[i] = write_run(path, curve, config | {"seed": i + 1}, **rest, **one)
        settings = {"input_layer": config["input_layer"]}
        settings |= {k: v for k, v in config.items() if k == "code_seed"}
        group.append((runs.Variant(name, settings), some))
    return group


def by_hand(directory: Path, **variants) -> report.Report:
    group = group_of(directory, **variants)
    return report.make_report([group], range(1, len(group[0][1]) + 1), 0.01)


def test_a_gap_is_told_in_four_units(tmp_path):
    made = by_hand(tmp_path, learned=[1.00, 1.10, 1.20], fixed=[1.05, 1.151, 1.249])
    (base, row), (gap,) = made.groups[0], made.gaps[0]
    assert gap.nats == pytest.approx(0.05)
    assert gap.share == pytest.approx(0.05 / 1.1)
    assert gap.bits_per_byte == pytest.approx(0.1)
    # The baseline was there half a step before its end, on a logarithmic scale.
    assert gap.data == pytest.approx(1000 / (900 * 1000) ** 0.5, rel=2e-3)
    assert gap.verdict == "worse"
    # differences 0.05, 0.051, 0.049; t(2) = 4.303
    half = 4.303 * 0.001 / 3**0.5
    assert gap.interval == pytest.approx((0.05 - half, 0.05 + half), rel=1e-3)
    assert gap.points[0].share == pytest.approx(0.05 / 2.0)  # the baseline began there
    assert gap.points[-1].interval == pytest.approx([end / 1.1 for end in gap.interval])
    perplexities = [math.exp(loss) for loss in (1.00, 1.10, 1.20)]
    assert base.perplexity == pytest.approx(sum(perplexities) / 3)
    spread = perplexities[2] - perplexities[0]
    assert base.perplexity_range == pytest.approx(spread / base.perplexity)
    assert (row.loss, base.tokens) == (pytest.approx(1.15), 1000)
    assert "| 1.1500 |        2.3000 | +4.55% [+4.32, +4.77] | 1.05x |" in report.summary_of(made)
    assert "| +0.0500 [+0.0475, +0.0525] |       +0.1000 |" in report.details_of(made)


def test_a_variant_that_is_ahead_needs_less_data(tmp_path):
    made = by_hand(tmp_path / "a", learned=[1.05, 1.15], spelling=[1.00, 1.10])
    assert made.gaps[0][0].data == pytest.approx((900 * 1000) ** 0.5 / 1000, rel=2e-3)
    # One seed is level, one was there after 600 of 1,000 tokens: the mean of ratios is geometric.
    made = by_hand(tmp_path / "b", learned=[1.05, 1.15], spelling=[1.05, 0.75])
    gap = made.gaps[0][0]
    assert gap.data == gap.points[-1].data == pytest.approx(0.6**0.5)
    made = by_hand(tmp_path / "c", learned=[1.05, 1.15], spelling=[1.05, 2.5])
    assert made.gaps[0][0].data is None  # one is worse than the table ever was


def test_a_run_that_is_missing_leaves_the_others_in_the_comparison(tmp_path):
    made = by_hand(
        tmp_path,
        learned=[1.00, 1.10, 1.20],
        fixed=[1.05, None, 1.249],
        affine=[1.05, 1.152, 1.251],
        compressed=[None, None, None],
    )
    fixed, affine = made.gaps[0]
    assert fixed.nats == pytest.approx(0.0495, abs=2e-3)
    assert fixed.bits_per_byte == pytest.approx(2 * fixed.nats)  # one difference in all units
    assert fixed.points[-1].share == pytest.approx(fixed.share)
    assert affine.verdict == "worse"
    half = 4.303 * 0.001 / 3**0.5  # of 0.05, 0.052 and 0.051 alone
    assert affine.paired == pytest.approx((0.051 - half, 0.051 + half), rel=1e-3)
    assert "Left out, not complete: fixed (seed 2); compressed." in made.notes
    assert [row.variant for row in made.groups[0]] == ["learned", "fixed", "affine"]
    apart = by_hand(tmp_path / "a", learned=[1.0, None], fixed=[1.1, 1.2], affine=[None, 1.0])
    assert [row.variant for row in apart.groups[0]] == ["learned", "fixed"]
    assert "Left out, not complete: learned (seed 2); affine (seed 1)." in apart.notes
    assert "Left out, no seed in common with learned: affine." in apart.notes
    with pytest.raises(UserError, match="Nothing to compare with: learned has no complete run"):
        by_hand(tmp_path / "b", learned=[None], fixed=[1.0])


def test_losses_of_the_same_tokens_are_compared_though_lines_are_lost(tmp_path):
    group = group_of(tmp_path, learned=[1.0, 1.1], fixed=[1.05, 1.15])
    whole = report.make_report([group], [1, 2], 0.01)
    _, (first, _) = group[1]
    del first.lines[:3]
    made = report.make_report([group], [1, 2], 0.01)
    ((gap,),), (before,) = made.gaps, whole.gaps[0]
    assert (gap.points, gap.data) == (before.points[3:], before.data)


def test_both_worse_than_counting_is_said(tmp_path):
    line = {"line": {"val_bigram": 0.9, "val_chance": 5.5}}
    made = by_hand(tmp_path / "a", learned=([1.0, 1.1], line), fixed=([1.0, 1.2], line))
    note = "Worse than counts of token pairs, so that their differences say little: learned, fixed."
    assert note in made.notes
    assert "| (bigram of counts) | 0.9000 |        1.8000 |" in report.summary_of(made)
    better = {"line": {"val_bigram": 1.2}}
    made = by_hand(tmp_path / "b", learned=([1.0, 1.1], better), fixed=([1.0, 1.3], better))
    assert not any("token pairs" in note for note in made.notes)
    assert made.groups[0][0].chance is None


def test_the_interval_over_documents_is_as_wide_as_they_and_the_seeds_differ(tmp_path):
    rng, lengths = random.Random(1), [20, 180] * 20
    base = [[[k + rng.gauss(0, 1), k] for k in lengths] for _ in range(3)]

    def interval(name: str, ours: list) -> list[float]:
        ends = {"learned": [1.0, 1.1, 1.2], "fixed": [1.05, 1.151, 1.249]}
        documents = {"learned": base, "fixed": ours}
        made = by_hand(tmp_path / name, documents=documents, **ends)
        return list(made.gaps[0][0].over_documents)

    widths = []
    for spread in (0.0, 30.0):
        shifts = [0.05 * k + rng.gauss(0, spread) for k in lengths]
        ours = [[[n + s, k] for (n, k), s in zip(one, shifts, strict=True)] for one in base]
        low, high = interval(str(spread), ours)
        widths.append(high - low)
    assert widths[0] < 1e-9
    # 40 documents of 100 tokens: the mean shift of a token has the deviation 0.3 / sqrt(40).
    assert widths[1] == pytest.approx(2 * 1.96 * 0.3 / 40**0.5, rel=0.35)
    # Three seeds alone: the lowest is drawn thrice in 1 of 27 cases, so it and the highest are the
    # ends, as much further from the mean as three drawn values vary less than three.
    shifts = (0.04, 0.05, 0.06)
    ours = [[[n + s * k, k] for n, k in one] for one, s in zip(base, shifts, strict=True)]
    half = 0.01 * (3 / 2) ** 0.5
    assert interval("seeds", ours) == pytest.approx([0.05 - half, 0.05 + half])


def priced(directory: Path, **changes) -> list:
    """A group whose gap is 4, 8 and 16% at 100 tokens, by seed, and falls as tokens^-0.5.

    The first twentieth of the tokens tells otherwise.
    """
    group = []
    for name, prices in (("learned", [0.0] * 3), ("fixed", [0.4, 0.8, 1.6])):
        some = []
        for seed, price in enumerate(prices, 1):
            losses = [3.0, *(2 + 2 * price * (100 * step) ** -0.5 for step in range(2, 22))]
            config = {"input_layer": name, "seed": seed, "min_lr": 0.1, "max_steps": 21}
            some.append(write_run(directory / f"{name}-{seed}", losses, config | changes))
        group.append((runs.Variant(name, {"input_layer": name}), some))
    return group


def test_a_price_that_falls_reaches_the_margin_where_it_was_made_to(tmp_path):
    """1% after 1,600, 6,400 and 25,600 tokens."""
    group = priced(tmp_path)
    made = report.make_report([group], [1, 2, 3], 0.01)
    plain, offset = made.gaps[0][0].fits
    assert plain.crossings == pytest.approx([1600, 6400, 25600], rel=0.01)
    assert plain.crossing == pytest.approx(6400, rel=0.01)
    half = 4.303 * math.log(4) / 3**0.5  # of the logarithms, whose deviation is ln 4; t(2) = 4.303
    ends = 6400 / math.exp(half), 6400 * math.exp(half)
    assert plain.interval == pytest.approx(ends, rel=0.05)
    assert [law.exponent for law in plain.laws] == pytest.approx([0.5] * 3, rel=0.01)
    assert [law.offset for law in offset.laws] == pytest.approx([0.0] * 3, abs=1e-3)
    assert " 0.50 |   none | " in report.details_of(made)
    names = figures.draw_study(tmp_path / "report", made)
    assert names == ["loss", "differences", "price"]
    for name in names:
        assert (tmp_path / "report" / f"{name}.png").read_bytes()[1:4] == b"PNG"
        assert (tmp_path / "report" / f"{name}.svg").read_text().startswith("<?xml")


def test_a_price_that_no_power_law_describes_has_none(tmp_path):
    def fits(group: list, margin: float = 0.01) -> list:
        return report.make_report([group], [1, 2, 3], margin).gaps[0][0].fits

    assert len(fits(priced(tmp_path / "a"))) == 2
    assert fits(priced(tmp_path / "b"), 0.5) == []  # within the margin from the start
    assert fits(priced(tmp_path / "c", min_lr=0.0)) == []  # the rate falls, too
    level, few, ahead, flat = (priced(tmp_path / name) for name in "defg")
    for _, some in level:
        for run in some:
            run.lines[1]["val_loss"] = 3.0  # where the first twentieth ends
    for _, some in few:
        for run in some:
            del run.lines[1:16]  # five are left
    for run in ahead[1][1]:
        run.lines[-1]["val_loss"] = 1.9
    assert fits(level) == fits(few) == fits(ahead) == []
    for line in flat[1][1][0].lines:
        line["val_loss"] = 2.1
    _, offset = fits(flat)
    assert (offset.crossings[0], offset.crossing) == (math.inf, None)


def test_the_losses_are_divided_where_the_runs_say_it(tmp_path):
    made = {"line": {"val_new": 4.0, "val_again": 3.0}}
    later = {"line": {"val_new": 3.5, "val_again": 3.25}}
    group = group_of(tmp_path, learned=([3, 3], made), fixed=([3, 3], later), spelling=[3, 3])
    text = report.details_of(report.make_report([group], [1, 2], 0.01))
    table = text.partition("which a model can copy.\n\n")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert rows[0] == ["variant", "new", "- baseline", "again", "- baseline"]
    assert rows[2:] == [
        ["learned", "4.0000", "+0.0000", "3.0000", "+0.0000"],
        ["fixed", "3.5000", "-0.5000", "3.2500", "+0.2500"],
    ]


def test_codes_of_several_lengths_have_a_figure_of_their_own(tmp_path):
    made = by_hand(
        tmp_path,
        learned=[1.0, 1.1],
        fixed=[1.3, 1.4],
        codeword_a=([1.2, 1.3], {"config": {"code_length": 12}}),
        codeword_b=([1.1, 1.2], {"config": {"code_length": 16}}),
    )
    assert [row.code_length for row in made.groups[0]] == [None, 8, 12, 16]
    wide = made.groups[0][3].settings | {"code_length": 0, "n_embd": 384}
    assert dataclasses.replace(made.groups[0][3], settings=wide).code_length == 255  # masks in all
    (tmp_path / "report").mkdir()
    for name in ("sweep.svg", "lengths_2.png", "loss_at_home.svg"):  # of other variants; not ours
        (tmp_path / "report" / name).write_text("")
    drawn = figures.draw_study(tmp_path / "report", made)
    assert "lengths" in drawn
    left = {path.stem for path in (tmp_path / "report").iterdir()}
    assert left == {*drawn, "loss_at_home"}


def test_every_row_is_in_the_figure_of_lengths_and_no_line_has_two_kinds_of_code(tmp_path):
    rows = {f"codeword_{n}": ([2.0], {"config": {"code_length": n}}) for n in (8, 12, 16)}
    rows["codeword_scaled"] = ([3.0], {"config": {"code_length": 16, "code_scale": 0.1}})
    rows |= {f"learned_{i}": ([1.0], {"config": {"table_std": i / 10}}) for i in range(1, 11)}
    group = group_of(tmp_path, **rows)
    names = [v.label.replace("codeword_", "codeword code_length=") for v, _ in group]
    names[3] = "codeword code_length=16 code_scale=0.1"
    labelled = [(dataclasses.replace(v, kind=k), s) for k, (v, s) in zip(names, group, strict=True)]
    made = report.make_report([labelled], [1], 0.01)
    labels = figures.length_figure(made.groups[0]).axes[0].get_legend_handles_labels()[1]
    assert labels[:2] == ["codeword", "codeword code_scale=0.1"]
    assert len(labels) == 12


def test_seeds_to_settle_a_row_count_from_those_it_shares_with_the_baseline(tmp_path):
    losses = [1.00, 1.05, 1.01, 1.06, 1.00]
    made = by_hand(tmp_path / "a", learned=[1.02, 1.03, 1.02, None, None], fixed=losses)
    assert (made.gaps[0][0].verdict, made.gaps[0][0].seeds_needed) == ("not resolved", "")
    made = by_hand(tmp_path / "b", learned=[1.02, 1.03, 1.02, 1.01, 1.04], fixed=losses)
    assert re.fullmatch(r"\d+ to \d+", made.gaps[0][0].seeds_needed)


def test_claims_are_of_shares_and_of_all_groups_together(tmp_path):
    """A group with three times the losses of another has its verdict and needs as many seeds, more
    than if it were the only group.
    """
    quiet, noisy = [1.001, 1.004, 1.0, 0.998, 1.002], [0.98, 1.02, 0.99, 1.03, 0.96]
    groups = [
        group_of(tmp_path / f"{name}{k}", learned=[k] * 5, fixed=[k * y for y in losses])
        for name, losses in (("quiet", quiet), ("noisy", noisy))
        for k in (1, 3)
    ]
    found = [gap for (gap,) in report.make_report(groups, range(1, 6), 0.01).gaps]
    assert [gap.verdict for gap in found] == ["equivalent"] * 2 + ["not resolved"] * 2
    ((alone,),) = report.make_report(groups[2:3], range(1, 6), 0.01).gaps
    needed = [gap.seeds_needed.split(" to ") for gap in (alone, *found[2:])]
    assert int(needed[0][1]) < int(needed[1][1])
    assert needed[1] == needed[2]


def test_a_baseline_that_scatters_is_not_said_of_its_rows(tmp_path):
    made = by_hand(
        tmp_path, learned=[1.0, 1.9, 0.3], fixed=[1.01, 1.02, 1.01], affine=[1.02, 1.03, 1.021]
    )
    assert [gap.uneven for gap in made.gaps[0]] == [True, True]
    assert "(*) One of the two scatters more than the others" in report.details_of(made)


def test_a_difference_of_zero_is_drawn_with_its_interval(tmp_path):
    made = by_hand(
        tmp_path, learned=[1.0, 1.1, 1.2], fixed=[1.0, 1.1, 1.2], affine=[1.05, 1.151, 1.249]
    )
    same = made.gaps[0][0]
    assert same.nats == 0
    axes = figures.difference_figure(made.gaps[0], 0.01).axes[0]
    drawn = axes.get_lines()[0].get_xdata()
    assert drawn == pytest.approx([100 * end / 1.1 for end in same.interval])
    assert drawn[0] < 0 < drawn[1]


def test_the_papers_difference_is_not_resolved_by_its_ranges():
    """Bochkov, Table 1: loss 0.893 and 0.859, seed ranges of perplexity 4.8% and 4.6%, 3 seeds.

    The range of three normal numbers is 1.693 standard deviations in the mean (Tippett 1925), and
    a small relative deviation of perplexity is the same number of nats.
    """
    se = math.sqrt(sum((share / 1.693) ** 2 / 3 for share in (0.048, 0.046)))
    half = stats.t_quantile(0.975, 4) * se
    ends = [100 * (0.859 - 0.893 + sign * half) / 0.893 for sign in (-1, 1)]
    assert pytest.approx(-3.8, abs=0.05) == 100 * (0.859 - 0.893) / 0.893
    assert ends == pytest.approx([-10.9, 3.3], abs=0.2)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"record": {"data_sha256": "other"}},
            r"data: 'data_sha256' \(learned\), 'other' \(fixed\)",
        ),
        (
            {"record": {"base": BASE | {"step": 5, "data_sha256": "x"}}},
            r"fine-tuned from: \(None, None\) \(learned\)",
        ),
        ({"record": {"tokenizer_sha256": "other"}}, "tokenizer: "),
        (
            {"config": {"learning_rate": 0.2}},
            r"learning_rate: 0.1 \(learned\), 0.2 \(fixed\)",
        ),
        ({"config": {"n_embd": 32, "weight_decay": 0.2}}, r"(?s)n_embd: 16.*weight_decay: 0.1"),
        ({"record": {"changes": [{"step": 5}]}}, "fixed-s1 was resumed with changed settings"),
    ],
)
def test_what_is_not_matched_is_refused_with_all_that_differs(tmp_path, changes, line):
    with pytest.raises(UserError, match=line):
        by_hand(tmp_path, learned=[1.0, 1.1], fixed=([1.0, 1.2], changes))


def test_a_baseline_without_any_loss_is_refused_and_not_divided_by(tmp_path):
    with pytest.raises(UserError, match="learned has a validation loss of 0: no gap is a share"):
        by_hand(tmp_path, learned=[0.0, 0.0], fixed=[0.5, 0.0])
    made = by_hand(tmp_path / "a", learned=[0.0, 1e-9], fixed=[0.5, 0.0])
    assert made.gaps[0][0].share == pytest.approx(0.5 / 1e-9)


def test_a_single_seed_that_is_not_matched_is_refused(tmp_path):
    some = [
        write_run(
            tmp_path / f"a-s{seed}", [1.0], {"seed": seed, "max_steps": 1, "beta1": 0.1 * seed}
        )
        for seed in (1, 2)
    ]
    with pytest.raises(UserError, match=r"beta1: \[0.1, 0.2\] \(a\)"):
        report.make_report([[(runs.Variant("a", {}), some)]], [1, 2], 0.01)


@pytest.mark.parametrize("name", ["base", "table"])
def test_seeds_that_started_from_other_weights_are_refused(tmp_path, name):
    records = [{"base": BASE | {"sha256": sha}, "table_sha256": None} for sha in "ab"]
    if name == "table":
        records = [{"base": None, "table_sha256": sha} for sha in "ab"]
    some = [
        write_run(tmp_path / f"a-s{seed}", [1.0], {"seed": seed, "max_steps": 1}, record)
        for seed, record in enumerate(records, 1)
    ]
    with pytest.raises(UserError, match="weights that init_from or table_of gave to the runs of a"):
        report.make_report([[(runs.Variant("a", {}), some)]], [1, 2], 0.01)


def test_a_sweep_compares_each_at_its_best_and_stands_unfinished_groups(tmp_path):
    losses = {
        0.1: {"learned": [1.0, 1.1, 1.2], "fixed": [1.2, 1.3, 1.4]},
        0.2: {"learned": [1.1, 1.2, 1.3], "fixed": [1.05, 1.151, 1.249]},
        0.4: {"learned": [1.1, 1.2, None], "fixed": [1.1, None, None]},
        0.8: {"learned": [None, None, None]},
        1.6: {"learned": [2.0, 2.1, 2.2], "fixed": [None, None, None]},
        3.2: {"learned": [3.0, 3.1, 3.2]},
    }
    groups = []
    for rate, ends in losses.items():
        name = f"learning_rate={rate}"
        given = {k: (v, {"config": {"learning_rate": rate}}) for k, v in ends.items()}
        group = group_of(tmp_path / name, **given)
        groups.append(
            [
                (runs.Variant(f"{v.label} {name}", v.settings, name, v.label), some)
                for v, some in group
            ]
        )
    made = report.make_report(groups, [1, 2, 3], 0.01)
    (best,) = made.best
    assert best.variant == "fixed learning_rate=0.2"
    assert best.baseline == "learned learning_rate=0.1"
    assert best.nats == pytest.approx(0.05)
    assert best.verdict == "worse"
    text = report.summary_of(made)
    assert "chosen after looking, against learned learning_rate=0.1.\n" in text
    assert "; fixed learning_rate=0.4 (seeds 2, 3);" in text
    (note,) = (note for note in made.notes if "no other" in note)
    assert note.startswith("learned learning_rate=3.2 is compared with no other: none agrees")
    assert "sweep" in figures.draw_study(tmp_path / "report", made)


def test_a_run_stopped_early_is_left_out(tmp_path):
    early = {"learned": [1.0, 1.1], "affine": ([1.0, 1.2], {"steps": 9})}
    made = by_hand(tmp_path / "a", **early)
    assert "Left out, not complete: affine." in made.notes


def test_recodings_that_differ_by_more_than_seeds_explain(tmp_path):
    made = by_hand(
        tmp_path,
        fixed=[1.0, 1.1, 1.2],
        affine=([1.10, 1.20, 1.30], {"config": {"code_seed": 1}}),
        affine_2=([1.12, 1.21, 1.33], {"config": {"code_seed": 2}}),
        affine_3=([1.05, 1.16, 1.25], {"config": {"code_seed": 3}}),
        fixed_2=[1.0, 1.1, 1.2],  # a file of its own with the same settings is no recoding
    )
    (found,) = made.recodings
    assert (found.variants, found.seeds) == (["affine", "affine_2", "affine_3"], 3)
    assert found.spread.p < 0.01
    # The means 1.2, 1.22 and 1.153 of recodings differ by less than 1.09, 1.19 and 1.293 of seeds.
    assert found.spread.treatments_sd == pytest.approx(0.034, rel=0.02)
    assert found.spread.blocks_sd == pytest.approx(0.102, rel=0.02)
    assert "3 recodings x 3 seeds" in report.details_of(made)


def test_one_seed_has_no_verdict_and_json_no_infinity(tmp_path):
    cards = [f"NVIDIA GeForce RTX {number}" for number in (3090, 4090)]
    first, other = ({"record": {"device": card, "code_sha256": f"{0:064}"}} for card in cards)
    made = by_hand(tmp_path, learned=([1.0], first), fixed=([1.2], other))
    assert made.notes == [f"The runs differ in device: {', '.join(cards)}."]
    (gap,) = made.gaps[0]
    assert (gap.verdict, gap.interval, gap.paired) == ("one seed, no verdict", None, None)
    assert gap.share == pytest.approx(0.2)
    assert "Infinity" not in json.dumps(made.to_json())
    figures.draw_study(tmp_path / "report", made)


def test_a_damaged_line_of_metrics_is_named_and_one_being_written_is_not(tmp_path):
    write_run(tmp_path, [1.0, 0.9], {})
    file = tmp_path / "metrics.jsonl"
    whole = file.read_text()
    file.write_text(whole + '{"step": 3, "tok')
    assert len(read_json_lines(tmp_path / "metrics.jsonl")) == 2
    file.write_text(whole.replace('"step": 1,', '"step" 1,'))
    with pytest.raises(UserError, match=r"metrics.jsonl, line 1 is damaged"):
        read_json_lines(tmp_path / "metrics.jsonl")
    for cell in ('"val_loss": 0.9', '"tokens": 200', '"val_bits_per_byte": 1.8'):
        for damage in ("null", "1e999", "-1", "1" + "0" * 400):
            file.write_text(whole.replace(cell, f"{cell.split(':')[0]}: {damage}"))
            with pytest.raises(UserError, match=r"metrics.jsonl is damaged at step 2: delete"):
                runs.read_run(tmp_path, TrainConfig)
    record = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(record)[:-1] + ', "config": {}}')
    with pytest.raises(UserError, match=r"run.json is damaged \('config' is there 2 times\)"):
        runs.read_run(tmp_path, TrainConfig)
    damages = [{"base": 5}, {"base": {"out_dir": "out"}}, {"table_sha256": []}, {"config": 1}]
    damages.append({"config": SHAPE | {"n_embd": 0}})
    for damaged in ("{}", "[]", "", *(json.dumps(record | damage) for damage in damages)):
        (tmp_path / "run.json").write_text(damaged)
        with pytest.raises(UserError, match=r"run.json( is damaged|: n_embd=0: expected)"):
            runs.read_run(tmp_path, TrainConfig)


def test_the_record_that_is_kept_reports_the_same(tmp_path):
    documents = [[[10.0, 10], [20.0, 10]]] * 2
    some = [write_run(tmp_path / f"a{i}", [1.0, 0.9 + i], {"max_steps": 2}) for i in (0, 1)]
    some[0].lines[0]["val_documents"] = some[0].lines[1]["val_documents"] = documents[0]
    for i, run in enumerate(some):
        runs.keep_record(run, tmp_path / f"kept{i}")
    kept = [runs.read_run(tmp_path / f"kept{i}", TrainConfig) for i in (0, 1)]
    assert [run.record for run in kept] == [run.record for run in some]
    assert kept[1].lines == some[1].lines
    assert "val_documents" not in kept[0].lines[0]
    assert kept[0].last == some[0].last


def test_the_curves_of_runs(tmp_path):
    line = {"val_bigram": 1.5, "val_chance": 5.5}
    for name in ("a", "b"):
        write_run(tmp_path / name, falling(1.0), {}, line=line)
    figures.save(figures.curve_figure([tmp_path / "a"]), tmp_path / "a" / "curve.png")
    assert (tmp_path / "a" / "curve.png").read_bytes()[1:4] == b"PNG"
    figures.main([str(tmp_path / "a"), str(tmp_path / "b"), f"--file={tmp_path / 'both.svg'}"])
    text = (tmp_path / "both.svg").read_text()
    assert text.startswith("<?xml")
    write_run(tmp_path / "c" / "a", falling(1.0), {})
    write_run(tmp_path / "_a", falling(1.0), {})
    for second in (tmp_path / "c" / "a", tmp_path / "_a"):  # two names, and chance and counts
        shown = figures.curve_figure([tmp_path / "a", second]).legends[0].get_texts()
        assert len({text.get_text() for text in shown}) == 6
    with pytest.raises(UserError, match="holds no metrics"):
        figures.main([str(tmp_path)])
    for name in ("c", "c.jpeg2", ".svg"):
        with pytest.raises(UserError, match=rf"file='{name}': expected a name in \.png, \.svg"):
            figures.main([str(tmp_path / "a"), f"--file={name}"])


def test_each_at_its_best_is_of_the_same_seeds(tmp_path):
    groups = []
    for rate, ends in ((0.1, ([1.0, None], [2.0, None])), (0.2, ([None, 1.5], [None, 1.2]))):
        config = {"config": {"learning_rate": rate}}
        rows = {"learned": (ends[0], config), "fixed": (ends[1], config)}
        group = group_of(tmp_path / str(rate), **rows)
        name = f"learning_rate={rate}"
        groups.append(
            [(dataclasses.replace(v, group=name, kind=v.label), some) for v, some in group]
        )
    made = report.make_report(groups, [1, 2], 0.01)
    assert [gap.share for gap in made.best] == [pytest.approx(1.0)]  # both of seed 1


@pytest.mark.parametrize(("name", "values"), [("max_steps", (10, 20)), ("eval_tokens", (0, 64))])
def test_what_is_trained_or_measured_on_other_tokens_is_not_chosen_from(tmp_path, name, values):
    groups = []
    for value, ends in zip(values, ([1.0, 1.1], [1.2, 0.9]), strict=True):
        given = {"config": {name: value}, "steps": value if name == "max_steps" else 10}
        rows = zip(("learned", "fixed"), ends, strict=True)
        group = group_of(tmp_path / str(value), **{k: ([end] * 2, given) for k, end in rows})
        word = f"{name}={value}"
        groups.append([(dataclasses.replace(v, group=word, kind=v.label), s) for v, s in group])
    assert report.make_report(groups, [1, 2], 0.01).best == []


def recipes(directory: Path, given: dict[str, dict]) -> list:
    """A group of fixed codes for each recipe, without a word for its input layer."""
    groups = []
    for name, config in given.items():
        ((_, some),) = group_of(directory / name, fixed=([1.0, 1.1], {"config": config}))
        groups.append([(runs.Variant(name, {}, name), some)])
    return report.make_report(groups, [1, 2], 0.01).groups


def test_recipes_of_one_layer_are_one_line_and_not_layers_at_their_best(tmp_path):
    rates = {f"learning_rate={rate}": {"learning_rate": rate} for rate in (0.1, 0.2)}
    groups = recipes(tmp_path, rates)
    assert judging.best_of_each(groups, 0.01) == []
    figure = figures.sweep_figure(groups)
    assert figure is not None
    assert figure.axes[0].get_legend_handles_labels()[1] == ["fixed"]


def test_data_sets_of_several_names_are_no_sweep_of_their_numbers(tmp_path):
    for names, drawn in (("en-256 en-512", True), ("en-256 de-256", False)):
        given = {f"dataset={name}": {"dataset": name} for name in names.split()}
        assert bool(figures.sweep_figure(recipes(tmp_path, given))) == drawn


def test_a_run_without_an_evaluation_is_kept_without_losses_by_document(tmp_path):
    run = write_run(tmp_path / "run", [3.0, 2.0], {"input_layer": "learned"})
    lines = [{k: v for k, v in line.items() if k != "val_loss"} for line in run.lines]
    runs.keep_record(dataclasses.replace(run, lines=lines), tmp_path / "kept")
    assert (tmp_path / "kept" / "metrics.jsonl").read_text().count("\n") == 2
    assert json.loads((tmp_path / "kept" / "run.json").read_text()) == run.record


def test_counts_are_short_and_rounded_before_their_letter_is_chosen():
    counts = {0: "0", 999: "999", 12_345: "12.35 k", 999_949: "999.9 k", 999_950: "1 M"}
    counts |= {999_999_990: "1 B"}
    assert {n: report.short_count(n) for n in counts} == counts


def test_labels_lack_the_words_that_all_have(tmp_path):
    ((gap,),) = by_hand(tmp_path, learned=[1.0], fixed=[2.0]).gaps
    for variant, baseline, label in (
        ("fixed dataset=a", "learned dataset=a", "fixed"),
        ("learned n_embd=32", "learned", "n_embd=32"),
    ):
        named = dataclasses.replace(gap, variant=variant, baseline=baseline)
        assert figures.names_of([named]) == ([label], "difference from learned\n(% of its loss)")
