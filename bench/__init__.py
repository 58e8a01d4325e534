"""Benchmarks: every number that this project states comes from a record written here.

    python -m bench.suite kernels --out DIR     measure one part (or `all`); resumable
    python -m bench.render DIR                  tables and plots from the records
    pytest bench/                               the same cases one function at a time, under pytest-benchmark

How it fits together: a *part* (bench/parts) is a list of `Group`s (bench/group.py). A group is one operation at one
shape, with a floor that no implementation can beat and the implementations that are compared at it
(bench/implementations). `bench.suite` runs a group's floor and implementations in one process and writes one JSON
`Record` (bench/record.py) for each.
"""
