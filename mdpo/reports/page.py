"""The HTML page: one file, no script, nothing fetched, readable on a phone."""

import json
from collections.abc import Sequence

from mdpo.shown import html_text, redacted

from .charts import COLOURS, SIGNS, curves, group_bars, metric_dots, svg
from .compare import Cell, Comparison, Row
from .examples import Example, choose, marked_html, unmarked
from .runs import Run
from .style import CSS

PAGE_MARK = '<meta name="generator" content="mdpo report">'
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_ARROWS = {"lower": "↓", "higher": "↑", "neither": ""}
_VERDICTS = {"better": "good", "worse": "bad", "changed": "same", "no clear change": "same"}


def page(runs: Sequence[Run], comparisons: Sequence[Comparison], title: str) -> str:
    """The whole document."""
    sections = [*(_benchmark(comparison) for comparison in comparisons), _training(runs), _origin(comparisons)]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{PAGE_MARK}
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{html_text(title)}</title>
<style>{CSS}</style>
</head>
<body>
<header>
<h1>{html_text(title)}</h1>
{_legend([run.name for run in runs])}
</header>
<main>
{"".join(section for section in sections if section)}
</main>
</body>
</html>
"""


def _legend(names: Sequence[str]) -> str:
    items = "".join(
        f'<li><span class="sign" style="color:{COLOURS[index % len(COLOURS)]}">{SIGNS[index % len(SIGNS)]}</span>'
        f"{html_text(name)}{' <small>(compared against)</small>' if index == 0 and len(names) > 1 else ''}</li>"
        for index, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def _benchmark(comparison: Comparison) -> str:
    bars = group_bars(comparison)
    notes = "".join(f"<li>{html_text(note)}</li>" for note in comparison.notes)
    some = "The percentages" if any(row.metric.unit != "%" for row in comparison.rows) else "The figures"
    overview = _figure(f"{some} with 95% intervals", svg(metric_dots(comparison)))
    types = ""
    if bars is not None:
        height = 1.2 + 0.24 * len(comparison.groups()) * max(2, len(comparison.runs))
        grouped = next(result.grouped for result in comparison.results if result)
        types = _figure(f"{grouped} by question type, with 95% intervals", svg(bars, height=height))
    return f"""<section>
<h2>{html_text(comparison.benchmark)}</h2>
<p class="variant">{html_text(comparison.variant)}</p>
{f'<ul class="notes">{notes}</ul>' if notes else ""}
<div class="overview"><div>{_table(comparison)}{types}</div><div>{overview}</div></div>
{_examples(choose(comparison))}
</section>
"""


def _table(comparison: Comparison) -> str:
    heads = "".join(f'<th scope="col">{html_text(name)}</th>' for name in comparison.runs)
    rows = "".join(_table_row(row, comparison.runs) for row in comparison.rows)
    wide = " wide" if len(comparison.runs) > 2 else ""
    return f"""<div class="scroll"><table class="figures{wide}">
