"""What test_distributed.py launches, under torchrun or alone: 20 steps at lr 1e-3, then the adapter is saved, or with
peft=no the model."""

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
torch.set_num_threads(1)

from tests.trainer.runs import trainer  # noqa: E402  (after the path is set)

model, data, output = map(Path, sys.argv[1:4])
options = dict(argument.split("=") for argument in sys.argv[4:])
resume = options.pop("resume", None)
use_cpu = options.pop("use_cpu", "yes") == "yes"  # accelerate leaves DeepSpeed out where it is told to use the CPU
run = trainer(
    (model, data),
    output,
    num_train_epochs=7,
    max_steps=int(options.pop("max_steps", 20)),
    save_steps=int(options.pop("save_steps", 10)),
    peft=options.pop("peft", "yes") == "yes",
    token_budget=260,
    use_cpu=use_cpu,
    lr_scheduler_type="constant",
    warmup_steps=0,
    ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
)
if "die_at" in options and run.args.process_index == 1:
    from transformers import TrainerCallback

    class Die(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == int(options["die_at"]):
                os._exit(9)

    run.add_callback(Die())
run.train(resume_from_checkpoint=resume)
run.save_model()
run.accelerator.wait_for_everyone()
run.accelerator.end_training()
# gloo may still abort the interpreter's own shutdown (one run in about a hundred: "terminate called without an active
# exception"), after all that is tested here is written.
sys.stdout.flush()
os._exit(0)
