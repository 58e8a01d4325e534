"""What a model answers, how likely it finds the answers of others, and what benchmarks make of its answers.

Answers
  answer_options.py    options of commands in which a model answers
  endings.py           where an answer ends
  generate.py          answers in batches
  answering.py         a run that can be stopped and gone on with
  trained_text.py      whether an adapter reads its prompts as in training
  questions.py         the benchmarks' own question files
  generate_command.py  mdpo generate
Log-probs
  row_checks.py        whether rows fit the model
  score.py             log-probs and rewards of every row
  score_command.py     mdpo score
Benchmarks, a folder each: amber/, chair/, mmhal/, human/
  files.py             files read with errors that name their line
  responses.py         what all response files have in common
  language.py          the language models that official programs use
  judge.py             a language model as judge
  judge_requests.py    what is asked of it, and what that costs
  judge_failures.py    what can go wrong with a request
  judge_options.py     the judge that a command asks
  intervals.py         how sure a figure is
  results.py           what an evaluation writes and a report reads
  finish.py            what every benchmark's run ends with
"""

from .generate import generate
from .score import row_logps, score

__all__ = ["generate", "row_logps", "score"]
