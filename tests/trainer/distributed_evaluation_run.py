"""What test_distributed_evaluation.py launches: three steps with an evaluation, then predictions of every row."""

import json
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
torch.set_num_threads(1)

from mdpo.data import read_rows  # noqa: E402  (after the path is set)
from tests.trainer.runs import trainer  # noqa: E402

model, data, output = map(Path, sys.argv[1:4])
rows = read_rows(data)
run = trainer(
    (model, data),
    output,
    rows=rows[:9],
    eval_rows={"seen": rows[:3], "new": rows[9:]},
    num_train_epochs=1,
    token_budget=260,
    lr_scheduler_type="constant",
    warmup_steps=0,
    include_num_input_tokens_seen=True,
    label_names=["none"],
    ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
    save_strategy="no",
)
run.train()
predicted = run.predict(rows)
if run.is_world_process_zero():
    kept = [entry for entry in run.state.log_history if "eval_new_loss" in entry or "eval_seen_loss" in entry]
    found = {
        "predictions": {name: numbers.tolist() for name, numbers in predicted.predictions.items()},
        "loss": predicted.metrics["test_loss"],
        "evaluations": [entry.get("eval_new_loss", entry.get("eval_seen_loss")) for entry in kept],
        "tokens": run.state.num_input_tokens_seen,
    }
    (output / "found.json").write_text(json.dumps(found))
run.accelerator.wait_for_everyone()
run.accelerator.end_training()
sys.stderr.flush()
os._exit(0)  # as in distributed_run.py
