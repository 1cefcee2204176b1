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
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from inputcodes.configurator import Settings, UserError, configure, run_main, setting
from inputcodes.files import atomic_write, read_json_lines
from inputcodes.judging import Gap
from inputcodes.report import Report, short_count
from inputcodes.runs import Row, present
from inputcodes.stats import mean

LOSS = "validation loss (nats per token)"
COUNTED = "counts of token pairs"
MOST_AHEAD = 8  # how far a fit is drawn beyond the last tokens, as a factor

COLORS = (
    "#000000", "#c1440e", "#1f5fa8", "#7a9a01", "#8a5fa8",
    "#b8860b", "#5a5a5a", "#d4699a", "#2a9d8f", "#8b4513",
)  # fmt: skip
DASHES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (8, 3)))
MARKERS = "osD^vP*X<>"


def save(figure: Figure, path: Path) -> None:
    """Write the figure in the format that the suffix says."""
    kind = path.suffix[1:]
    # The same numbers give the same file: no date, and names in an SVG that are not drawn anew.
    with atomic_write(path) as file, rc_context({"svg.hashsalt": path.stem}):
        extra: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 130}
        figure.savefig(file, format=kind, **extra)


def style(number: int) -> dict[str, Any]:
    """How line `number` looks; the first 40 all differ."""
    marker, dash = MARKERS[number % len(MARKERS)], DASHES[number % len(DASHES)]
    color = COLORS[number % len(COLORS)]
    return {"color": color, "linestyle": dash, "marker": marker, "markersize": 4}


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
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)

    def end(label: str) -> float:
        handle = handles[label]
        line = handle[0] if isinstance(handle, ErrorbarContainer) else handle
        return -float(line.get_ydata()[-1])

    names = sorted(handles, key=end)
    figure.legend(
        [handles[name] for name in names], names, loc="outside right center", fontsize="small"
    )


def curve_figure(runs: Sequence[Path]) -> Figure:
    """Training and validation loss of runs against tokens, with chance and bigram of the first.

    Raises UserError for a run without metrics.
    """
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for i, path in enumerate(runs):
        lines = read_json_lines(path / "metrics.jsonl")
        if not lines:
            raise UserError(f"{path} holds no metrics: expected the directory of a run")
        name = f"{path.name}: " if len(runs) > 1 else ""
        look = style(i)
        for kind, extra in (("train", {"alpha": 0.35, "marker": ""}), ("val", {})):
            known = [(x["tokens"], x[f"{kind}_loss"]) for x in lines if f"{kind}_loss" in x]
            label = name + {"train": "training", "val": "validation"}[kind]
            axes.plot(*zip(*known, strict=True), label=label, **(look | extra)) if known else None
        if i == 0:
            for kind, label in (("chance", "chance"), ("bigram", COUNTED)):
                known = [(x["tokens"], y) for x in lines if (y := x.get(f"val_{kind}")) is not None]
                look = {"color": "grey", "linestyle": ":" if kind == "chance" else "-"}
                axes.plot(*zip(*known, strict=True), label=label, **look) if known else None
    axes.set_ylabel("loss (nats per token)")
    count_axis(axes)
    legend(figure, [axes])
    return figure


def draw_curve(out_dir: Path) -> None:
    """Write curve.png of the run in `out_dir`."""
    save(curve_figure([out_dir]), out_dir / "curve.png")


# ---------------------------------------------------------------------------------------------
# Figures of a study


def draw_study(directory: Path, report: Report) -> list[str]:
    """Draw what this report allows into `directory`; the names, without suffix."""
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
    return list(drawn)


