"""How figures look, and the curves of runs.

    python -m inputcodes.figures out/a out/b     # several runs in one picture, curves.png

Lines differ in dash and marker as well as in colour. Legends stand beside the axes, never over
data.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from inputcodes.configurator import Settings, UserError, configure, run_main, setting
from inputcodes.files import atomic_write
from inputcodes.runs import read_metrics

COLORS = (
    "#000000", "#c1440e", "#1f5fa8", "#7a9a01", "#8a5fa8",
    "#b8860b", "#5a5a5a", "#d4699a", "#2a9d8f", "#8b4513",
)  # fmt: skip
DASHES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (8, 3)))
MARKERS = "osD^vP*X<>"


def save(figure: Figure, path: Path) -> None:
    """Write the figure in the format that the suffix says."""
    kind = path.suffix[1:]
    with atomic_write(path) as file:
        extra: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 130}
        figure.savefig(file, format=kind, **extra)


def style(number: int) -> dict[str, Any]:
    """Of line `number`; those of 40 lines all differ."""
    marker, dash = MARKERS[number % len(MARKERS)], DASHES[number % len(DASHES)]
    color = COLORS[number % len(COLORS)]
    return {"color": color, "linestyle": dash, "marker": marker, "markersize": 4}


def count_axis(axes: Axes, log: bool = False) -> None:
    """Tokens on the horizontal axis of what is drawn, with labels that do not touch."""
    axes.set_xlabel("training tokens")
    if log:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        wide = high > 40 * low
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if wide else (1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(short))
    axes.grid(alpha=0.3)


def short(tokens: float, _: object) -> str:
    for size, letter in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if tokens >= size:
            return f"{tokens / size:g}{letter}"
    return f"{tokens:g}"


def legend(figure: Figure, axes: Iterable[Axes]) -> None:
    """One legend for all axes, at the right of them."""
    handles: dict[str, Any] = {}
    for one in axes:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        list(handles.values()), list(handles), loc="outside right center", fontsize="small"
    )


def curve_figure(runs: Sequence[Path]) -> Figure:
    """Training and validation loss of runs against tokens, with chance and bigram of the first.

    Raises UserError for a run without metrics.
    """
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for i, path in enumerate(runs):
        lines = read_metrics(path)
        if not lines:
            raise UserError(f"{path} holds no metrics: expected the directory of a run")
        name = f"{path.name}: " if len(runs) > 1 else ""
        look = style(i)
        for kind, extra in (("train", {"alpha": 0.35, "marker": ""}), ("val", {})):
            known = [(x["tokens"], x[f"{kind}_loss"]) for x in lines if f"{kind}_loss" in x]
            label = name + {"train": "training", "val": "validation"}[kind]
            axes.plot(*zip(*known, strict=True), label=label, **(look | extra)) if known else None
        evaluated = [line for line in lines if "val_loss" in line]
        if i == 0 and evaluated:
            draw_counting(axes, evaluated)
    axes.set_ylabel("loss (nats per token)")
    count_axis(axes)
    legend(figure, [axes])
    return figure


def draw_counting(axes: Axes, lines: list[dict[str, Any]]) -> None:
    """What guessing and counting would give, where a run's evaluations say it."""
    for name, label, dash in (
        ("val_chance", "chance", ":"),
        ("val_bigram", "counts of token pairs", "--"),
    ):
        known = [(line["tokens"], line[name]) for line in lines if line.get(name) is not None]
        if known:
            axes.plot(*zip(*known, strict=True), color="grey", linestyle=dash, label=label)


def draw_curve(out_dir: Path) -> None:
    """Write curve.png of the run in `out_dir`."""
    save(curve_figure([out_dir]), out_dir / "curve.png")


@dataclass(frozen=True)
class CurveConfig(Settings):
    """Several runs in one picture."""

    runs: tuple[str, ...] = setting((), "directories of runs")
    file: str = setting("curves.png", "where the picture goes: .png or .svg")


def main(argv: list[str]) -> None:
    """Draw the curves of runs; see the module's docstring."""
    config = configure(CurveConfig, argv, "runs")
    if not config.runs:
        raise UserError("no runs: pass their directories, as out/a out/b")
    save(curve_figure([Path(run) for run in config.runs]), Path(config.file))
    print(f"wrote {config.file}")


if __name__ == "__main__":
    run_main(main, CurveConfig, "usage: python -m inputcodes.figures RUN [RUN ...]", "runs")
