"""Tower and projector are frozen by themselves or together, in every family, and the language model never."""

import pytest

from mdpo.models import freeze_vision
from tests.models.packed_examples import FAMILIES
from tests.models.separate_models import MODELS, build

MAKES = FAMILIES | {f"separate-{kind}": lambda kind=kind: build(kind) for kind in MODELS}
WITHOUT_PROJECTOR = ("qwen", "glm", "separate-qwen", "separate-glm", "separate-exaone", "separate-cosmos")


def trains(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("kind", MAKES)
def test_only_the_language_model_trains_behind_a_frozen_tower_and_projector(kind):
    model = MAKES[kind]()
    everything = trains(model)
    freeze_vision(model, tower=False, projector=False)
    assert trains(model) == everything
    freeze_vision(model, projector=False)
    without_tower = trains(model)
    assert without_tower < everything
    freeze_vision(model)
    language = {id(p) for part in (model.get_decoder(), model.get_output_embeddings()) for p in part.parameters()}
    assert trains(model) == {name for name, p in model.named_parameters() if id(p) in language}
    if not kind.startswith(WITHOUT_PROJECTOR):
        assert trains(model) < without_tower, "there was a projector"
