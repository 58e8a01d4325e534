"""The README's table of measurements, written by ``python -m bench.render bench/results``."""

from collections.abc import Sequence

from bench.record import Record
from bench.targets import RATIOS, columns

BEGIN, END = "<!-- bench: written by python -m bench.render bench/results -->\n", "<!-- /bench -->"
_UNMEASURED = "not measured yet"


def updated(readme: str, records: Sequence[Record]) -> str:
    """The README with its table made anew. ValueError if its marks are not there."""
    start, stop = readme.index(BEGIN) + len(BEGIN), readme.index(END)
    return readme[:start] + "\n".join(table(records)) + "\n" + readme[stop:]


def table(records: Sequence[Record]) -> list[str]:
    """A row per ratio, Liger's left to the report, and a column per device: on a GPU a number per model, on a CPU the
    small model's."""
    cards = columns(records)
    cpu = [r for r in records if r.environment.get("device_type") == "cpu"]
    threads = sorted({f"{r.environment['device']}, {r.environment['threads']} threads" for r in cpu})
    models = sorted({str(r.shape["model"]) for r in cpu if "model" in r.shape})
    small = f"CPU ({'; '.join(threads)}; {', '.join(models)})" if cpu else "CPU"
    header = ["ours: against", *cards, "target there", small]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for ratio in (r for r in RATIOS if ("layers", "liger") not in r.shape):
        on_gpus = ["; ".join(f"{model} {value:.2f}" for model, value in ratio.of(rows).items()) for rows in cards.values()]
        on_cpu = "; ".join(f"{value:.2f}" for value in ratio.of(cpu).values())
        if any(on_gpus) or on_cpu or ratio.target:
            cells = [ratio.name, *(text or _UNMEASURED for text in on_gpus), ratio.target_text, on_cpu or _UNMEASURED]
            lines.append(f"| {' | '.join(cells)} |")
    return lines
