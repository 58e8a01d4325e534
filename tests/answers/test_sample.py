"""Drawn answers: each by random numbers of its own, as often as the model finds them probable, whatever the batch."""

import dataclasses
import importlib
import math
from collections import Counter

import pytest
import torch

from mdpo import InputError
from mdpo.answers import sample
from mdpo.answers.draw import Draws, Sampling, uniforms
from mdpo.data import PromptRow
from mdpo.evaluation import generate
from tests import tiny
from tests.data import templates
from tests.evaluation.asked import FAMILIES, Seen, rows, saying

SAMPLING = Sampling(temperature=0.7, top_p=1.0, seed=5, max_new_tokens=3)
LOGITS = [2.0, -1.0, 0.5, 1.5, 0.0, -3.0, 1.0, 0.9]


def question(id: str = "q") -> PromptRow:
    return PromptRow(id, f"row {id}", (), [])


def drawn(logits, sampling, count, dtype=torch.float32):
    """The first token of ``count`` answers to one question, whose logits are the same."""
    draws = Draws([(question(), number) for number in range(count)], sampling)
    scores = draws(torch.zeros(count, 4, dtype=torch.long), torch.tensor(logits, dtype=dtype).repeat(count, 1))
    assert scores.dtype == dtype
    draws.check()
    assert ((scores == 0).sum(-1) == 1).all() and ((scores == -torch.inf).sum(-1) == len(logits) - 1).all()
    return scores.argmax(-1).tolist()


def probabilities(logits, temperature, top_p):
    """In plain numbers: softmax, then the likeliest tokens up to the first that brings their sum to ``top_p``."""
    weights = [math.exp(logit / temperature) for logit in logits]
    kept, reached = set(), 0.0
    for token in sorted(range(len(logits)), key=lambda token: -weights[token]):
        if reached >= top_p * sum(weights):
            break
        kept.add(token)
        reached += weights[token]
    return [weight / reached if token in kept else 0.0 for token, weight in enumerate(weights)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 1.0), (1.0, 1.0), (1.3, 0.8), (1.0, 0.3)])
def test_a_token_is_drawn_as_often_as_it_is_probable(temperature, top_p, dtype):
    count = 4000
    sampling = dataclasses.replace(SAMPLING, temperature=temperature, top_p=top_p)
    found = Counter(drawn(LOGITS, sampling, count, dtype))
    expected = probabilities(torch.tensor(LOGITS, dtype=dtype).tolist(), temperature, top_p)
    assert set(found) <= {token for token, probability in enumerate(expected) if probability}
    squares = [(found[token] - count * share) ** 2 / (count * share) for token, share in enumerate(expected) if share]
    assert sum(squares) < 24.3, "χ² of 7 degrees of freedom exceeds it once in a thousand times"


def test_every_step_is_the_inverse_of_the_summed_probabilities():
    sampling = dataclasses.replace(SAMPLING, top_p=0.9)
    items = [(question(id), number) for id in "ab" for number in range(20)]
    draws = Draws(items, sampling)
    for step in range(sampling.max_new_tokens):
        logits = torch.randn(len(items), 30, generator=torch.Generator().manual_seed(step))
        tokens = draws(torch.zeros(len(items), 4 + step, dtype=torch.long), logits).argmax(-1).tolist()
        for item, row, token in zip(items, logits.tolist(), tokens, strict=True):
            number = uniforms(sampling.seed, item, sampling.max_new_tokens)[step]
            shares = probabilities(row, sampling.temperature, sampling.top_p)
            assert sum(shares[:token]) - 1e-6 <= number <= sum(shares[: token + 1]) + 1e-6


def test_random_numbers_are_an_answers_own():
    numbers = {
        tuple(uniforms(seed, (question(id), number), 4))
        for seed in (1, 2)
        for id in ("a", "b", "0")
        for number in (0, 1)
    }
    assert len(numbers) == 12
    assert (uniforms(1, (question(), 0), 4) == uniforms(1, (question(), 0), 8)[:4]).all(), (
        "a longer answer begins the same"
    )


