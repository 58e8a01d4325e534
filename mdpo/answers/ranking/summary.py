"""What a ranking comes to, for the terminal."""

import statistics
from collections.abc import Sequence

from mdpo.data.problem import clipped
from mdpo.shown import shown

from ..records import Scored
from .way import is_empty


def counts(scored: Sequence[Scored]) -> dict[str, int]:
    """How many answers there are, have a score, have none, and of the latter have no words."""
    without = [each for each in scored if each.score is None]
    return {
        "answers": len(scored),
        "questions": len({each.answer.row.id for each in scored}),
        "scored": len(scored) - len(without),
        "null": len(without),
        "empty": sum(is_empty(each.answer) for each in without),
    }


def table(scored: Sequence[Scored]) -> str:
    """Counts, and the scores' mean and standard deviation by writer, a line each."""
    total = counts(scored)
    lines = [
        f"{total['answers']} answers to {total['questions']} questions: {total['scored']} scored, {total['null']} "
        f"without a score, {total['empty']} of these empty"
    ]
    names = list(dict.fromkeys(each.answer.writer for each in scored))
    labels = {name: clipped(shown(name), 40) for name in names}
    width = max(len("writer"), *map(len, labels.values()))
    lines.append(f"  {'writer':<{width}}  scored      mean    spread")
    for name in names:
        scores = [each.score for each in scored if each.answer.writer == name and each.score is not None]
        figures = f"{statistics.fmean(scores):10.3f}{statistics.pstdev(scores):10.3f}" if scores else ""
        lines.append(f"  {labels[name]:<{width}}{len(scores):>8}{figures}")
    return "\n".join(lines)
