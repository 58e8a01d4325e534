"""What test_distributed.py launches for FSDP2: the wrapped policy sharded on a CPU mesh, 20 steps at lr 1e-3.

accelerate turns FSDP2 on CPUs into DDP without a word, so the policy is sharded here by torch's own fully_shard.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parents[2]))
torch.set_num_threads(1)

from mdpo.models import PackedPolicy  # noqa: E402  (after the path is set)
from mdpo.packing import pack  # noqa: E402
from tests import tiny  # noqa: E402
from tests.models.adapters import with_lora  # noqa: E402
from tests.models.packed_examples import examples  # noqa: E402


def full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


output = Path(sys.argv[1])
world_size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
policy = PackedPolicy(with_lora(tiny.llava())).train()
if world_size > 1:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (world_size,))
    for layer in policy.model.get_base_model().model.language_model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(policy, mesh=mesh)
batch = examples("llava-llama")[:4]
packed = pack(batch[rank::world_size], policy.model)
trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
start = {name: full(p.detach()).clone() for name, p in trained.items()}
optimizer = torch.optim.AdamW(trained.values(), lr=1e-3)
for _ in range(20):
    loss = policy(packed, num_examples=len(batch)).loss.loss
    (loss * world_size).backward()  # the ranks' gradients are averaged
    optimizer.step()
    optimizer.zero_grad()
moved = {name: (full(p.detach()) - start[name]).contiguous() for name, p in trained.items()}
if rank == 0:
    save_file(moved, output)
if world_size > 1:
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # as in distributed_run.py
