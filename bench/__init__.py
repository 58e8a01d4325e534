"""Benchmarks: every number that this project states comes from a record written here.

inputs/         what is measured on: models of real shape, problems, rows, lengths
suite/          `python -m bench.suite`: every operation of ours beside its peers, measured and recorded
render/         `python -m bench.render`: tables, ratios and plots from the records, and two commits side by side
session/        `bash bench/gpu_session.sh`: all of it on a GPU that is rented bare
bring_home.py   `python -m bench.bring_home`: a session's archives into results/
scripts/        `python -m bench.scripts.NAME`: measurements that stand alone
digits/         a miniature world of digits: a model, its tuning, DPO and mDPO on it
study/          the paper's tables in that world, over seeds
scenes/         a miniature world of scenes, closer to the paper's data: `make demo`
commit.py       which code a record is of
blocks.py       the blocks of the pages that a script writes
test_operations.py   `pytest bench/`: the kernels under pytest-benchmark
results/        records of devices, a folder each; other results lie beside what made them

A room imports only those above it; tests/bench/test_rooms.py holds it.
"""