def test_improbable_tokens_keep_their_share():
    """After one of probability near 1, what they add to a sum in float32 would be rounded to multiples of 6e-8."""
    logits = [0.0] + [math.log(1e-9)] * 4
    sampling = dataclasses.replace(SAMPLING, temperature=1.0)
    draws = Draws([(question(), 0)], sampling)
    draws._numbers[:] = 1 - 1.5e-9  # the second last's stretch, 2e-9 to 1e-9 from the end
    assert draws(torch.zeros(1, 4, dtype=torch.long), torch.tensor([logits])).argmax() == 3


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_named(broken):
    draws = Draws([(question("a"), 0), (question("b"), 0)], SAMPLING)
    draws(torch.zeros(2, 4, dtype=torch.long), torch.tensor([[1.0, 2.0], [1.0, broken]]))
    with pytest.raises(InputError, match="row b: the model's scores are not numbers"):
        draws.check()


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_the_same_in_any_batch_and_order(family):
    model, processor = (make() for make in FAMILIES[family])
    asked = rows()
    found = list(sample(model, processor, asked, n=3, max_new_tokens=4, batch_size=16, writer="m"))
    assert [answer.key for answer in found] == [(row.id, "m", number) for row in asked for number in range(3)]
    assert len({answer.response for answer in found}) > 6, "they differ"
    one = list(sample(model, processor, asked, n=3, max_new_tokens=4, batch_size=1, writer="m"))
    assert one == found
    turned = list(sample(model, processor, list(reversed(asked)), n=2, max_new_tokens=4, batch_size=3, writer="m"))
    assert {answer.key: answer for answer in turned}.items() <= {answer.key: answer for answer in found}.items()


def test_another_seed_draws_other_answers_and_the_models_own_settings_none():
    model, processor = tiny.llava(), tiny.processor()
    one = list(sample(model, processor, rows(), n=2, max_new_tokens=6))
    assert list(sample(model, processor, rows(), n=2, max_new_tokens=6, seed=43)) != one
    model.generation_config.update(
        do_sample=True,
        temperature=9.0,
        top_k=1,
        top_p=0.1,
        num_beams=2,
        repetition_penalty=3.0,
        no_repeat_ngram_size=1,
        exponential_decay_length_penalty=(1, 9.0),
        min_new_tokens=6,
    )
    assert list(sample(model, processor, rows(), n=2, max_new_tokens=6)) == one


def test_temperature_zero_is_what_generate_says():
    model, processor = tiny.llava(), tiny.processor()
    greedy = [answer.response for answer in sample(model, processor, rows(), n=1, temperature=0, max_new_tokens=6)]
    assert greedy == list(generate(model, processor, rows(), max_new_tokens=6))
    cold = [answer.response for answer in sample(model, processor, rows(), n=1, temperature=1e-4, max_new_tokens=6)]
    assert cold == greedy


def test_the_model_reads_the_prompts_of_training_and_a_rows_pictures_once(monkeypatch):
    model, processor = tiny.llava(), tiny.processor()
    seen, opened = Seen(model, monkeypatch), []
    module = importlib.import_module("mdpo.evaluation.generate")  # the package has a function of that name
    real = module.open_image
    monkeypatch.setattr(module, "open_image", lambda image, where: opened.append(where) or real(image, where))
    list(sample(model, processor, rows(), n=3, max_new_tokens=1))
    assert len(opened) == 4, "one, none, two and one"
    prompts = seen.prompts()
    assert len(prompts) == 12 and prompts[0] == prompts[1] == prompts[2] != prompts[3]


@pytest.mark.parametrize("name", sorted(templates.TEMPLATES))
def test_an_answer_knows_how_it_ended_and_its_tokens(name):
    processor = templates.processor(name)
    word, end = (processor.tokenizer(text)["input_ids"] for text in ("a", templates.ENDS[name]))
    model = saying(tiny.llava(), [*word, *end])
    model.generation_config.eos_token_id = [399]
    limit = len(word) + len(end)
    ended = list(sample(model, processor, rows(), n=1, max_new_tokens=limit))
    assert {(answer.response, answer.tokens, answer.whole) for answer in ended} == {("a", len(word), True)}
    cut = list(sample(model, processor, rows(), n=1, max_new_tokens=limit - 1))
    assert all(answer.tokens == limit - 1 and not answer.whole for answer in cut)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 0}, "n is 0; expected a number above 0"),
        ({"temperature": -0.1}, "temperature is -0.1; expected a number from 0 on"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": 0, "n": 2}, "n is 2, but at temperature 0 all answers are the same"),
        ({"top_p": 0.0}, "top_p is 0.0; expected a share above 0 and up to 1"),
        ({"top_p": 1.01}, "top_p is 1.01"),
        ({"top_p": math.nan}, "top_p is nan"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_a_value_out_of_range_is_named_at_once(changes, message):
    with pytest.raises(InputError, match=message):
        sample(None, None, [], **changes)  # type: ignore[arg-type]
