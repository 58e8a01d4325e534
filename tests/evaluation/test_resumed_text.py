"""What decides on an answer's text is noticed where a generation run is gone on with."""

import json

import pytest

from mdpo.cli import main
from mdpo.evaluation.answering import fingerprint
from tests import tiny

TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] "
    "}}{% endif %}{% endfor %}{% endfor %}"
)


@pytest.mark.filterwarnings("ignore")
def test_a_changed_template_prompt_or_model_is_refused_in_one_line(tmp_path, capsys):
    model, data = tiny.world(tmp_path, 1)
    output = tmp_path / "answers.jsonl"
    command = ["generate", str(model), str(data), "--output", str(output), "--max-new-tokens", "1"]
    assert main(command) == 0 and main(command) == 0
    template = model / "chat_template.jinja"
    before = template.read_text()

    def refused(*more: str) -> bool:
        capsys.readouterr()
        code = main([*command, *more])
        said = capsys.readouterr().err
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        return code == 2 and len(lines) == 1 and "was begun with other settings" in lines[0]

    template.write_text(before + "{# changed #}")
    assert refused()
    template.write_text(before)
    assert refused("--system-prompt", "Be brief.")
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    assert refused("--chat-template", str(tmp_path / "own.jinja"))
    config = model / "generation_config.json"
    whole = config.read_text()
    config.write_text(json.dumps({**json.loads(whole), "suppress_tokens": [5]}))
    assert refused()
    config.write_text(whole)
    assert main(command) == 0


def test_a_change_in_the_middle_of_a_long_vocabulary_counts(tmp_path):
    path = tmp_path / "tokenizer.json"
    content = bytearray(b"a" * 5_000_000)
    path.write_bytes(content)
    before = fingerprint(tmp_path)
    content[2_500_000] = 98
    path.write_bytes(content)
    assert fingerprint(tmp_path) != before


def test_what_training_notes_of_itself_is_not_the_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    before = fingerprint(tmp_path)
    (tmp_path / "trainer_state.json").write_text('{"train_runtime": 4.1}')
    assert fingerprint(tmp_path) == before
