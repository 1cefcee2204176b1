"""The curves of runs, and the figures of a study, drawn from its report.

    python -m inputcodes.figures out/a out/b     # several runs in one picture, curves.png

Lines differ in dash and marker as well as in colour. Legends stand beside the axes, never over
data.
"""

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from inputcodes.configurator import Settings, UserError, configure, run_main, setting
from inputcodes.files import atomic_write, read_json_lines
from inputcodes.judging import Gap
from inputcodes.report import Report, short_count
from inputcodes.runs import BySeed, Row, present
from inputcodes.stats import mean

LOSS = "validation loss (nats per token)"
COUNTED = "counts of token pairs"
MOST_AHEAD = 8  # how far a fit is drawn beyond the last tokens, as a factor

COLORS = (
    "#000000", "#c1440e", "#1f5fa8", "#7a9a01", "#8a5fa8",
    "#b8860b", "#5a5a5a", "#d4699a", "#2a9d8f", "#8b4513",
)  # fmt: skip
DASHES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (8, 3)))
MARKERS = "osD^vP*X<"  # nine, beside ten colours: 90 pairs


def save(figure: Figure, path: Path) -> None:
    kind = path.suffix[1:]
    # The same numbers give the same file: no date, and no random names in an SVG.
    with atomic_write(path) as file, rc_context({"svg.hashsalt": path.stem}):
        extra: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 130}
        figure.savefig(file, format=kind, **extra)