def loss_figure(groups: list[list[Row]]) -> Figure:
    """Validation loss against tokens, with the band over seeds; a panel a group."""
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    figure = Figure(figsize=(4 + 3.8 * columns, 3.8 * lines), layout="constrained")
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
        counted = [(p.tokens, p.bigram) for p in group[0].curve if p.bigram is not None]
        if counted:
            axes.plot(*zip(*counted, strict=True), color="grey", label=COUNTED)
        axes.set(ylabel=LOSS if number % columns == 0 else "", title=group[0].group)
        count_axis(axes)
    legend(figure, figure.axes)
    figure.suptitle("mean over seeds; band: lowest to highest seed", fontsize="medium")
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
    figure = Figure(figsize=(8, 1.5 + 0.34 * len(gaps)), layout="constrained")
    axes = figure.add_subplot()
    labels, name = names_of(gaps)
    for y, gap in enumerate(gaps):
        scale = 100 * gap.share / gap.nats if gap.nats else 0.0  # % per nat
        ends = [scale * end for end in gap.interval or ()]
        axes.plot(ends, [y, y], color="black", linewidth=1.5, marker="|", markersize=9)
        axes.plot(100 * gap.share, y, "D", color="black", markersize=5)
        seeds = [100 * share for share in present(gap.points[-1].shares)] if gap.points else []
        axes.plot(seeds, [y + 0.25] * len(seeds), "o", color="grey", markersize=3)
    axes.axvspan(-100 * margin, 100 * margin, color="black", alpha=0.08, linewidth=0)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(gaps)), labels, fontsize="small")
    axes.set_ylim(len(gaps) - 0.4, -0.6)
    axes.set_xlabel(f"{name[:-1]}; below 0: better)")
    notes = f"diamond: mean; bar: 95% interval; dots: seeds; grey: within {100 * margin:g}%"
    figure.suptitle(notes, fontsize="medium")
    return figure


def price_figure(gaps: list[Gap], margin: float) -> Figure:
    """The gap against tokens: as a share of the loss with its fits, and as a multiple of data."""
    with_data = any(point.data for gap in gaps for point in gap.points)
    figure = Figure(figsize=(11 if with_data else 7.5, 4), layout="constrained")
    axes = figure.add_subplot(1, 2 if with_data else 1, 1)
    labels, name = names_of(gaps)
    banded = len(gaps) <= 4 and all(point.interval for gap in gaps for point in gap.points)
    for i, (gap, label) in enumerate(zip(gaps, labels, strict=True)):
        tokens = [point.tokens for point in gap.points]
        axes.plot(tokens, [100 * point.share for point in gap.points], label=label, **style(i))
        if banded:
            bands = [point.interval for point in gap.points if point.interval]
            low, high = ([100 * band[end] for band in bands] for end in (0, 1))
            axes.fill_between(tokens, low, high, color=style(i)["color"], alpha=0.15, linewidth=0)
        draw_fits(axes, gap, margin, style(i)["color"])
    axes.axhspan(-100 * margin, 100 * margin, color="black", alpha=0.08, linewidth=0)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylabel(name)
    count_axis(axes, log=True)
    if with_data:
        axes = figure.add_subplot(1, 2, 2, sharex=axes)
        for i, (gap, label) in enumerate(zip(gaps, labels, strict=True)):
            known = [(point.tokens, point.data) for point in gap.points if point.data]
            axes.plot([t for t, _ in known], [x for _, x in known], label=label, **style(i))
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set(xlabel="training tokens", ylabel="tokens needed / tokens the baseline needs")
        axes.grid(alpha=0.3)
    legend(figure, figure.axes[:1])
    note = "; bands: 95% intervals" if banded else ""
    if any(gap.fits for gap in gaps):
        note += "; crosses: where power laws reach it, with 95% intervals"
    figure.suptitle(f"grey: within {100 * margin:g}%{note}", fontsize="medium")
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
        name = "power law with offset" if fit.with_offset else "power law"
        label = f"{gap.variant}: {name}"
        axes.plot(xs, ys, color=color, linewidth=1, linestyle=":" if fit.with_offset else "--",
                  label=label)  # fmt: skip


