"""The figures of compare.py, from what report.py knows; each as PNG and as SVG.

Lines differ in dash and marker too, so that they can be told apart in black and white.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from inputcodes.stats import mean

Row = dict[str, Any]  # of a variant, as report.json has it
COLORS = (
    "#000000", "#c1440e", "#1f5fa8", "#7a9a01", "#8a5fa8",
    "#b8860b", "#5a5a5a", "#d4699a", "#2a9d8f", "#8b4513",
)  # fmt: skip
DASHES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (8, 3)))
MARKERS = "osD^vP*X<>"


def draw_figures(directory: Path, groups: list[list[Row]], margin: float) -> list[str]:
    """Draw what these groups of variants allow into `directory`; the names, without suffix."""
    drawn = {"loss": loss_figure(groups)}
    if any("low" in row.get("against_baseline", {}) for group in groups for row in group):
        drawn["differences"] = difference_figure(groups, margin)
        drawn["price"] = price_figure(groups, margin)
    if sweep := sweep_figure(groups):
        drawn["sweep"] = sweep
    for name, figure in drawn.items():
        figure.savefig(directory / f"{name}.png", dpi=110)
        figure.savefig(directory / f"{name}.svg", metadata={"Date": None})
    return list(drawn)


def style(number: int) -> dict[str, Any]:
    """Of line `number`; those of 40 lines all differ."""
    marker, dash = MARKERS[number % len(MARKERS)], DASHES[number % len(DASHES)]
    color = COLORS[number % len(COLORS)]
    return {"color": color, "linestyle": dash, "marker": marker, "markersize": 4}


def loss_figure(groups: list[list[Row]]) -> Figure:
    """Validation loss against tokens, with the band over seeds; a panel a group."""
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    figure = Figure(figsize=(max(6.4, 4 * columns), 4 * lines), layout="constrained")
    for number, group in enumerate(groups):
        axes = figure.add_subplot(lines, columns, number + 1)
        for i, row in enumerate(group):
            tokens = [point["tokens"] for point in row["curve"]]
            losses = [point["val_loss"] for point in row["curve"]]
            axes.plot(tokens, [mean(some) for some in losses], label=row["variant"], **style(i))
            low, high = [min(some) for some in losses], [max(some) for some in losses]
            axes.fill_between(tokens, low, high, color=style(i)["color"], alpha=0.2, linewidth=0)
        axes.set(xlabel="tokens", ylabel="validation loss (nats a token)", title=group[0]["group"])
        axes.xaxis.set_major_formatter(short)
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    figure.suptitle("mean over seeds; band: lowest to highest seed", fontsize="medium")
    return figure


def short(tokens: float, _: object) -> str:
    return f"{tokens / 1e6:g} M" if tokens < 1e9 else f"{tokens / 1e9:g} B"


def difference_figure(groups: list[list[Row]], margin: float) -> Figure:
    """The last paired differences to the baseline, with their intervals and every seed."""
    pairs = [(group[0], row) for group in groups for row in group[1:]]
    shown = [(base, row) for base, row in pairs if "low" in row["against_baseline"]]
    figure = Figure(figsize=(6.4, 1.4 + 0.36 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    for y, (base, row) in enumerate(shown):
        found, centre = row["against_baseline"], mean(base["val_loss"])
        both = zip(row["val_loss"], base["val_loss"], strict=True)
        seeds = [100 * (ours - theirs) / centre for ours, theirs in both]
        interval = [100 * found[end] / centre for end in ("low", "high")]
        axes.plot(interval, [y, y], color="black", linewidth=1.5, marker="|", markersize=9)
        axes.plot(seeds, [y] * len(seeds), "o", color="grey", markersize=4, markerfacecolor="none")
        axes.plot(100 * found["relative"], y, "D", color="black", markersize=6)
    margin_band(axes.axvspan, axes.axvline, margin)
    labels = [f"{row['variant']} - {base['variant']}" for base, row in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel("difference to the baseline, % of its loss (below 0: better)")
    figure.suptitle("diamond: mean; bar: 95% interval; circles: seeds", fontsize="medium")
    return figure


def margin_band(span: Callable[..., Any], line: Callable[..., Any], margin: float) -> None:
    span(-100 * margin, 100 * margin, color="black", alpha=0.08, linewidth=0)
    line(0, color="black", linewidth=0.8)


def price_figure(groups: list[list[Row]], margin: float) -> Figure:
    """The paired difference to the baseline against tokens seen, in per cent of its loss."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    shown = [(group[0], row) for group in groups for row in group[1:]]
    for i, (base, row) in enumerate(shown):
        points = [point for point in row["curve"] if "relative" in point]
        tokens = [point["tokens"] for point in points]
        if not points:
            continue
        label = f"{row['variant']} - {base['variant']}"
        axes.plot(tokens, [100 * point["relative"] for point in points], label=label, **style(i))
        if len(shown) <= 4 and "low" in points[-1]:
            low, high = ([100 * p[end] / p["baseline"] for p in points] for end in ("low", "high"))
            axes.fill_between(tokens, low, high, color=style(i)["color"], alpha=0.15, linewidth=0)
        if since := row["equivalent_from_tokens"]:
            share = next(100 * p["relative"] for p in points if p["tokens"] == since)
            axes.plot(since, share, "o", color="black", markersize=13, fillstyle="none")
    margin_band(axes.axhspan, axes.axhline, margin)
    axes.set(xlabel="tokens seen", ylabel="difference to the baseline, % of its loss")
    axes.xaxis.set_major_formatter(short)
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    notes = [f"grey: ±{100 * margin:g}%"] + ["bands: 95% intervals"] * (len(shown) <= 4)
    if any(row["equivalent_from_tokens"] for _, row in shown):
        notes.append("circle: equivalent from here")
    figure.suptitle("the price of the input layer (" + "; ".join(notes) + ")", fontsize="medium")
    return figure


def sweep_figure(groups: list[list[Row]]) -> Figure | None:
    """The last result against what the groups differ in, if that is one number above 0."""
    keys = [re.fullmatch(r"(\w+)=(?:\w+-)?([\d.e+-]+)", group[0]["group"]) for group in groups]
    found = [(key[1], float(key[2])) for key in keys if key]
    if len(found) < max(2, len(groups)) or len({name for name, _ in found}) > 1:
        return None
    if min(x for _, x in found) <= 0:
        return None
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    placed = [(x, row) for (_, x), group in zip(found, groups, strict=True) for row in group]
    for i, kind in enumerate(dict.fromkeys(row["kind"] for _, row in placed)):
        own = sorted(((x, row) for x, row in placed if row["kind"] == kind), key=lambda xy: xy[0])
        xs, means = [x for x, _ in own], [row["bits_per_byte"] for _, row in own]
        ranges = []
        for _, row in own:
            bits = row["bits_per_byte"] / row["mean_val_loss"]
            low, high = (bits * end(row["val_loss"]) for end in (min, max))
            ranges.append((row["bits_per_byte"] - low, high - row["bits_per_byte"]))
        axes.errorbar(xs, means, list(zip(*ranges, strict=True)), capsize=3, label=kind, **style(i))
    axes.set_xscale("log", base=2)
    axes.set_xticks([x for _, x in found], [f"{x:g}" for _, x in found])
    axes.set(xlabel=found[0][0], ylabel="validation bits per byte")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    figure.suptitle("mean over seeds; bars: lowest to highest seed", fontsize="medium")
    return figure
