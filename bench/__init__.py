"""Benchmarks: every number that this project states comes from a record written here.

    python -m bench.suite step --out DIR        measure one part (or `all`); resumable
    python -m bench.profile_step --out DIR      where the time of our step goes, by component
    python -m bench.trl_parity --out FILE.json  TRL's training and ours, step by step, where trl is installed
    python -m bench.render DIR                  tables and plots from the records
    bash bench/gpu_session.sh OUT first         the first ten minutes on a GPU that is rented bare; then second, third,
    … bash bench/wheels.sh DIR                    what such a machine lacks, gathered where there is a network
    python -m bench.bring_home OUT/*.tgz        a session's archives into bench/results, and the tables made anew
    pytest bench/                               the same cases one function at a time, under pytest-benchmark

How it fits together: a *part* (bench/parts) is a list of `Group`s (bench/group.py). A group is one operation at one
shape, with a floor that no implementation can beat and the implementations that are compared at it
(bench/implementations). `bench.suite` runs a group's floor and implementations in one process and writes one JSON
`Record` (bench/record.py) for each. Records that are committed lie in bench/results/<device>; of them
`python -m bench.render bench/results` makes bench/RESULTS.md and the README's table, whose ratios and targets stand in
bench/targets.py.
"""
