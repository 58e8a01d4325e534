"""Measurements that stand alone: each is a command, `python -m bench.scripts.NAME`; what they found lies in results/.

profile_step.py      where the time of a step goes, by component; records for `bench.render`
memory_caps.py       the steps that `mdpo plan` promises to fit; records for `bench.render`
trl_parity.py        TRL's training and ours, step by step
lora_step.py         a step with fused LoRA layers and with peft's
lora_cost.py         what the LoRAs of a layer write, move and keep, counted; with lora_layers.py and lora_peers.py
packing_planner.py   what the planner of packed rows reaches, and costs
ranks.py             how a step spreads over many GPUs, simulated
two_processes.py     what a second process costs in talking to the first
input_wait.py        how long a step waits for its images
rows.py              a million rows read, and what they take up
sampling.py          drawing several answers at once
"""
