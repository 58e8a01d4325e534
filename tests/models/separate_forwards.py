"""The oracle of a packed step: each branch by itself through the model's own forward, no packing and no kernels."""

from collections.abc import Sequence

import torch

from mdpo.models import sequence_logps
from mdpo.packing import PreferenceTokens
from mdpo_kernels import mdpo_loss
from tests.models.packed_examples import IMAGE


def plain_token_logps(model, prompt: Sequence[int], images: dict | None, response: Sequence[int]) -> torch.Tensor:
    """A branch by itself through the model's own forward: no packing, no kernels, no shared code."""
    ids = torch.tensor([[*prompt, *response]])
    inputs = {"input_ids": ids, **(images or {})}
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    logits = model(**inputs).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]


def three_passes(model, example: PreferenceTokens) -> list[torch.Tensor]:
    branches = [(example.images, example.chosen_ids), (example.images, example.rejected_ids)]
    branches += [(example.rejected_images, example.chosen_ids)] if example.rejected_images is not None else []
    return [plain_token_logps(model, example.prompt_ids, images, response).sum() for images, response in branches]


def expected_logps(model, batch) -> torch.Tensor:
    columns = [three_passes(model, example) for example in batch]
    absent = torch.tensor(float("nan"))
    return torch.stack([torch.stack(column + [absent] * (3 - len(column))) for column in columns], dim=1)


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(model, oracle) -> None:
    ours, theirs = gradients(model), gradients(oracle)
    assert ours.keys() == theirs.keys()
    # A key bias shifts every score of a query alike: its gradient is zero but for rounding, so it is held to the scale
    # of the others instead of its own.
    floor = 1e-3 * max(gradient.norm() for gradient in theirs.values())
    for name, gradient in theirs.items():
        error = (ours[name] - gradient).norm() / gradient.norm().clamp_min(floor if "k_proj.bias" in name else 1e-6)
        assert error <= 1e-4, f"{name}: {error:.1e}"


def assert_same_step(model, oracle, batch, packed) -> None:
    reference = torch.zeros(3, len(batch))
    policy, expected = sequence_logps(model, packed), expected_logps(oracle, batch)
    torch.testing.assert_close(policy, expected, atol=2e-5, rtol=0, equal_nan=True)
    mdpo_loss(policy, reference).loss.backward()
    mdpo_loss(expected, reference).loss.backward()
    assert_same_gradients(model, oracle)
