"""The memory caps, shown: `python -m bench.memory_caps [CASE ...]` on a GPU. Not measured yet.

A case is a model of real shape with random weights, in bf16 or 4 bits, and a cap on PyTorch's allocator
(`torch.cuda.set_per_process_memory_fraction`). One optimizer step of 32 pairs, response lengths log-normal (median 120,
at most 400, the longest of both at once among them), LoRA r = 64 on all linear layers of the language model, fp32
adapters, nothing paged or offloaded, with the settings that `mdpo plan` chooses for the cap. Printed: the plan's figure
and the allocator's, and the second step's seconds; for `llava-24GiB` also with every layer checkpointed.
"""

import argparse
import os
import time
from dataclasses import dataclass

# Before PyTorch reads it: packed rows differ in length, and blocks of a fixed size would leave holes.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import torch  # noqa: E402
from peft import get_peft_model  # noqa: E402
from peft.helpers import disable_input_dtype_casting  # noqa: E402

from bench.models import BUNNY_3B, LLAVA_7B, Shape, adapter, build, build_nf4_base  # noqa: E402
from mdpo.memory import SHAPES, Adaptation, Plan, choose, log_normal, parse_size, read_shape  # noqa: E402
from mdpo.memory.choose import Wishes  # noqa: E402
from mdpo.memory.layer import Precision  # noqa: E402
from mdpo.models import LANGUAGE_LINEAR, PackedPolicy, checkpoint_first_layers, language_layers  # noqa: E402
from mdpo.models.logps import unwrap  # noqa: E402
from mdpo.packing import PackedBatch, PreferenceTokens, pack, plan  # noqa: E402

GIB = 2**30
RANK = 64
PAIRS = 32


@dataclass(frozen=True, slots=True)
class Case:
    """shape: of the weights. known_as: to the plan. side: of a square of image tokens. cap: of the allocator."""

    shape: Shape
    known_as: str
    side: int
    quantized: bool
    cap: str


CASES = {
    "llava-18GiB": Case(LLAVA_7B, "llava-1.5-7b", 24, False, "18GiB"),
    "llava-24GiB": Case(LLAVA_7B, "llava-1.5-7b", 24, False, "24GiB"),
    "llava-nf4-8GiB": Case(LLAVA_7B, "llava-1.5-7b", 24, True, "8GiB"),
    "llava-nf4-7.25GiB": Case(LLAVA_7B, "llava-1.5-7b", 24, True, "7.25GiB"),
    "bunny-nf4-5.25GiB": Case(BUNNY_3B, "bunny-v1.0-3b", 27, True, "5.25GiB"),
}


def planned(case: Case) -> tuple[Plan, list[PreferenceTokens]]:
    """The plan for the cap, and the 32 pairs, the longest possible among them."""
    adaptation = Adaptation(rank=RANK, pattern=LANGUAGE_LINEAR)
    shape = read_shape(SHAPES[case.known_as](), adaptation)
    prompt_tokens = case.side**2 + 74
    lengths = log_normal(
        prompt_tokens=prompt_tokens, response_tokens_median=120, response_tokens_max=400, images=2,
        image_tokens=case.side**2,
    )  # fmt: skip
    wishes = Wishes(
        precision=Precision(weight_bytes=2, autocast=True), quantized=(case.quantized,),
        optimizers=("adamw_torch_fused", "adamw_8bit"), token_budget=12288, examples_per_step=PAIRS, driver_bytes=0,
    )  # fmt: skip
    chosen = choose(shape, lengths, wishes, parse_size(case.cap))
    if chosen is None:
        raise SystemExit(f"the plan has nothing for {case.cap}")
    return chosen, pairs(case, prompt_tokens)


