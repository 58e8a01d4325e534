"""Twenty optimizer steps of a fused adapter beside peft's."""

import torch
from peft import PeftModel

IDS = torch.arange(8, 20).view(2, 6)


def assert_the_same_after_twenty_steps(plain: PeftModel, own: PeftModel) -> None:
    """Of float32 models, which both round alike."""
    for model in (plain, own):
        model.train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(20):
            model(input_ids=IDS, labels=IDS).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    theirs = dict(plain.named_parameters())
    for name, parameter in own.named_parameters():
        torch.testing.assert_close(
            parameter, theirs[name], rtol=2e-3, atol=2e-4, msg=lambda m, name=name: f"{name}: {m}"
        )
