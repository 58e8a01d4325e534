"""States that are carried from token to token fork where a packed row does: what the layers are given, and what flows
back.
"""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mdpo.errors import InputError
from mdpo.models import branch_logps, sequence_logps
from mdpo.models import linear_attention as module
from mdpo.objectives import PRESETS
from mdpo.packing import PackedBatch, PreferenceTokens, pack
from mdpo.packing.blocks import Block
from mdpo.packing.forks import forks_of
from tests import tiny
from tests.models.packed_examples import examples


def test_a_row_says_where_it_forks():
    """Two prompts of 3 and 1 tokens, with responses of 2 and 1, and of 4."""
    forks = forks_of([Block(0, 3, ((0, 2), (1, 1)), 0, 0), Block(6, 1, ((2, 4),), 0, 0)])
    assert forks.prompts.tolist() == [[0, 1, 2], [11, 11, 6]]
    assert forks.responses.tolist() == [[3, 4, 11, 11], [5, 11, 11, 11], [7, 8, 9, 10]]
    assert forks.parents == (0, 0, 1)
    together = torch.cat([forks.prompts.flatten(), forks.responses.flatten()])
    assert together[forks.places].tolist() == list(range(11))


def test_responses_of_one_token_have_two_places():
    assert forks_of([Block(0, 2, ((0, 1), (1, 1)), 0, 0)]).responses.tolist() == [[2, 4], [3, 4]]


def test_only_rows_of_such_layers_say_it():
    assert pack(examples("llava-llama"), tiny.llava()).forks is None
    row = pack(examples("qwen3_5"), tiny.qwen3_5())
    assert isinstance(row, PackedBatch) and row.forks is not None
    assert row.to("meta").forks.prompts.is_meta and row.to("meta").forks.parents == row.forks.parents


def test_what_a_response_changes_reaches_the_prompt_through_the_states(monkeypatch):
    """A state without its gradient gives the same log-probs and other gradients."""
    model, batch = tiny.qwen3_5(), examples("qwen3_5")[:1]
    cut = copy.deepcopy(model)
    row = pack(batch, model)
    logps = sequence_logps(model, row)
    logps[1].sum().backward()  # of the response that is not laid out right behind its prompt
    forked = module._States.forked

    def without_gradient(states: module._States, parents: tuple[int, ...]) -> module._States:
        found = forked(states, parents)
        found.conv_states[0], found.recurrent_states[0] = (
            found.conv_states[0].detach(),
            found.recurrent_states[0].detach(),
        )
        return found

    monkeypatch.setattr(module._States, "forked", without_gradient)
    assert torch.equal(sequence_logps(cut, row), logps)
    sequence_logps(cut, row)[1].sum().backward()
    name = "model.language_model.layers.0.linear_attn.in_proj_qkv.weight"
    ours, theirs = (dict(each.named_parameters())[name].grad for each in (model, cut))
    assert (ours - theirs).norm() > 0.01 * ours.norm()


def test_nothing_is_done_twice_and_a_copy_does_it_too():
    model, batch = tiny.qwen3_5(), examples("qwen3_5")
    row = pack(batch, model)
    with torch.no_grad():
        first = sequence_logps(model, row)
        again = copy.deepcopy(model)
        for each in (model, again):
            torch.testing.assert_close(sequence_logps(each, row), first, atol=0, rtol=0, equal_nan=True)
            layers = [layer.linear_attn for layer in each.get_decoder().layers if hasattr(layer, "linear_attn")]
            assert [len(layer._forward_pre_hooks) for layer in layers] == [1, 1]


@pytest.mark.parametrize("prompt", [[20], [20, 21], [20, 21, 22, 23, 24, 25]])  # the convolution sees four tokens
def test_prompts_shorter_than_the_convolution_and_responses_of_one_token(prompt):
    model = tiny.qwen3_5()
    batch = [PreferenceTokens("a", prompt, [1], [30]), PreferenceTokens("b", [40, 41, 42], [1], [43])]
    with torch.no_grad():
        found = branch_logps(model, pack(batch, model, branches=PRESETS["dpo"].branches))
        for at, example in enumerate(batch):
            logits = model(input_ids=torch.tensor([[*example.prompt_ids, 1]])).logits[0, len(example.prompt_ids) - 1]
            expected = logits.log_softmax(-1)[[1, example.rejected_ids[0]]]
            torch.testing.assert_close(found[:, at], expected, atol=2e-5, rtol=0)


def test_an_adapter_s_bias_is_refused_where_zeros_fill_a_row_up():
    """It would make tokens of them, in front of every prompt but the longest."""

    def with_bias(targets: str):
        return get_peft_model(tiny.qwen3_5(), LoraConfig(r=2, target_modules=targets, lora_bias=True))

    row = pack(examples("qwen3_5"), tiny.qwen3_5())
    with pytest.raises(InputError, match="bias to in_proj_qkv.lora_B.default of a layer with linear attention"):
        sequence_logps(with_bias(r".*language_model.*\.in_proj_qkv"), row)
    assert sequence_logps(with_bias(r".*language_model.*\.q_proj"), row).nansum() < 0