def pairs(case: Case, prompt_tokens: int) -> list[PreferenceTokens]:
    """Random tokens and images, of log-normal lengths; the first pair is the longest there can be."""
    draw = torch.Generator().manual_seed(0)
    responses = (120 * (0.6 * torch.randn(PAIRS, 2, generator=draw)).exp()).clamp(1, 400).int().tolist()
    responses[0] = [400, 400]
    image_token, pixels = case.shape.text.vocab_size - 1, case.side * case.shape.patch_size
    prompt = [image_token] * case.side**2 + [7] * (prompt_tokens - case.side**2)
    found = []
    for number, (chosen, rejected) in enumerate(responses):
        image, crop = torch.randn(2, 1, 3, pixels, pixels, generator=draw)
        tokens = ([5] * chosen, [6] * rejected, {"pixel_values": image}, {"pixel_values": crop})
        found.append(PreferenceTokens(str(number), prompt, *tokens))
    return found


def step(policy: PackedPolicy, micro_batches: list[PackedBatch], optimizer: torch.optim.Optimizer) -> float:
    """One optimizer step; returns its seconds."""
    start = time.perf_counter()
    for packed in micro_batches:
        packed = packed.to("cuda", non_blocking=True)
        with torch.autocast("cuda", torch.bfloat16):
            output = policy(packed, torch.zeros(3, len(packed.ids), device="cuda"), PAIRS)
        output.loss.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(name: str, case: Case) -> None:
    """Prints a line a setting."""
    chosen, examples = planned(case)
    cap = parse_size(case.cap)
    torch.cuda.set_per_process_memory_fraction(cap / torch.cuda.get_device_properties(0).total_memory)
    device = torch.device("cuda")
    if case.quantized:
        model = get_peft_model(build_nf4_base(case.shape, case.side**2, device), adapter(RANK)).train()
    else:
        model = build(case.shape, case.side**2, device, lora_r=RANK)
    policy = PackedPolicy(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    layers = len(language_layers(model))
    for checkpointed in sorted({chosen.checkpoint_layers, layers} if name == "llava-24GiB" else {chosen.checkpoint_layers}):
        unwrap(model).gradient_checkpointing_enable({"use_reentrant": False})
        checkpoint_first_layers(model, checkpointed)
        if chosen.optimizer == "adamw_8bit":
            import bitsandbytes as bnb  # pyright: ignore[reportMissingImports]  (an optional package)

            optimizer = bnb.optim.AdamW8bit(trained)
        else:
            optimizer = torch.optim.AdamW(trained, fused=True)
        steps = plan([e.packed_length for e in examples], chosen.token_budget, examples_per_step=PAIRS)
        micro_batches = [pack([examples[index] for index in batch], model) for batch in steps[0]]
        with disable_input_dtype_casting(model):
            step(policy, micro_batches, optimizer)
            torch.cuda.reset_peak_memory_stats()
            seconds = step(policy, micro_batches, optimizer)
        print(
            f"{name}: {checkpointed} of {layers} layers checkpointed, {chosen.optimizer}, budget {chosen.token_budget}; "
            f"planned {chosen.footprint.allocated / GIB:.2f} GiB, allocated {torch.cuda.max_memory_allocated() / GIB:.2f}, "
            f"reserved {torch.cuda.max_memory_reserved() / GIB:.2f}, cap {cap / GIB:.2f}; {seconds:.2f} s a step"
        )


def main() -> None:
    """One case at a time: a cap holds for a process, so give one name per call to be sure of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--plan-only", action="store_true", help="print the plans; needs no GPU")
    options = parser.parse_args()
    unknown = set(options.cases) - set(CASES)
    if unknown:
        parser.error(f"unknown case {min(unknown)}; choose from {', '.join(CASES)}")
    for name in options.cases or CASES:
        if options.plan_only:
            chosen, _ = planned(CASES[name])
            print(f"{name}: {chosen.settings}, planned {chosen.footprint.allocated / GIB:.2f} GiB")
        elif not torch.cuda.is_available():
            raise SystemExit("needs a CUDA device, and there is none; --plan-only prints the plans")
        else:
            measure(name, CASES[name])


if __name__ == "__main__":
    main()
