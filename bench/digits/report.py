"""The demo's page: ``report.html`` stands alone, images inside it as data URIs, and reads on a phone."""

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path

from bench.digits.charts import CHARTS, Exhibit, draw_chart, draw_picture
from bench.digits.results import COLORS, DIGITS, Result, World, cells

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2328; background: #fff; }
body { max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .4rem .45rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #d1d9e0; }
th:first-child { text-align: left; }
@media (max-width: 30rem) { table { font-size: .78rem; } th, td { padding: .35rem .18rem; } }
.small { color: #59636e; font-size: .85rem; list-style: none; padding: 0; }
.small b { color: #1f2328; }
.charts, .cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); }
.charts img { width: 100%; }
figure { display: flex; gap: .8rem; align-items: center; margin: 0; padding: .6rem; }
figure { border: 1px solid #d1d9e0; border-radius: .5rem; }
figure img { width: 7rem; height: 7rem; border-radius: .25rem; flex: none; }
figcaption { font-size: .9rem; line-height: 1.35; }
figcaption p { margin: .25rem 0; }
figcaption b { display: block; font-size: .8rem; }
em { color: #d1242f; font-style: normal; font-weight: 700; text-decoration: underline; }
small { color: #59636e; }
"""


def write_report(
    folder: Path,
    results: Sequence[Result],
    exhibits: Sequence[Exhibit],
    *,
    beta: float,
    note: str,
    world: World = DIGITS,
) -> Path:
    """Write ``report.html`` and, the same as one picture, ``report.png``. Returns the page's path.

    exhibits: the test pictures that are shown. note: what was run, and on what.
    """
    draw_picture(results, exhibits, beta, world).savefig(folder / "report.png", dpi=120)
    charts = "".join(
        f'<img alt="training curve" src="{_data_uri(draw_chart(chart, results, beta).savefig, dpi=160)}">'
        for chart in CHARTS
    )
    cards = "".join(
        _card(exhibit, [(result.name, result.captions[exhibit.index]) for result in results], world)
        for exhibit in exhibits
    )
    page = folder / "report.html"
    page.write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(world.title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{escape(world.title)}</h1>{_summary(results, world)}{_table(results, world)}"
        f'<h2>Training</h2><div class="charts">{charts}</div>'
        f"<h2>{escape(world.exhibits)}</h2><p>{escape(world.legend)} <em>red</em>.</p>"
        f'<div class="cards">{cards}</div><p class="small">{escape(note)}</p></body></html>\n',
        encoding="utf-8",
    )
    return page


def _summary(results: Sequence[Result], world: World) -> str:
    shares = ", ".join(f"{_name(result.name)} {result.scores.chair_s:.0f}%" for result in results)
    return f"<p>{escape(world.summary)} {shares}.</p>"


def _table(results: Sequence[Result], world: World) -> str:
    head = "".join(f"<th>{escape(column.name)}</th>" for column in world.columns)
    rows = "".join(
        f"<tr><th>{_name(result.name)}</th>"
        + "".join(f"<td>{cell}</td>" for cell in cells(result, world.columns))
        + "</tr>"
        for result in results
    )
    legend = "".join(f"<li><b>{escape(column.name)}</b> {escape(column.meaning)}</li>" for column in world.columns)
    return f'<div class="wide"><table><tr><th></th>{head}</tr>{rows}</table></div><ul class="small">{legend}</ul>'


def _card(exhibit: Exhibit, captions: Sequence[tuple[str, str]], world: World) -> str:
    lines = []
    for name, caption in captions:
        pieces = world.marked(caption, exhibit.shown)
        text = "".join(f"<em>{escape(piece)}</em>" if wrong else escape(piece) for piece, wrong in pieces)
        left_out = ", ".join(map(str, world.missed(caption, exhibit.shown)))
        lines.append(f"<p>{_name(name)}{text}{f' <small>misses {left_out}</small>' if left_out else ''}</p>")
    shown = ", ".join(map(str, exhibit.shown))
    image = _data_uri(exhibit.image.save)
    return f'<figure><img alt="{shown}" src="{image}"><figcaption>{"".join(lines)}</figcaption></figure>'


def _name(name: str) -> str:
    return f'<b style="color:{COLORS[name]}">{escape(name)}</b>'


def _data_uri(save, **options) -> str:
    buffer = BytesIO()
    save(buffer, format="png", **options)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