def begin(width: float, height: float, note: str = "") -> Figure:
    """An empty figure of this size in inches; the note above it says how to read it."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(note, fontsize="medium")
    return figure


def style(number: int) -> dict[str, Any]:
    """How line `number` looks; the first 90 differ in colour or marker."""
    marker, dash = MARKERS[number % len(MARKERS)], DASHES[number % len(DASHES)]
    color = COLORS[number % len(COLORS)]
    return {"color": color, "linestyle": dash, "marker": marker, "markersize": 4}


def draw_line(
    axes: Axes, points: Iterable[tuple[float, float | None]], label: str, **look: Any
) -> None:
    """A line through the points that have a value, if any do."""
    if known := [(x, y) for x, y in points if y is not None]:
        axes.plot(*zip(*known, strict=True), label=label, **look)


def count_axis(axes: Axes, log: bool = False) -> None:
    """Tokens on the horizontal axis of what is drawn, with labels that do not touch."""
    axes.set_xlabel("training tokens")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if log:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        subs = (1, 3) if high > 40 * low else (1, 2, 5) if high > 8 * low else (1, 1.5, 2, 3, 5, 7)
        axes.xaxis.set_major_locator(LogLocator(subs=subs))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: short_count(tokens)))
    axes.grid(alpha=0.3)


def legend(figure: Figure, axes: Iterable[Axes]) -> None:
    """One legend for all axes, at the right of them, in the order in which the lines end."""
    handles: dict[str, Any] = {}
    for one in axes:
        for handle in one.lines:  # Matplotlib's own list lacks names that begin with _
            if not re.fullmatch(r"(_child\d+|_nolegend_)?", label := str(handle.get_label())):
                handles.setdefault(label, handle)
    names = sorted(handles, key=lambda name: -handles[name].get_ydata()[-1])
    lines = [handles[name] for name in names]
    figure.legend(lines, names, loc="outside right center", fontsize="small")


def curve_figure(runs: Sequence[Path]) -> Figure:
    figure = begin(8, 4.2)
    axes = figure.add_subplot()
    alike = len({path.name for path in runs}) < len(runs)
    for i, path in enumerate(runs):
        lines = read_json_lines(path / "metrics.jsonl")
        if not lines:
            raise UserError(f"{path} holds no metrics: expected the directory of a run")
        name = f"{path if alike else path.name}: " if len(runs) > 1 else ""
        drawn = [
            ("train_loss", f"{name}training", style(i) | {"alpha": 0.35, "marker": ""}),
            ("val_loss", f"{name}validation", style(i)),
            ("val_chance", "chance", {"color": "grey", "linestyle": ":"}),
            ("val_bigram", COUNTED, {"color": "grey"}),
        ]
        for key, label, look in drawn if i == 0 else drawn[:2]:
            draw_line(axes, [(line["tokens"], line.get(key)) for line in lines], label, **look)
    axes.set_ylabel("loss (nats per token)")
    count_axis(axes)
    legend(figure, [axes])
    return figure


# ---------------------------------------------------------------------------------------------
# Figures of a study


def draw_study(directory: Path, report: Report) -> list[str]:
    """Draw what this report allows into `directory`, which loses the other figures that a report
    can have, as they are of an earlier one; the names, without suffix."""
    gaps = [gap for group in report.gaps for gap in group]
    drawn = {"loss": loss_figure(report.groups)}
    if sweep := sweep_figure(report.groups):
        drawn["sweep"] = sweep
    if judged := [gap for gap in gaps if gap.interval]:
        drawn["differences"] = difference_figure(judged, report.margin)
    if trends := [gap for gap in gaps if len(gap.points) > 1]:
        drawn["price"] = price_figure(trends, report.margin)
    for i, group in enumerate(report.groups, 1):
        if len({row.code_length for row in group if row.code_length}) > 2:
            name = "lengths" if len(report.groups) == 1 else f"lengths_{i}"
            drawn[name] = length_figure(group)
    for (name, figure), suffix in itertools.product(drawn.items(), ("png", "svg")):
        save(figure, directory / f"{name}.{suffix}")
    for path in directory.glob("*.*"):
        known = re.fullmatch(r"(sweep|differences|price|lengths(_\d+)?)\.(png|svg)", path.name)
        if known and path.stem not in drawn:
            path.unlink()
    return list(drawn)


def loss_figure(groups: list[list[Row]]) -> Figure:
    """Validation loss against tokens, with the band over seeds; a panel a group."""
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    note = "mean over seeds; band: lowest to highest seed"
    figure = begin(4 + 3.8 * columns, 3.8 * lines, note)
    kinds = list(dict.fromkeys(row.kind for group in groups for row in group))
    for number, group in enumerate(groups):
        axes = figure.add_subplot(lines, columns, number + 1)
        for row in group:
            look = style(kinds.index(row.kind))
            tokens = [point.tokens for point in row.curve]
            losses = [present(point.losses) for point in row.curve]
            axes.plot(tokens, [mean(each) for each in losses], label=row.kind, **look)
            low, high = [min(each) for each in losses], [max(each) for each in losses]
            axes.fill_between(tokens, low, high, color=look["color"], alpha=0.15, linewidth=0)
        counted = [(point.tokens, point.bigram) for point in group[0].curve]
        draw_line(axes, counted, COUNTED, color="grey")
        axes.set(ylabel=LOSS if number % columns == 0 else "", title=group[0].group)
        count_axis(axes)
    legend(figure, figure.axes)
    return figure


def names_of(gaps: list[Gap]) -> tuple[list[str], str]:
    """What gaps are called, without the words that all of them have, and what their axis is."""
    names = [(gap.variant.split(), gap.baseline.split()) for gap in gaps]
    common = set.intersection(*(set(words) for pair in names for words in pair))
    short = [
        [" ".join([w for w in words if w not in common] or words) for words in pair]
        for pair in names
    ]
    baselines = {base for _, base in short}
    if len(baselines) == 1:
        return [name for name, _ in short], f"difference from {baselines.pop()}\n(% of its loss)"
    labels = [f"{name} - {base}" for name, base in short]
    return labels, "difference (% of the baseline's loss)"


def difference_figure(gaps: list[Gap], margin: float) -> Figure:
    """The gaps at the end, with their intervals and every seed."""
    note = f"diamond: mean; bar: 95% interval; dots: seeds; grey: within {100 * margin:g}%"
    labels, name = names_of(gaps)
    width = max(8, 4.5 + 0.066 * max(map(len, labels)))  # inches; labels stand beside the axes
    figure = begin(width, 1.5 + 0.34 * len(gaps), note)
    axes = figure.add_subplot()
    for y, gap in enumerate(gaps):
        last = gap.points[-1]
        ends = [100 * end for end in last.interval or ()]
        axes.plot(ends, [y, y], color="black", linewidth=1.5, marker="|", markersize=9)
        axes.plot(100 * gap.share, y, "D", color="black", markersize=5)
        seeds = [100 * share for share in present(last.shares)]
        axes.plot(seeds, [y + 0.25] * len(seeds), "o", color="grey", markersize=3)
    axes.axvspan(-100 * margin, 100 * margin, color="black", alpha=0.08, linewidth=0)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(gaps)), labels, fontsize="small")
    axes.set_ylim(len(gaps) - 0.4, -0.6)
    axes.set_xlabel(f"{name[:-1]}; below 0: better)")
    return figure


def price_figure(gaps: list[Gap], margin: float) -> Figure:
    """The gap against tokens: as a share of the loss with its fits, and as a multiple of data."""
    with_data = any(point.data for gap in gaps for point in gap.points)
    banded = len(gaps) <= 4 and all(point.interval for gap in gaps for point in gap.points)
    note = f"grey: within {100 * margin:g}%" + ("; bands: 95% intervals" if banded else "")
    if any(gap.fits for gap in gaps):
        note += "; crosses: where power laws reach it, with 95% intervals"
    figure = begin(11 if with_data else 7.5, 4, note)
    shares, *others = figure.subplots(1, 1 + with_data, sharex=True, squeeze=False)[0]
    labels, name = names_of(gaps)
    for i, (gap, label) in enumerate(zip(gaps, labels, strict=True)):
        look = style(i)
        tokens = [point.tokens for point in gap.points]
        shares.plot(tokens, [100 * point.share for point in gap.points], label=label, **look)
        if banded:
            bands = [point.interval for point in gap.points if point.interval]
            low, high = ([100 * band[end] for band in bands] for end in (0, 1))
            shares.fill_between(tokens, low, high, color=look["color"], alpha=0.15, linewidth=0)
        draw_fits(shares, gap, margin, look["color"])
        for axes in others:
            draw_line(axes, [(point.tokens, point.data) for point in gap.points], label, **look)
    shares.axhspan(-100 * margin, 100 * margin, color="black", alpha=0.08, linewidth=0)
    shares.axhline(0, color="black", linewidth=0.8)
    shares.set_ylabel(name)
    for axes in others:
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_ylabel("tokens needed / tokens the baseline needs")
    for axes in figure.axes:
        count_axis(axes, log=True)
    legend(figure, [shares])
    return figure


def draw_fits(axes: Axes, gap: Gap, margin: float, color: str) -> None:
    """The mean of the seeds' power laws, and where it reaches the margin, with its interval.

    Nothing is drawn more than MOST_AHEAD times as far as the runs.
    """
    last = gap.points[-1].tokens
    start, most = 0.05 * last, MOST_AHEAD * last
    for fit in gap.fits:
        end = min(most, 1.2 * max(last, fit.crossing or math.inf))
        if fit.crossing and fit.crossing < most:
            axes.plot(fit.crossing, 100 * margin, "x", color=color)
            ends = [max(start, min(tokens, most)) for tokens in fit.interval or ()]
            axes.plot(ends, [100 * margin] * len(ends), color=color, marker="|", linewidth=1)
        xs = [start * (end / start) ** (i / 60) for i in range(61)]
        ys = [100 * mean([law.at(x) for law in fit.laws]) for x in xs]
        law, dash = ("power law with offset", ":") if fit.with_offset else ("power law", "--")
        label = f"{gap.variant}: {law}"
        axes.plot(xs, ys, color=color, linewidth=1, linestyle=dash, label=label)


def length_figure(group: list[Row]) -> Figure:
    """Loss against the length of the code; lines across for layers that are no code of the id."""
    figure = begin(8.5, 4.4, "mean over seeds; bars and bands: lowest to highest seed")
    axes = figure.add_subplot()
    coded = [(n, row, _label_without_length(row)) for row in group if (n := row.code_length)]
    coded.sort(key=lambda one: one[0])
    linear = [(n, row.loss) for n, row, label in coded if label in ("fixed", "codeword")]
    draw_line(axes, linear, "", color="black", linestyle=":", linewidth=0.8)
    K = (group[0].settings["vocab_size"] - 1).bit_length()
    name = f"length of the code, no parameters (K = {K} bits tell the ids apart)"
    draw_means(axes, [(label, n, row.losses) for n, row, label in coded], name, first_style=1)
    across = [row for row in group if not row.code_length]
    unused = len({label for _, _, label in coded}) + 1
    looks = zip(itertools.cycle(("black", *COLORS[unused:])), itertools.cycle(DASHES))
    for row, (color, dash) in zip(across, looks, strict=False):
        label = f"{row.kind} ({short_count(row.input_parameters)} parameters)"
        axes.axhline(row.loss, color=color, linestyle=dash, label=label)
        ends = min(present(row.losses)), max(present(row.losses))
        axes.axhspan(*ends, color=color, alpha=0.1, linewidth=0)
    axes.set_ylabel(LOSS)
    legend(figure, [axes])
    return figure


def _label_without_length(row: Row) -> str:
    words = [word for word in row.kind.split() if not word.startswith("code_length=")]
    return " ".join(words) or row.settings["input_layer"]


def sweep_figure(groups: list[list[Row]]) -> Figure | None:
    """The last result against what the groups differ in, if that is one number above 0."""
    words = [
        re.fullmatch(r"((\w+)=(?:\w+-)?)(\d+\.?\d*(?:e[+-]?\d+)?)", group[0].group)
        for group in groups
    ]
    keys = [(word[1], word[2], float(word[3])) for word in words if word]
    names, values = {key[:2] for key in keys}, [value for *_, value in keys]
    if len(keys) < max(2, len(groups)) or len(names) > 1 or min(values) <= 0:
        return None
    figure = begin(8, 4, "mean over seeds; bars: lowest to highest seed")
    axes = figure.add_subplot()
    placed = zip(values, groups, strict=True)
    points = [(row.kind, value, row.bits_per_byte) for value, group in placed for row in group]
    draw_means(axes, points, names.pop()[1])
    axes.set_ylabel("validation loss (bits per byte)")
    legend(figure, [axes])
    return figure


def draw_means(
    axes: Axes, points: Sequence[tuple[str, float, BySeed]], name: str, first_style: int = 0
) -> None:
    """Means over seeds, with bars from the lowest to the highest seed, a line a label.

    `points` are label, value of `name` and results; the axis is logarithmic, with a tick a value.
    """
    for number, label in enumerate(dict.fromkeys(point[0] for point in points), first_style):
        chosen = sorted((x, present(results)) for other, x, results in points if other == label)
        xs, means = [x for x, _ in chosen], [mean(sample) for _, sample in chosen]
        below = [mean(sample) - min(sample) for _, sample in chosen]
        above = [max(sample) - mean(sample) for _, sample in chosen]
        look = style(number) | {"linestyle": "-"}
        axes.plot(xs, means, label=label, **look)
        axes.errorbar(xs, means, [below, above], fmt="none", ecolor=look["color"], capsize=3)
    ticks = sorted({x for _, x, _ in points})
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.set_xlabel(name)
    axes.grid(alpha=0.3)


@dataclass(frozen=True)
class CurveConfig(Settings):
    runs: tuple[str, ...] = setting((), "directories of runs", positional=True)
    file: str = setting("curves.png", "where it goes: .png, .svg or .pdf", is_path=True)

    def problems(self) -> list[str]:
        problems = super().problems()
        if not self.runs:
            problems.append("no runs: pass their directories, as out/a out/b")
        if Path(self.file).suffix not in (".png", ".svg", ".pdf"):
            problems.append(f"file={self.file!r}: expected a name in .png, .svg or .pdf")
        return problems


def main(argv: list[str]) -> None:
    config = configure(CurveConfig, argv)
    save(curve_figure([Path(run) for run in config.runs]), Path(config.file))
    print(f"wrote {config.file}")


if __name__ == "__main__":
    run_main(main, CurveConfig, "usage: python -m inputcodes.figures RUN [RUN ...]")
