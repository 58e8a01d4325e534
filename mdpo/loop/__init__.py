"""Rounds of sampling, ranking, pairing and training: a model trained on pairs of its own answers, again and again."""