<thead><tr><th scope="col">Metric</th>{heads}</tr></thead>
<tbody>{rows}</tbody>
</table></div>
<p class="quiet">In small type: 95% intervals, from drawing the responses anew 2,000 times. A change is called better or
worse where its interval, over the same responses of both runs, leaves out 0.</p>
"""


def _table_row(row: Row, names: Sequence[str]) -> str:
    metric = row.metric
    cells = "".join(_cell(cell, row, name) for cell, name in zip(row.cells, names, strict=True))
    means = "neither lower nor higher is better" if metric.better == "neither" else f"{metric.better} is better"
    head = (
        f'<th scope="row">{html_text(metric.name)} <span title="{html_text(means)}">{_ARROWS[metric.better]}</span>'
        f"<small>{html_text(metric.definition)}</small></th>"
    )
    return f"<tr>{head}{cells}</tr>"


def _cell(cell: Cell, row: Row, name: str) -> str:
    # The run's name again: on a phone, where a table of many runs is a list, it stands before the figure.
    start = f'<td data-run="{html_text(name)}">'
    if cell.value is None:
        return f"{start}–</td>"
    digits, unit = row.digits, html_text(row.metric.unit)
    parts = [f"<b>{cell.value:.{digits}f}{unit}</b>"]
    if cell.interval:
        parts.append(f"<small>{cell.interval.low:.{digits}f} to {cell.interval.high:.{digits}f}</small>")
    if cell.change:
        change = cell.change
        span = f"{change.interval.low:+.{digits}f} to {change.interval.high:+.{digits}f}"
        parts.append(
            f'<span class="change {_VERDICTS[change.verdict]}">{change.value:+.{digits}f} {change.verdict}</span>'
            f"<small>{span}</small>"
        )
    return f"{start}{''.join(parts).replace('-', '−')}</td>"


def _figure(caption: str, source: str) -> str:
    return (
        f'<figure><img src="{source}" alt="{html_text(caption)}"><figcaption>{html_text(caption)}</figcaption></figure>'
    )


def _examples(examples: Sequence[Example]) -> str:
    if not examples:
        return ""
    cards = "".join(_example(example) for example in examples)
    marked = any(response.marked for example in examples for _, response in (example.before, example.after))
    legend = "<mark>Marked</mark>: an object that the benchmark does not find in the image." if marked else ""
    return f"""<h3>Answers that changed most</h3>
<p class="quiet">The largest improvements, and the largest change for the worse where there is one. {legend}</p>
{cards}"""


def _example(example: Example) -> str:
    sides = "".join(_side(name, response) for name, response in (example.before, example.after))
    question = f"<p><b>{html_text(example.question)}</b></p>" if example.question else ""
    verdict = ("good", "better") if example.gain > 0 else ("bad", "worse")
    return (
        f'<article class="example"><p class="quiet">question {html_text(example.id)} '
        f'<span class="change {verdict[0]}">{verdict[1]}</span></p>{question}<div class="pair">{sides}</div></article>'
    )


def _side(name: str, response) -> str:
    facts = []
    if "rating" in response.numbers:
        facts.append(f"rated {response.numbers['rating']:.0f} of 6")
    if response.marked:
        facts.append(f"{len(response.marked)} not in the image")
    missing = unmarked(response)
    if missing:
        facts.append(f"counted too: {', '.join(missing)}")
    note = (
        f"<details><summary>the judge's words</summary><p>{html_text(response.note)}</p></details>"
        if response.note
        else ""
    )
    return (
        f"<div><h4>{html_text(name)}</h4><p class='answer'>{marked_html(response)}</p>"
        f'<p class="quiet">{html_text("; ".join(facts))}</p>{note}</div>'
    )


def _training(runs: Sequence[Run]) -> str:
    figures = "".join(_figure(title, svg(draw)) for title, draw in curves(runs))
    if not figures:
        return ""
    return f"""<section><h2>Training</h2>
<p class="quiet">Lines: training, smoothed where there are many points. Marks: held-out rows. A chosen reward that stays
above 0 is the anchor's work; an image margin that stays at 0 means that the image is not looked at.</p>
<div class="charts">{figures}</div></section>
"""


def _origin(comparisons: Sequence[Comparison]) -> str:
    entries = []
    for comparison in comparisons:
        for name, result in zip(comparison.runs, comparison.results, strict=True):
            if result is None:
                continue
            content = {"counts": result.counts, "generation": result.settings, "judge": result.judge}
            text = json.dumps(
                redacted({key: value for key, value in content.items() if value}), indent=2, ensure_ascii=False
            )
            entries.append(
                f"<details><summary>{html_text(comparison.title)}: {html_text(name)}</summary>"
                f"<pre>{html_text(text)}</pre></details>"
            )
    return f"<section><h2>How the figures came about</h2>{''.join(entries)}</section>" if entries else ""
