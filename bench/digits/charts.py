"""The demo's curves, and its picture: table, curves and test images with what each model says about them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from PIL import Image

from bench.digits.results import COLORS, RED, Result, World, cells

INK = "#1f2328"
FAINT = "#d1d9e0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhibit:
    """A test picture and what it shows. index: of its captions in the results."""

    index: int
    image: Image.Image
    shown: tuple[Any, ...]


Marked = Sequence[tuple[str, bool]]
"""A caption in pieces, each with whether it is something that the picture does not show."""
Chart = Callable[[Axes, Sequence[Result], float], None]
"""Draws one curve of every model that has it; the number is β."""


def log_ratio_chart(axes: Axes, results: Sequence[Result], beta: float) -> None:
    """Likelihood displacement: whether the true captions become likelier at all."""
    _curves(axes, results, "rewards/chosen", "log π/ρ of the chosen caption", scale=1 / beta)


def text_margin_chart(axes: Axes, results: Sequence[Result], beta: float) -> None:
    """What plain DPO trains, and what the style token alone can raise."""
    _curves(axes, results, "rewards/margins", "reward of the chosen over the rejected caption")


def image_margin_chart(axes: Axes, results: Sequence[Result], beta: float) -> None:
    """What the image preference trains. Plain DPO has no such branch."""
    _curves(axes, results, "rewards/imageless_margins", "reward of the caption with its picture over a crop")


CHARTS: tuple[Chart, ...] = (log_ratio_chart, text_margin_chart, image_margin_chart)


def _curves(axes: Axes, results: Sequence[Result], metric: str, title: str, scale: float = 1.0) -> None:
    axes.axhline(0, color="#8c959f", linewidth=0.8)
    for result in results:
        logged = [(row["step"], row[metric] * scale) for row in result.history if metric in row]
        if logged:
            axes.plot(*zip(*logged, strict=True), color=COLORS[result.name], linewidth=2, label=result.name)
            axes.legend(frameon=False)
    axes.set_title(title, fontsize=11, loc="left", color=INK)
    axes.set_xlabel("training step")
    axes.spines[["top", "right"]].set_visible(False)


def draw_chart(chart: Chart, results: Sequence[Result], beta: float) -> Figure:
    """One chart alone, at a size that reads on a phone."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    chart(figure.subplots(), results, beta)
    return figure


def draw_picture(results: Sequence[Result], exhibits: Sequence[Exhibit], beta: float, world: World) -> Figure:
    """Everything in one picture."""
    columns = 6
    rows = -(-len(exhibits) // columns)
    figure = Figure(figsize=(15, 6 + 3.4 * rows), layout="constrained")
    top, middle, bottom = figure.subfigures(3, 1, squeeze=False, height_ratios=[2, 3.6, 3.4 * rows])[:, 0]
    _table(top, results, world)
    for axes, chart in zip(middle.subplots(1, len(CHARTS)), CHARTS, strict=True):
        chart(axes, results, beta)
    for number, axes in enumerate(bottom.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if number < len(exhibits):
            exhibit = exhibits[number]
            captions = [
                (result.name, world.in_short(result.captions[exhibit.index], exhibit.shown)) for result in results
            ]
            _exhibit(axes, exhibit, captions)
    return figure


def _table(figure: SubFigure, results: Sequence[Result], world: World) -> None:
    figure.suptitle(world.title, fontsize=18, fontweight="bold", color=INK)
    axes = figure.subplots()
    axes.axis("off")
    table = axes.table(
        [cells(result, world.columns) for result in results],
        rowLabels=[result.name for result in results],
        colLabels=[column.name for column in world.columns],
        loc="center",
        cellLoc="center",
        bbox=[0.15, 0, 0.7, 0.95],  # pyright: ignore[reportArgumentType]  (four numbers are a Bbox to matplotlib)
    )
    table.auto_set_font_size(False)
    table.set_fontsize(13)
    for cell in table.get_celld().values():
        cell.set_edgecolor(FAINT)


def _exhibit(axes: Axes, exhibit: Exhibit, captions: Sequence[tuple[str, Marked]]) -> None:
    axes.imshow(exhibit.image, extent=(0, 1, 0, 1))
    axes.set_ylim(-0.13 * len(captions) - 0.05, 1)  # room for the captions within the axes, so that the layout keeps it
    for line, (name, caption) in enumerate(captions):
        height = -0.11 - 0.13 * line
        axes.text(0, height, name, color=COLORS[name], fontsize=8, fontweight="bold", va="bottom")
        _two_colors(axes, 0.2, height, caption)


def _two_colors(axes: Axes, left: float, height: float, pieces: Marked) -> None:
    """A line of text, what is false in it red: each piece starts where the one before it ends."""
    where: dict[str, Any] = dict(xy=(left, height), xycoords="data")
    for text, wrong in pieces:
        style: dict[str, Any] = dict(color=RED, fontweight="bold") if wrong else dict(color=INK)
        piece = axes.annotate(text, **where, **style, fontsize=8, annotation_clip=False, va="bottom")
        piece.set_in_layout(False)  # a long caption would push its column away from the next
        where = dict(xy=(1, 0), xycoords=piece)
