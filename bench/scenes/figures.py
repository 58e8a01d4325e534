"""The study's pictures. Colours are told apart by colour-blind eyes, and rows by their marks as well."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.digits.results import COLORS as MODEL_COLORS
from bench.scenes.rows import SECTIONS, SHARP, SMALL, find
from bench.scenes.scores import Comparison, Table

INK, FAINT = "#1f2328", "#8c959f"
MARKS = {"tuned": "D", "DPO": "s", "mDPO": "o"}
LABELS = {"chair_s": "captions with something made up, %", "looking": "looking, points"}
FIGURE_1 = ("tuned", "DPO", "DPO, no image", "mDPO", "mDPO - conditional", "mDPO - anchor", "mDPO, random image")


def draw_figures(table: Table, folder: Path) -> None:
    """Draws every picture of the page from what there is."""
    figures = {
        "figure-1": _both(table, FIGURE_1),
        "figure-5": _more_pairs(table),
        "cost": _cost(table),
        "looking": _looking(table),
    }
    for name, figure in figures.items():
        # No software version in the file: the same results give the same bytes.
        figure.savefig(folder / f"{name}.png", dpi=110, metadata={"Software": None})


def _method(name: str) -> str:
    """Which of the three a row belongs to, for its colour and its mark."""
    return next((method for method in ("tuned", "DPO") if name.startswith(method)), "mDPO")


def _clean(axes: Axes, title: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=11, loc="left", color=INK)


def _mean(axes: Axes, place: float, values: Sequence[float], level, name: str) -> None:
    method = _method(name)
    axes.errorbar(
        place, level.mean, yerr=level.half, fmt=MARKS[method], color=MODEL_COLORS[method], capsize=4, markersize=8
    )
    axes.plot([place + 0.18] * len(values), values, ".", color=FAINT, markersize=4)


def _both(table: Table, rows: Sequence[str]) -> Figure:
    """CHAIR_s and looking of the rows, on both bases: means with 95% intervals, and a dot a seed."""
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    for line, score in zip(figure.subplots(2, 2, sharey="row"), LABELS, strict=True):
        for axes, base in zip(line, (SHARP, SMALL), strict=True):
            there = [name for name in rows if table.by_seed(base, name, score)]
            for place, name in enumerate(there):
                level = table.level(base, name, score)
                assert level is not None
                _mean(axes, place, list(table.by_seed(base, name, score).values()), level, name)
            labels = [name.replace("mDPO - ", "mDPO -\n").replace(", ", ",\n") for name in there]
            axes.set_xticks(range(len(there)), labels, fontsize=8)
            _clean(axes, f"{base} base")
        line[0].set_ylabel(LABELS[score])
    return figure


def _more_pairs(table: Table) -> Figure:
    """CHAIR_s over the share of the pairs that are trained on, a line a method."""
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.subplots()
    names = next(section.rows for section in SECTIONS if section.figure == "figure-5")
    for method in ("DPO", "mDPO"):
        found = [
            (find(SHARP, name).share, table.level(SHARP, name, "chair_s")) for name in names if _method(name) == method
        ]
        points = [(share, level.mean, level.half) for share, level in sorted(found) if level is not None]
        if points:
            shares, means, halves = zip(*points, strict=True)
            style = {"DPO": "--", "mDPO": "-"}[method]
            axes.errorbar(
                shares, means, yerr=halves, fmt=MARKS[method], linestyle=style, color=MODEL_COLORS[method], capsize=4,
                label=method,
            )  # fmt: skip
    if tuned := table.level(SHARP, "tuned", "chair_s"):
        axes.axhline(tuned.mean, color=MODEL_COLORS["tuned"], linestyle=":", linewidth=1.5, label="tuned")
    axes.set_xscale("log", base=2)
    axes.set_xticks([0.25, 0.5, 1], ["1/4", "1/2", "all"])
    axes.set_xlabel("of the pairs")
    axes.set_ylabel(LABELS["chair_s"])
    axes.legend(frameon=False)
    _clean(axes, "More pairs, sharp base")
    return figure


def _cost(table: Table) -> Figure:
    """CHAIR_s and looking of each objective, the cheapest at the bottom; the tuned model is a line."""
    names = next(section.rows for section in SECTIONS if section.figure == "cost")
    costs = {name: cost.mean for name in names if (cost := table.level(SHARP, name, "tokens")) is not None}
    order = sorted(costs, key=lambda name: costs[name])
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, score in zip(panels, LABELS, strict=True):
        for place, name in enumerate(order):
            level = table.level(SHARP, name, score)
            assert level is not None
            method = _method(name)
            axes.errorbar(
                level.mean,
                place,
                xerr=level.half,
                fmt=MARKS[method],
                color=MODEL_COLORS[method],
                capsize=4,
                markersize=7,
            )
        if tuned := table.level(SHARP, "tuned", score):
            axes.axvline(tuned.mean, color=MODEL_COLORS["tuned"], linestyle=":", linewidth=1.5, label="tuned")
            axes.legend(frameon=False)
        axes.set_xlabel(LABELS[score])
        _clean(axes, "")
    panels[0].set_yticks(range(len(order)), [f"{name}: {costs[name]:.0f} tokens a pair" for name in order])
    return figure


def _looking(table: Table) -> Figure:
    """What mDPO changes over how much the base looks: a mark a seed and base."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    for axes, score in zip(figure.subplots(1, 2), LABELS, strict=True):
        for base, mark, color in ((SHARP, "o", "#0860ca"), (SMALL, "^", "#bf6a02")):
            looks = table.by_seed(base, "tuned", "looking")
            gaps = table.gaps(Comparison(base, "mDPO", "tuned", score))
            axes.plot([looks[seed] for seed in gaps], list(gaps.values()), mark, color=color, label=f"{base} base")
        axes.axhline(0, color=FAINT, linewidth=0.8)
        axes.set_xlabel("looking of the tuned model, points")
        axes.set_ylabel(f"{'CHAIR_s' if score == 'chair_s' else score}: mDPO − tuned")
        axes.legend(frameon=False)
        _clean(axes, "")
    return figure
