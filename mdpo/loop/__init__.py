"""Rounds of sampling, ranking, pairing and training: a model trained on pairs of its own answers, again and again.

commands.py   mdpo loop
config.py     its configuration
stages.py     the commands of its rounds, as they could be typed
stage.py      one of them in a process of its own
run.py        each of them once, whatever ended the loop in between
report.py     the page over the rounds
"""
