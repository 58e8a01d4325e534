"""The reference is the model as training finds it, whatever trains: established, and true still after steps."""

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model

from mdpo.errors import InputError
from mdpo.models import PackedPolicy, establish_reference, fingerprint, sequence_logps
from mdpo.models.head import linear_head
from mdpo.models.reference import is_adapter_parameter
from mdpo.packing import pack
from tests import tiny
from tests.models.adapters import LANGUAGE, nudge
from tests.models.packed_examples import examples
from tests.models.separate_forwards import expected_logps

TEXT = r".*text_model.*\.(q_proj|v_proj|down_proj)"


def trained_adapter(model=None, **options):
    adapted = get_peft_model(model or tiny.llava(), LoraConfig(**{"r": 4, "target_modules": LANGUAGE, **options}))
    nudge(adapted, 0.2)
    return adapted


def unfrozen_projector():
    model = get_peft_model(tiny.llava(), LoraConfig(r=4, target_modules=LANGUAGE))
    for name, parameter in model.named_parameters():
        if "multi_modal_projector" in name:
            parameter.requires_grad_(True)
    return model


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=3e-5, rtol=0, equal_nan=True)


# How the policy is made, and the model that training starts from where it isn't the bare base.
KINDS = {
    "lora": lambda: get_peft_model(tiny.llava("qwen2"), LoraConfig(r=4, target_modules=LANGUAGE)),
    "biases of the adapted layers": lambda: get_peft_model(
        tiny.llava("qwen2"), LoraConfig(r=4, target_modules=LANGUAGE, bias="lora_only")
    ),
    "all biases": lambda: get_peft_model(tiny.llava("qwen2"), LoraConfig(r=4, target_modules=LANGUAGE, bias="all")),
    "an unfrozen projector": unfrozen_projector,
    "a trained adapter": trained_adapter,
    "a trained adapter with DoRA on the head": lambda: trained_adapter(
        target_modules=rf"lm_head|{LANGUAGE}", use_dora=True
    ),
    "random initialisation": lambda: get_peft_model(
        tiny.llava(), LoraConfig(r=4, target_modules=LANGUAGE, init_lora_weights=False)
    ),
    "pissa": lambda: get_peft_model(tiny.llava(), LoraConfig(r=4, target_modules=LANGUAGE, init_lora_weights="pissa")),
    "olora": lambda: get_peft_model(tiny.llava(), LoraConfig(r=4, target_modules=LANGUAGE, init_lora_weights="olora")),
    "modules_to_save": lambda: get_peft_model(
        tiny.llava(), LoraConfig(r=4, target_modules=LANGUAGE, modules_to_save=["lm_head", "embed_tokens"])
    ),
    "ia3": lambda: get_peft_model(
        tiny.llava(),
        peft.IA3Config(
            target_modules=r".*language_model.*\.(k_proj|v_proj|down_proj)",
            feedforward_modules=r".*language_model.*\.down_proj",
        ),
    ),
    "full": tiny.llava,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_the_start_before_and_after_training(kind):
    model = KINDS[kind]()
    batch = examples("llava-llama")
    packed = pack(batch, model)
    with torch.no_grad():
        start = expected_logps(model.eval(), batch)
    # "fresh" as the trainer says it of an adapter it has just made.
    policy = PackedPolicy(model, reference=establish_reference(model, fresh="trained" not in kind)).train()
    output = policy(packed)
    assert_close(output.reference, start)
    assert_close(output.policy.detach(), start)
    nudge(model)
    output = policy(packed)
    assert_close(output.reference, start)
    assert (output.policy.detach() - start).nan_to_num().abs().max() > 0.01, "the policy has moved"


def test_only_what_differs_is_kept():
    kept = {kind: establish_reference(KINDS[kind](), fresh="trained" not in kind) for kind in KINDS}
    assert not kept["lora"].values and not kept["lora"].adapter
    assert not kept["modules_to_save"].values and not kept["ia3"].values
    assert all("bias" in name for name in kept["all biases"].values) and kept["all biases"].values
    assert all("projector" in name for name in kept["an unfrozen projector"].values)
    assert kept["a trained adapter"].adapter and all("lora_" in name for name in kept["a trained adapter"].values)
    assert kept["pissa"].adapter and kept["full"].frozen is not None


def test_base_is_measured_against_where_it_is_asked_for():
    model = trained_adapter()
    batch = examples("llava-llama")
    reference = establish_reference(model, "base")
    assert not reference.adapter and not reference.values
    with torch.no_grad():
        assert_close(reference.branch_logps(model, pack(batch, model)), expected_logps(tiny.llava(), batch))


def prompt_learning():
    settings = {"num_virtual_tokens": 4, "task_type": "CAUSAL_LM", "num_layers": 2, "token_dim": 32}
    return get_peft_model(tiny.llava(), peft.PromptTuningConfig(**settings, num_attention_heads=4))


def alora():
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", alora_invocation_tokens=[3, 4])
    return get_peft_model(tiny.llava(), config)


def frozen_adapter():
    model = trained_adapter()
    return model.requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "choice", "message"),
    [
        (prompt_learning, "start", "PROMPT_TUNING"),
        (alora, "start", "is an aLoRA"),
        (KINDS["pissa"], "base", "'pissa' moved part of it into the adapter"),
        (frozen_adapter, "start", "is_trainable=True"),
        (lambda: tiny.llava().requires_grad_(False), "start", "none of its parameters trains"),
        (tiny.llava, "sft", "'sft' is unknown; choose from start, base"),
    ],
)
def test_what_cannot_be_a_reference_is_refused(make, choice, message):
    with pytest.raises(InputError, match=message):
        establish_reference(make(), choice)


