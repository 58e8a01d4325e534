"""Micro-batches → gradients, on transformers.Trainer.

A chain of classes above it, one job each, in this order:
  keeps_weights.py       KeepsWeights: loads and saves all weights, or says so
  keeps_checkpoints.py   KeepsCheckpoints: whole, signed, rotated by step
  goes_on.py             GoesOn: resumes exactly
  stoppable.py           Stoppable: signals, workers, ranks
  not_finite.py          StopsWhereNotFinite
  publishes.py           Publishes: card and upload
  trainer.py             MDPOTrainer: the objective on packed steps
Before the first step
  arguments.py           settings beside the device, the rows and the model
  preflight.py           what would otherwise end a run late
  datasets.py            what it is given as rows
  layers.py              checkpointed, compiled, Liger's
  machine.py             what the machines can do, the same on every rank
  start.py               one look whether the numbers are right
  banner.py              what the run is, in one block
Steps
  steps.py               whole optimizer steps from a dataloader
  workers.py             its workers, and what goes wrong in one
  host_copy.py           numbers between host and device, without waiting
  finite.py              numbers that are not finite, and whose they are
  metrics.py             what a step logs
  evaluation.py          what an evaluation keeps
  samples.py             sample answers at each evaluation
  samples_page.py        the page of them
  terminal.py            what the terminal shows
Folders and checkpoints
  folder.py              output_dir, one run's at a time
  checkpoints.py         which there are, and which are whole
  manifest.py            a checkpoint's list of its own files
  weights.py             its weights
  saved_state.py         its small files
  run_settings.py        what its weights depend on
  resume.py              which one a run goes on from
Ends
  signals.py             SIGINT, SIGTERM and SIGHUP
  ranks.py               what the processes of a run tell each other
  way_on.py              what a failed run leaves, and how to go on
"""

from .arguments import check_run
from .trainer import MDPOTrainer

__all__ = ["MDPOTrainer", "check_run"]
