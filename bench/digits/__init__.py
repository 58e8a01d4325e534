"""The miniature world of handwritten digits: `python -m bench.digits.demo`.

world.py     scenes of digits, their pictures and captions
tune.py      the model that learns to caption them (model/)
metrics.py   what of a caption is made up, counted
demo.py      DPO and mDPO on it, over seeds; demo.json is what is committed
results.py   what is known of a model after the demo
report.py    the page of a run, with charts.py
readme.py    the table of bench/README.md
"""
