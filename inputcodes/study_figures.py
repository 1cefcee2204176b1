"""The figures of a study, drawn from its report, as PNG and as SVG."""

import math
import re
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from inputcodes.figures import count_axis, legend, save, style
from inputcodes.judging import Gap
from inputcodes.report import Report
from inputcodes.runs import Row, present
from inputcodes.stats import mean

LOSS = "validation loss (nats per token)"
MOST_AHEAD = 8  # how far a fit is drawn beyond the last tokens, as a factor


def draw_study(directory: Path, report: Report) -> list[str]:
    """Draw what this report allows into `directory`; the names, without suffix."""
    gaps = [gap for group in report.gaps for gap in group]
    drawn = {"loss": loss_figure(report.groups)}
    if any(gap.interval for gap in gaps):
        drawn["differences"] = difference_figure(report, gaps)
    if any(len(gap.points) > 1 for gap in gaps):
        drawn["price"] = price_figure(gaps, report.margin)
    for i, group in enumerate(report.groups):
        if len({row.code_length for row in group if row.code_length}) > 2:
            name = "code_length" if len(report.groups) == 1 else f"code_length_{i + 1}"
            drawn[name] = length_figure(group)
    if sweep := sweep_figure(report.groups):
        drawn["sweep"] = sweep
    for name, figure in drawn.items():
        save(figure, directory / f"{name}.png")
        save(figure, directory / f"{name}.svg")
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
            axes.plot(tokens, [mean(some) for some in losses], label=row.kind, **look)
            low, high = [min(some) for some in losses], [max(some) for some in losses]
            axes.fill_between(tokens, low, high, color=look["color"], alpha=0.15, linewidth=0)
        if bigram := group[0].bigram:
            axes.axhline(bigram, color="grey", linewidth=1, label="counts of token pairs")
        axes.set(ylabel=LOSS if number % columns == 0 else "", title=group[0].group)
        count_axis(axes)
    legend(figure, figure.axes)
    figure.suptitle("mean over seeds; band: lowest to highest seed", fontsize="medium")
    return figure


