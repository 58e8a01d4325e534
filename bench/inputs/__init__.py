"""What is measured on: random weights of real shape, and random data of real lengths.

models.py            models of real shapes, and small ones for a CPU
lengths.py           how long prompts and answers are
preference_rows.py   pairs of token ids and images
problems.py          hidden states, heads and linear layers of one call
processor.py         the smallest processor: for a trainer, and for reading images
"""
