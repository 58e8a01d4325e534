"""``mdpo pairs``: the file that ``mdpo rank`` wrote → preference pairs to train on, with what each came from beside
them.
"""

import argparse
import hashlib
import json
from collections import Counter
from dataclasses import asdict
from operator import gt
from pathlib import Path
from statistics import mean
from typing import Any

from mdpo.data.canonical import Pictures, preference_columns
from mdpo.data.row import PreferenceRow
from mdpo.errors import InputError
from mdpo.evaluation.files import as_json
from mdpo.output_checks import Output
from mdpo.outputs import whole_files, write_part
from mdpo.shown import say, shown

from .pairing import Pair, Paired, Rules, make_pairs
from .records import Scored, length_unit, read_scored

_MOST_WRITERS = 8  # that the table shows


def paired_files(options: argparse.Namespace) -> list[Output]:
    return pair_files(options.output)


def pair_files(output: Path) -> list[Output]:
    """The pairs, what each came from, and how they were made."""
    suffixes = ("", ".origins.jsonl", ".record.json")
    return [Output("--output", output.with_suffix(suffix) if suffix else output) for suffix in suffixes]


def check_pairs(options: argparse.Namespace) -> Rules:
    """The rules that the options ask for. Raises InputError where they cannot be used."""
    if options.output.suffix != ".jsonl":
        raise InputError(f"--output {options.output}: pairs are written as JSONL; give a name that ends in .jsonl")
    return Rules(options.margin, options.per_question, options.above, options.below)


def run_pairs(options: argparse.Namespace) -> None:
    rules = check_pairs(options)
    paired = make_pairs(read_scored(options.scored, allow_outside=options.allow_outside), rules)
    for line in table(paired):
        say(line)
    if not paired.pairs:
        raise InputError(f"{options.scored}: no question makes a pair; see the reasons above")
    write_pairs(paired, options.output, source=str(options.scored), rules=rules)
    say(f"wrote {options.output}: {len(paired.pairs)} pairs; mdpo data check and mdpo train read them as they are")


def write_pairs(paired: Paired, output: Path, *, source: str, rules: Rules) -> None:
    """Writes ``pair_files``, all or none of them. source: what the record says of where the scores came from.

    Raises OutputError where they cannot be written.
    """
    pictures = Pictures(output.expanduser().parent)
    try:
        rows, origins = [], []
        for pair in paired.pairs:
            row = _row(pair, several=rules.per_question > 1)
            rows.append(json.dumps(preference_columns(row, pictures.place), ensure_ascii=False) + "\n")
            origin = {
                "id": row.id,
                "by": pair.chosen.by,
                "chosen": _origin(pair.chosen),
                "rejected": _origin(pair.rejected),
            }
            origins.append(json.dumps(origin, ensure_ascii=False) + "\n")
        text = "".join(rows)
        record = {
            "source": source,
            **asdict(rules),
            "pairs": len(paired.pairs),
            "questions": paired.asked,
            "questions_without": paired.questions,
            "answers_left_out": paired.answers,
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
        }
        with whole_files(*(file.path for file in pair_files(output))) as (rows_part, origins_part, record_part):
            write_part(rows_part, text)
            write_part(origins_part, "".join(origins))
            write_part(record_part, as_json(record))
    except BaseException:
        pictures.remove()
        raise


def _row(pair: Pair, *, several: bool) -> PreferenceRow:
    asked = pair.chosen.answer.row
    return PreferenceRow(
        id=f"{asked.id}/{pair.number}" if several else asked.id,
        where=asked.where,
        images=asked.images,
        prompt=asked.prompt,
        chosen=pair.chosen.answer.response,
        rejected=pair.rejected.answer.response,
        plain=asked.plain,
        tools=asked.tools,
        template_kwargs=asked.template_kwargs,
    )


def _origin(scored: Scored) -> dict[str, Any]:
    answer = scored.answer
    return {
        "writer": answer.writer,
        "answer": answer.number,
        "tokens": answer.tokens,
        "score": scored.score,
        "details": dict(scored.details),
    }


def table(paired: Paired) -> list[str]:
    """What came of the questions, a line each."""
    pairs = paired.pairs
    questions = len({pair.chosen.answer.row.id for pair in pairs})
    lines = [f"{paired.asked} questions: {len(pairs)} pairs from {questions} of them"]
    lines += [f"  {count} questions: {reason}" for reason, count in paired.questions.items()]
    lines += [f"  {count} answers left out: {reason}" for reason, count in paired.answers.items()]
    if not pairs:
        return lines
    sides = [[pair.chosen for pair in pairs], [pair.rejected for pair in pairs]]
    scores = " and ".join(f"{mean(each.score or 0.0 for each in side):.3g}" for side in sides)
    lines.append(f"  mean score, chosen and rejected: {scores}; apart by {mean(pair.gap for pair in pairs):.3g}")
    unit = length_unit(each.answer for side in sides for each in side)
    lengths = [[each.answer.length(unit) for each in side] for side in sides]
    longer = sum(map(gt, *lengths))
    lines.append(
        f"  mean {unit}: {mean(lengths[0]):.1f} and {mean(lengths[1]):.1f}; "
        f"the chosen one is the longer in {longer} of {len(pairs)} pairs"
    )
    wrote = [Counter(each.answer.writer for each in side) for side in sides]
    names = list(dict.fromkeys([*wrote[0], *wrote[1]]))
    if len(names) > 1:
        lines += [
            f"  {shown(name)}: chosen {wrote[0][name]}, rejected {wrote[1][name]}" for name in names[:_MOST_WRITERS]
        ]
    return lines