def difference_figure(report: Report, gaps: list[Gap]) -> Figure:
    """The gaps at the end, with their intervals and every seed."""
    shown = [gap for gap in gaps if gap.interval]
    figure = Figure(figsize=(8, 1.4 + 0.32 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    for y, gap in enumerate(shown):
        scale = 100 * gap.share / gap.nats if gap.nats else 0.0  # % per nat
        ends = [scale * end for end in gap.interval or ()]
        axes.plot(ends, [y, y], color="black", linewidth=1.5, marker="|", markersize=9)
        seeds = [100 * share for share in present(gap.points[-1].shares)] if gap.points else []
        axes.plot(seeds, [y] * len(seeds), "o", color="grey", markersize=4, markerfacecolor="none")
        axes.plot(100 * gap.share, y, "D", color="black", markersize=5)
    axes.axvspan(-100 * report.margin, 100 * report.margin, color="black", alpha=0.08, linewidth=0)
    axes.axvline(0, color="black", linewidth=0.8)
    labels = [f"{gap.variant} - {gap.baseline}" for gap in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel("difference (% of the baseline's loss; below 0: better)")
    notes = f"diamond: mean; bar: 95% interval; circles: seeds; grey: ±{100 * report.margin:g}%"
    figure.suptitle(notes, fontsize="medium")
    return figure


def price_figure(gaps: list[Gap], margin: float) -> Figure:
    """The gap against tokens: as a share of the loss with its fits, and as a multiple of data."""
    shown = [gap for gap in gaps if len(gap.points) > 1]
    with_data = [gap for gap in shown if any(point.data for point in gap.points)]
    figure = Figure(figsize=(11 if with_data else 7.5, 4), layout="constrained")
    axes = figure.add_subplot(1, 2 if with_data else 1, 1)
    for i, gap in enumerate(shown):
        tokens = [point.tokens for point in gap.points]
        label = f"{gap.variant} - {gap.baseline}"
        axes.plot(tokens, [100 * point.share for point in gap.points], label=label, **style(i))
        bands = [point.interval for point in gap.points if point.interval]
        if len(shown) <= 4 and len(bands) == len(tokens):
            low, high = ([100 * band[end] for band in bands] for end in (0, 1))
            axes.fill_between(tokens, low, high, color=style(i)["color"], alpha=0.15, linewidth=0)
        draw_fits(axes, gap, style(i)["color"])
    axes.axhspan(-100 * margin, 100 * margin, color="black", alpha=0.08, linewidth=0)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylabel("difference (% of the baseline's loss)")
    count_axis(axes, log=True)
    if with_data:
        axes = figure.add_subplot(1, 2, 2)
        for i, gap in enumerate(shown):
            known = [(point.tokens, point.data) for point in gap.points if point.data]
            label = f"{gap.variant} - {gap.baseline}"
            axes.plot([t for t, _ in known], [x for _, x in known], label=label, **style(i))
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_ylabel("tokens needed / tokens the baseline needs")
        count_axis(axes, log=True)
    legend(figure, figure.axes)
    notes = [f"grey: ±{100 * margin:g}%"] + ["bands: 95% intervals"] * (len(shown) <= 4)
    figure.suptitle("; ".join(notes), fontsize="medium")
    return figure


def draw_fits(axes: Axes, gap: Gap, color: str) -> None:
    """The mean of the seeds' power laws, drawn on to the margin or MOST_AHEAD times as far."""
    last = gap.points[-1].tokens
    for fit in gap.fits:
        end = min(MOST_AHEAD * last, 1.2 * max(last, fit.crossing or math.inf))
        start = 0.05 * last
        xs = [start * (end / start) ** (i / 60) for i in range(61)]
        ys = [100 * mean([law.at(x) for law in fit.laws]) for x in xs]
        name = "power law with offset" if fit.with_offset else "power law"
        label = f"{gap.variant}: {name}"
        axes.plot(xs, ys, color=color, linewidth=1, linestyle=":" if fit.with_offset else "--",
                  label=label)  # fmt: skip


def length_figure(group: list[Row]) -> Figure:
    """Loss against the length of the code; lines across for layers that are no code of the id."""
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axes = figure.add_subplot()
    coded = [row for row in group if row.code_length]
    layers = list(dict.fromkeys(row.settings["input_layer"] for row in coded))
    for i, layer in enumerate(layers):
        rows = [row for row in coded if row.settings["input_layer"] == layer]
        rows.sort(key=lambda row: row.code_length or 0)
        xs, ys = [row.code_length or 0 for row in rows], [row.loss for row in rows]
        ends = [(row.loss, min(present(row.losses)), max(present(row.losses))) for row in rows]
        bars = [[y - low for y, low, _ in ends], [high - y for y, _, high in ends]]
        axes.errorbar(xs, ys, bars, capsize=3, label=layer, **(style(i) | {"markersize": 6}))
    for i, row in enumerate(row for row in group if not row.code_length):
        look = style(i + len(layers))
        axes.axhline(row.loss, color=look["color"], linestyle=look["linestyle"], label=row.kind)
    lengths = sorted({row.code_length for row in coded if row.code_length})
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(lengths, [str(length) for length in lengths])
    K = (coded[0].settings["vocab_size"] - 1).bit_length()
    axes.set(xlabel=f"length of the code (positions; K = {K} bits tell the ids apart)", ylabel=LOSS)
    axes.grid(alpha=0.3)
    legend(figure, [axes])
    figure.suptitle("mean over seeds; bars: lowest to highest seed", fontsize="medium")
    return figure


def sweep_figure(groups: list[list[Row]]) -> Figure | None:
    """The last result against what the groups differ in, if that is one number above 0."""
    keys = [re.fullmatch(r"(\w+)=(?:\w+-)?([\d.e+-]+)", group[0].group) for group in groups]
    found = [(key[1], float(key[2])) for key in keys if key]
    if len(found) < max(2, len(groups)) or len({name for name, _ in found}) > 1:
        return None
    if min(x for _, x in found) <= 0:
        return None
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    placed = [(x, row) for (_, x), group in zip(found, groups, strict=True) for row in group]
    for i, kind in enumerate(dict.fromkeys(row.kind for _, row in placed)):
        own = sorted(((x, row) for x, row in placed if row.kind == kind), key=lambda xy: xy[0])
        bits = [present(row.bits_per_byte) for _, row in own]
        ys = [mean(some) for some in bits]
        bars = [[y - min(some) for y, some in zip(ys, bits, strict=True)],
                [max(some) - y for y, some in zip(ys, bits, strict=True)]]  # fmt: skip
        axes.errorbar([x for x, _ in own], ys, bars, capsize=3, label=kind, **style(i))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(NullLocator())
    ticks = sorted({x for _, x in found})
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.set(xlabel=found[0][0], ylabel="validation loss (bits per byte)")
    axes.grid(alpha=0.3)
    legend(figure, [axes])
    figure.suptitle("mean over seeds; bars: lowest to highest seed", fontsize="medium")
    return figure
