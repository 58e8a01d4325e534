"""The study's pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.digits.results import COLORS as MODEL_COLORS
from bench.study.items import FIGURE_1, FIGURE_5, ITEMS, TABLE_2, TABLE_5, Item
from bench.study.results import Results
from bench.study.statistics import interval

COLORS = MODEL_COLORS | {"DPO, no image": "#d4a72c", "mDPO, random image": "#54aeff"}
LABELS = {"chair_s": "captions with a made-up digit, %", "adversarial": "right answers, %"}


def draw_charts(results: Results, folder: Path) -> dict[str, str]:
    """Draw what there are results for; the files' names by the item's."""
    size = results.size
    figures: dict[str, Figure] = {}
    there = {
        name: item for name, item in ((name, size.item(item)) for name, item in ITEMS.items()) if results.has(item)
    }
    for name, item in there.items():
        if item.x:
            figures[name] = _alone(lambda axes, item=item: _lines(axes, item, results))
    if TABLE_5.name in there:
        figures[TABLE_5.name] = _alone(lambda axes: _types(axes, there[TABLE_5.name], results), width=8.0)
    if FIGURE_1.name in there:
        figures["story"] = _story(there, results)
    if TABLE_2.name in there:
        figures["displacement"] = _displacement(there[TABLE_2.name], results)
    names = {}
    for name, figure in figures.items():
        names[name] = f"{name}.png"
        # No software version in the file: the same results give the same bytes.
        figure.savefig(folder / names[name], dpi=110, metadata={"Software": None})
    return names


def _alone(draw, width: float = 5.5) -> Figure:
    figure = Figure(figsize=(width, 3.6), layout="constrained")
    draw(figure.subplots())
    return figure


def _clean(axes: Axes, title: str = "") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=11, loc="left")


def _color(method: str, place: int) -> str:
    """A method's own in all pictures; of a new one, matplotlib's for its place in this picture."""
    return COLORS.get(method, f"C{place}")


def _lines(axes: Axes, item: Item, results: Results) -> None:
    """The main score over the item's axis, a line a method, the 95% interval shaded."""
    methods: dict[str, list[tuple[float, float, float]]] = {}
    for row in item.rows:
        value = results.interval(row.setting, item.main_score, item.seeds)
        assert value is not None and row.x is not None
        methods.setdefault(row.method, []).append((row.x, value.mean, value.half))
    for place, (method, points) in enumerate(methods.items()):
        x, mean, half = zip(*sorted(points), strict=True)
        color = _color(method, place)
        axes.plot(x, mean, "o-", color=color, label=method, linewidth=2)
        low = [m - h for m, h in zip(mean, half, strict=True)]
        high = [m + h for m, h in zip(mean, half, strict=True)]
        axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    ticks = sorted({row.x for row in item.rows if row.x is not None})
    if ticks[0] > 0:
        axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(item.x)
    axes.set_ylabel(LABELS[item.main_score])
    axes.legend(frameon=False)
    _clean(axes)


def _bars(axes: Axes, item: Item, results: Results) -> None:
    """The main score of each row: a bar with its 95% interval and a dot a seed."""
    for place, row in enumerate(item.rows):
        values = results.values(row.setting, item.main_score, item.seeds)
        mean, half = interval(values)
        axes.bar(place, mean, yerr=half, width=0.62, color=_color(row.method, place), capsize=5, alpha=0.85)
        axes.plot([place] * len(values), values, "o", color="#1f2328", markersize=3, alpha=0.6)
    axes.set_xticks(range(len(item.rows)), [row.label.replace(", ", ",\n") for row in item.rows])
    axes.set_ylabel(LABELS[item.main_score])


def _types(axes: Axes, item: Item, results: Results) -> None:
    types = [score for score in item.scores if score not in ("accuracy", "log_ratio")]
    width = 0.8 / len(item.rows)
    for index, row in enumerate(item.rows):
        found = [interval(results.values(row.setting, name, item.seeds)) for name in types]
        places = [place + (index - (len(item.rows) - 1) / 2) * width for place in range(len(types))]
        axes.bar(
            places,
            [value.mean for value in found],
            width,
            yerr=[value.half for value in found],
            capsize=3,
            color=_color(row.method, index),
            label=row.label,
        )
    axes.set_xticks(range(len(types)), types)
    axes.set_ylabel(LABELS[item.main_score])
    axes.legend(frameon=False, ncols=3, loc="lower left")
    _clean(axes)


def _story(there: Mapping[str, Item], results: Results) -> Figure:
    """The README's picture: what each training does, and what more pairs do."""
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    with_scale = FIGURE_5.name in there
    left, right = figure.subplots(1, 2, squeeze=False)[0] if with_scale else (figure.subplots(), None)
    _bars(left, there[FIGURE_1.name], results)
    _clean(left, "The same tuned model, trained on the same pairs")
    if right is not None:
        _lines(right, there[FIGURE_5.name], results)
        first = there[FIGURE_1.name]
        tuned = interval(results.values(first.rows[0].setting, "chair_s", first.seeds)).mean
        right.axhline(tuned, color=COLORS["tuned"], linestyle="--", linewidth=1)
        right.annotate("tuned", (right.get_xlim()[0], tuned), color=COLORS["tuned"], va="bottom", fontsize=9)
        _clean(right, "More pairs")
    return figure


def _displacement(item: Item, results: Results) -> Figure:
    rows = {row.label: row.setting for row in item.rows}
    titles = {"− both (DPO)": "DPO", "− anchor": "mDPO without anchor", "mDPO": "mDPO"}
    figure = Figure(figsize=(11, 3.5), layout="constrained")
    for axes, (label, title) in zip(figure.subplots(1, 3, sharey=True), titles.items(), strict=True):
        histories = [run["history"] for seed in item.seeds if (run := results.find(rows[label], seed))]
        for branch, color in (("chosen", "#1a7f37"), ("rejected", "#d1242f")):
            _curve(axes, histories, branch, color)
        axes.axhline(0, color="#8c959f", linewidth=0.8)
        axes.set_xlabel("training step")
        _clean(axes, title)
        axes.legend(frameon=False, loc="lower left")
    figure.axes[0].set_ylabel("log π/ρ of the training pairs")
    return figure


def _curve(axes: Axes, histories: Sequence[Sequence[Mapping[str, float]]], branch: str, color: str) -> None:
    steps = [row["step"] for row in histories[0]]
    found = [interval(values) for values in zip(*([row[branch] for row in rows] for rows in histories), strict=True)]
    axes.plot(steps, [value.mean for value in found], color=color, linewidth=2, label=branch)
    low, high = ([value.mean + sign * value.half for value in found] for sign in (-1, 1))
    axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
