"""The suite: every operation of ours beside its peers, one after the other, with the floor that bounds them all.

__main__.py        `python -m bench.suite`: which part, where to, and for how long
parts/             what is measured: a list of groups each
implementations/   ours and the peers that are measured at them
group.py           what a part is made of: one operation at one shape
measure.py         a group measured: what is done already is skipped, and a failure is a result too
timing.py          time and memory of a callable
flops.py           what a step needs, however it is padded or recomputed
components.py      which part of the model an operator belongs to
record.py          what is known of a measurement
shelf.py           where records lie: a file a device and part
cards.py           devices by the names that their drivers give them
"""