def length_figure(group: list[Row]) -> Figure:
    """Loss against the length of the code; lines across for layers that are no code of the id."""
    figure = Figure(figsize=(8.5, 4.4), layout="constrained")
    axes = figure.add_subplot()
    coded = sorted((row for row in group if row.code_length), key=lambda row: row.code_length or 0)
    linear = [row for row in coded if row.settings["input_layer"] in ("fixed", "codeword")]
    axes.plot([row.code_length or 0 for row in linear], [row.loss for row in linear], ":k", lw=0.8)
    layers = list(dict.fromkeys(row.settings["input_layer"] for row in coded))
    for i, layer in enumerate(layers, 1):
        rows = [row for row in coded if row.settings["input_layer"] == layer]
        lengths = [float(row.code_length or 0) for row in rows]
        draw_means(axes, lengths, [present(row.losses) for row in rows], layer, i)
    across = [row for row in group if not row.code_length]
    for row, color, dash in zip(
        across, ("black", *COLORS[len(layers) + 1 :]), DASHES, strict=False
    ):
        label = f"{row.kind} ({short_count(row.input_parameters)} parameters)"
        axes.axhline(row.loss, color=color, linestyle=dash, label=label)
        ends = min(present(row.losses)), max(present(row.losses))
        axes.axhspan(*ends, color=color, alpha=0.1, linewidth=0)
    axes.set_ylabel(LOSS)
    K = (coded[0].settings["vocab_size"] - 1).bit_length()
    label_values(axes, f"length of the code, no parameters (K = {K} bits tell the ids apart)")
    legend(figure, [axes])
    figure.suptitle("mean over seeds; bars and bands: lowest to highest seed", fontsize="medium")
    return figure


def sweep_figure(groups: list[list[Row]]) -> Figure | None:
    """The last result against what the groups differ in, if that is one number above 0."""
    words = [
        re.fullmatch(r"(\w+)=(?:\w+-)?(\d+\.?\d*(?:e[+-]?\d+)?)", group[0].group)
        for group in groups
    ]
    keys = [(word[1], float(word[2])) for word in words if word]
    names, values = {name for name, _ in keys}, [value for _, value in keys]
    if len(keys) < max(2, len(groups)) or len(names) > 1 or min(values) <= 0:
        return None
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    placed = [(x, row) for x, group in zip(values, groups, strict=True) for row in group]
    placed.sort(key=lambda pair: pair[0])
    for i, kind in enumerate(dict.fromkeys(row.kind for group in groups for row in group)):
        xs = [x for x, row in placed if row.kind == kind]
        bits = [present(row.bits_per_byte) for _, row in placed if row.kind == kind]
        draw_means(axes, xs, bits, kind, i)
    axes.set_ylabel("validation loss (bits per byte)")
    label_values(axes, keys[0][0])
    legend(figure, [axes])
    figure.suptitle("mean over seeds; bars: lowest to highest seed", fontsize="medium")
    return figure


def draw_means(
    axes: Axes, xs: Sequence[float], samples: list[list[float]], label: str, number: int
) -> None:
    """Means over seeds, with bars from the lowest to the highest seed."""
    means = [mean(sample) for sample in samples]
    below = [y - min(sample) for y, sample in zip(means, samples, strict=True)]
    above = [max(sample) - y for y, sample in zip(means, samples, strict=True)]
    look = style(number) | {"linestyle": "-"}
    axes.errorbar(xs, means, [below, above], capsize=3, label=label, **look)


def label_values(axes: Axes, name: str) -> None:
    """A logarithmic axis with a tick at every value of `draw_means`."""
    ticks = sorted({float(x) for line in axes.containers for x in line[0].get_xdata()})
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.set_xlabel(name)
    axes.grid(alpha=0.3)


@dataclass(frozen=True)
class CurveConfig(Settings):
    """Several runs in one picture."""

    runs: tuple[str, ...] = setting((), "directories of runs")
    file: str = setting("curves.png", "where the picture goes: .png, .svg or .pdf")

    def problems(self) -> list[str]:
        """One sentence for every impossible value."""
        problems = super().problems()
        if Path(self.file).suffix not in (".png", ".svg", ".pdf"):
            problems.append(f"file={self.file!r}: expected a name in .png, .svg or .pdf")
        return problems


def main(argv: list[str]) -> None:
    """Draw the curves of runs; see the module's docstring."""
    config = configure(CurveConfig, argv, "runs")
    if not config.runs:
        raise UserError("no runs: pass their directories, as out/a out/b")
    save(curve_figure([Path(run) for run in config.runs]), Path(config.file))
    print(f"wrote {config.file}")


if __name__ == "__main__":
    run_main(main, CurveConfig, "usage: python -m inputcodes.figures RUN [RUN ...]", "runs")