def test_sharded_weights_are_not_swapped():
    with pytest.raises(InputError, match="FSDP"):
        establish_reference(trained_adapter(), whole=False)
    with pytest.raises(InputError, match="FSDP"):
        establish_reference(KINDS["all biases"](), fresh=True, whole=False)
    establish_reference(KINDS["lora"](), fresh=True, whole=False)


def test_prompt_learning_is_refused_by_name_wherever_a_packed_row_is_scored():
    model = prompt_learning()
    with pytest.raises(InputError, match="PROMPT_TUNING"):
        sequence_logps(model, pack(examples("llava-llama"), model))


def test_features_are_not_shared_with_a_reference_that_has_no_adapter_on_the_tower():
    model = get_peft_model(tiny.llava(), LoraConfig(r=4, target_modules=r".*(vision_tower|language_model).*(q_proj)"))
    nudge(model, 0.3)
    for name, parameter in model.named_parameters():
        if "vision_tower" in name:
            parameter.requires_grad_(False)
    batch = examples("llava-llama")
    output = PackedPolicy(model)(pack(batch, model))
    with torch.no_grad():
        assert_close(output.reference, expected_logps(tiny.llava(), batch))


HEADS = {
    "lora": {"target_modules": r"lm_head|.*q_proj"},
    "rslora": {"target_modules": r"lm_head|.*q_proj", "use_rslora": True},
    "dora": {"target_modules": r"lm_head|.*q_proj", "use_dora": True},
    "lora bias": {"target_modules": r"lm_head|.*q_proj", "lora_bias": True},
    "modules_to_save": {"target_modules": r".*q_proj", "modules_to_save": ["lm_head"]},
    "embeddings": {"target_modules": r".*(embed_tokens|q_proj)"},
    "both": {"target_modules": r"lm_head|.*(embed_tokens|q_proj)"},
    "tokens": {"target_modules": r".*q_proj", "trainable_token_indices": list(range(100))},
}


@pytest.mark.parametrize("tied", [False, True], ids=["apart", "tied"])
@pytest.mark.parametrize("kind", HEADS)
def test_an_adapter_on_the_head_gives_pefts_own_numbers_and_gradients(kind, tied):
    family, make = ("smolvlm", tiny.smolvlm) if tied else ("llava-llama", tiny.llava)
    batch = examples(family)

    def adapted():
        torch.manual_seed(0)
        model = get_peft_model(make(), LoraConfig(r=2, **HEADS[kind]))
        nudge(model)
        return model.eval()

    model, oracle = adapted(), adapted()
    ours, theirs = sequence_logps(model, pack(batch, model)), expected_logps(oracle, batch)
    assert_close(ours.detach(), theirs.detach())
    ours.nansum().backward()
    theirs.nansum().backward()
    for (name, one), (_, other) in zip(model.named_parameters(), oracle.named_parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(
                one.grad, other.grad, atol=1e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}"
            )
    with model.disable_adapter(), torch.no_grad():
        assert_close(sequence_logps(model, pack(batch, model)), expected_logps(make(), batch))


def test_the_kernel_is_taken_wherever_the_head_is_one_linear_map():
    def head(**options):
        return get_peft_model(tiny.llava(), LoraConfig(r=2, **options)).get_base_model().get_output_embeddings()

    for kind in ("lora", "rslora", "modules_to_save", "embeddings"):
        assert linear_head(head(**HEADS[kind])) is not None
    for kind in ("dora", "lora bias"):
        assert linear_head(head(**HEADS[kind])) is None
    assert linear_head(head(**HEADS["lora"], lora_dropout=0.5).train()) is None


def test_what_switching_off_leaves_in_place_is_told_from_the_adapter():
    model = get_peft_model(
        tiny.llava("qwen2"),
        LoraConfig(r=4, target_modules=LANGUAGE, bias="all", use_dora=True, modules_to_save=["lm_head"]),
    )
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    left_on = [name for name in trained if not is_adapter_parameter(model, name)]
    assert left_on and all(name.endswith("bias") for name in left_on)
    # Held to what autograd says: with the adapter off, the log-probs depend on these and on no other.
    packed = pack(examples("llava-llama"), model)
    parameters = [p for _, p in model.named_parameters() if p.requires_grad]
    with model.disable_adapter():
        for parameter in parameters:
            parameter.requires_grad_(True)
        grads = torch.autograd.grad(sequence_logps(model, packed).nansum(), parameters, allow_unused=True)
    reached = {name for name, grad in zip(trained, grads, strict=True) if grad is not None}
    assert reached <= set(left_on) and any("language_model" in name for name in reached)


