"""Settings of the text, from YAML to the model: trained, scored and planned alike, and saved with the processor."""

import json

import pytest
import yaml

from mdpo import InputError, MDPOConfig, MDPOTrainer
from mdpo.cli import main
from mdpo.config import load_config
from mdpo.data import TextOptions
from mdpo.models import load, load_processor
from tests import tiny
from tests.data import templates

SYSTEM = "Be brief."


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny.world(tmp_path_factory.mktemp("world"), count=6)


@pytest.fixture
def config(world, tmp_path):
    template = tmp_path / "mine.jinja"
    template.write_text(templates.TEMPLATES["chatml"])
    settings = {
        "model_name_or_path": str(world[0]),
        "train_data": str(world[1]),
        "output_dir": str(tmp_path / "out"),
        "examples_per_step": 4,
        "token_budget": 600,
        "lora_r": 2,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "reference_cache_dir": str(tmp_path / "cache"),
        "num_train_epochs": 1,
        "system_prompt": SYSTEM,
        "chat_template": str(template),
        "chat_template_kwargs": {"thinking": False},
        "prompt_is_rendered": False,
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_every_setting_reaches_the_data(config, tmp_path):
    _, args = load_config(config)
    text = TextOptions(SYSTEM, str(tmp_path / "mine.jinja"), {"thinking": False}, False)
    assert TextOptions.of(args) == text
    _, args = load_config(config, {"prompt_is_rendered": None, "chat_template_kwargs": None})
    assert TextOptions.of(args) == TextOptions(SYSTEM, str(tmp_path / "mine.jinja"))


def test_what_was_trained_is_scored_alike_and_its_template_is_saved(world, config, tmp_path):
    assert main(["train", str(config)]) == 0
    template = templates.TEMPLATES["chatml"]
    saved = load_processor(tmp_path / "out")
    assert saved.chat_template == template
    assert load_processor(world[0]).chat_template == tiny.TEMPLATE

    cache = tmp_path / "cache"
    score = ["score", *map(str, world), "--reference", str(cache), "--output", str(tmp_path / "scores.jsonl")]
    text = ["--system-prompt", SYSTEM, "--chat-template", template, "--chat-template-kwargs", '{"thinking": false}']
    before = records(cache)
    assert main([*score, *text]) == 0
    assert records(cache) == before, "the numbers of training are found, every one"
    (tmp_path / "scores.jsonl").unlink()
    assert main(score) == 0
    assert len(records(cache)) == 2 * len(before), "another text is another key"


def records(cache) -> list[str]:
    return [line for path in sorted(cache.rglob("*")) if path.is_file() for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chat_template": "no.jinja"}, "chat_template: 'no.jinja' is neither"),
        (
            {"chat_template_kwargs": {"thinking": True}},
            "chat_template_kwargs: the chat template does not read 'thinking'",
        ),
        ({"chat_template_kwargs": 3}, "chat_template_kwargs is 3; expected a mapping or none"),
        (
            {
                "system_prompt": SYSTEM,
                "chat_template": "{% for m in messages if m.role == 'user' %}USER: {{ m.content[0].text }} "
                "{% endfor %}ASSISTANT:",
            },
            "row 0 .*: prompt: the chat template drops the system turn",
        ),
    ],
)
def test_settings_that_cannot_work_end_before_training(world, tmp_path, settings, message):
    rows = [json.loads(line) for line in world[1].read_text().splitlines()]
    rows = [{key: value for key, value in row.items() if key != "img_path"} for row in rows]
    with pytest.raises(InputError, match=message.replace("row 0 .*", "row 0")):
        args = MDPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", conditional=False, **settings)
        MDPOTrainer(load(world[0]), args, rows, processing_class=load_processor(world[0]))
