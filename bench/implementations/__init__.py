"""The implementations that are compared: ours, PyTorch eager and compiled, and the peers, each behind one signature
per operation.

logps.py       token log-probs from logits, and from hidden states
loss.py        the mDPO loss from logits, and from hidden states
attention.py   the three branches' attention, packed and apart
peers.py       what TRL, Liger and Apple's CCE offer for the same work
"""
