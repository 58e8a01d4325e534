"""The first half hour on a GPU: `bash bench/gpu_session.sh`, which see.

stages.py    what is run, in which order, and for how long at the most
runner.py    runs it: each stage bounded, its log and records packed at once
probe.py     the first contact with a GPU
archive.py   one archive a stage, on its way there and back
strangers.py whether a record from elsewhere is one that a session writes
wheels.py    whether the gathered wheels are all that a bare machine lacks

`python -m bench.bring_home` unpacks the archives into bench/results and renders.
"""