def changed_model(change) -> torch.nn.Module:
    model = tiny.llava()
    change(model)
    return model


def _set(model, **values):
    for name, value in values.items():
        owner = model.config.text_config if hasattr(model.config.text_config, name) else model.config
        setattr(owner, name, value)


CHANGES = {
    "positions": lambda model: _set(model, rope_parameters={"rope_theta": 5e5, "rope_type": "default"}),
    "the vision layer that is read": lambda model: _set(model, vision_feature_layer=-1),
    "an epsilon": lambda model: _set(model, rms_norm_eps=1e-3),
    "an activation": lambda model: _set(model, hidden_act="gelu"),
    "an epsilon in the module": lambda model: setattr(model.get_decoder().norm, "variance_epsilon", 1e-2),
    "a module": lambda model: setattr(model.get_decoder().layers[0].mlp, "act_fn", torch.nn.GELU()),
    "a weight": lambda model: model.get_decoder().norm.weight.data.add_(1e-3),
    "a buffer": lambda model: model.get_decoder().rotary_emb.inv_freq.mul_(0.5),
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_changes_the_forward_changes_the_fingerprint(what):
    assert fingerprint(changed_model(CHANGES[what])) != fingerprint(tiny.llava())


def test_arithmetic_layers_and_the_adapter_are_in_the_fingerprint():
    model = trained_adapter()
    same = fingerprint(model)
    assert same == fingerprint(tiny.llava()) == fingerprint(tiny.llava().eval())
    reference = establish_reference(model)
    prints = {
        same,
        fingerprint(model, torch.bfloat16),
        fingerprint(model, compiled=True),
        fingerprint(model, liger=True),
        fingerprint(model, reference=reference),
        fingerprint(tiny.llava().double()),
    }
    assert len(prints) == 6
    before = fingerprint(model, reference=reference)
    nudge(model)
    assert fingerprint(model, reference=reference) == before, "the starting values count, not what trained since"
    assert fingerprint(model, reference=establish_reference(model)) != before


def test_what_does_not_change_the_forward_is_not_in_it():
    model = tiny.llava()
    before = fingerprint(model)
    model.config.use_cache = False
    model.config._name_or_path = "elsewhere"
    model.config.text_config.pad_token_id = 2
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert fingerprint(model.train()) == before


# What was frozen stays frozen, and the reference stays the start


def stacked():
    """A frozen SFT adapter under a fresh one that trains."""
    model = get_peft_model(tiny.llava(), LoraConfig(r=4, target_modules=LANGUAGE), adapter_name="sft")
    nudge(model, 0.2)
    model.add_adapter("dpo", LoraConfig(r=4, target_modules=LANGUAGE))
    model.base_model.set_adapter(["sft", "dpo"])
    for name, parameter in model.named_parameters():
        if ".sft." in name:
            parameter.requires_grad_(False)
    return model


def half_frozen():
    """LoRA-FA: A stays as it is."""
    model = trained_adapter()
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    return model


@pytest.mark.parametrize("make", [stacked, half_frozen])
def test_what_is_frozen_stays_so_and_the_reference_with_it(make):
    model = make()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    batch = examples("llava-llama")
    packed = pack(batch, model)
    with torch.no_grad():
        start = expected_logps(model.eval(), batch)
    policy = PackedPolicy(model, reference=establish_reference(model)).train()
    for _ in range(2):
        output = policy(packed)
        assert_close(output.reference, start)
        assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == frozen
        nudge(model)


def test_biases_that_an_adapter_brought_are_not_taken_for_the_bases():
    model = trained_adapter(tiny.llava("qwen2"), bias="all")
    with pytest.raises(InputError, match="reference: base is gone, because the adapter brought biases"):
        establish_reference(model, "base")
    with pytest.raises(InputError, match="reference: base is the model without its adapter"):
        establish_reference(tiny.llava(), "base")


def test_the_active_adapter_and_its_scale_are_in_the_fingerprint():
    model = get_peft_model(tiny.llava(), LoraConfig(r=4, target_modules=LANGUAGE), adapter_name="a")
    model.add_adapter("b", LoraConfig(r=4, target_modules=LANGUAGE))
    nudge(model)
    prints = set()
    for active in (["a"], ["b"], ["a", "b"]):
        model.base_model.set_adapter(active)
        prints.add(fingerprint(model, reference=establish_reference(model)))
    layer = model.get_base_model().get_decoder().layers[0].self_attn
    layer.q_proj.scale_layer(3.0)
    prints.add(fingerprint(model, reference=establish_reference(model)))
    layer.scaling = 0.1
    prints.add(fingerprint(model, reference=establish_reference(model)))
    assert len(prints) == 5
