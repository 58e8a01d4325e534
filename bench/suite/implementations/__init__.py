"""The implementations that are compared: ours, PyTorch eager and compiled, and the peers, each behind one signature
per operation.

logps.py       token log-probs from logits, and from hidden states
loss.py        the mDPO loss from logits, and from hidden states
lora.py        a frozen linear layer with a LoRA on it
attention.py   the three branches' attention, packed and apart
step.py        a micro-batch forward and backward, packed and in other layouts
train_step.py  a whole optimizer step: ours and the authors' way (TRL's: trl_step.py; what all take: train_problem.py)
padded.py      the padded batch that others lay branches out in
peers.py       what TRL, Liger and Apple's CCE offer for the work of logps.py and loss.py
"""
