"""The shipped checkpoint, and the demo from end to end on very little."""

import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from bench.digits.demo import OVERRIDES, Size, numbers, run
from bench.digits.results import COLUMNS, Result, marked, missed, text_table
from bench.digits.tune import MODEL
from bench.digits.world import PROMPT, STYLES, caption, make_scene, mentioned, render

pytestmark = pytest.mark.slow

LIMIT = 4_000_000


def test_the_checkpoint_is_small_and_holds_no_pickle():
    files = [path for path in MODEL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMIT
    assert {path.suffix for path in files} <= {".json", ".jinja", ".safetensors"}


def test_the_checkpoint_loads_by_auto_classes_and_names_the_digits():
    processor = AutoProcessor.from_pretrained(MODEL, backend="pil")
    model = AutoModelForImageTextToText.from_pretrained(MODEL).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
    question = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    prompt = processor.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
    scenes = [make_scene("test", 0, index) for index in range(20)]
    images = [render(scene) for scene in scenes]
    inputs = processor(text=[prompt] * len(scenes), images=images, return_tensors="pt")
    answers = model.generate(**inputs, max_new_tokens=16, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    texts = processor.batch_decode(answers, skip_special_tokens=True)
    right = sum(mentioned(text) == list(scene.digits) for text, scene in zip(texts, scenes, strict=True))
    assert right >= 12
    form = re.compile(r"I see (\d, )*\d and \d (clearly|vaguely)\.")
    assert all(form.fullmatch(text) for text in texts)


@pytest.mark.parametrize("style", STYLES)
def test_the_tokenizer_gives_a_caption_back(style: str):
    tokenizer = AutoProcessor.from_pretrained(MODEL, backend="pil").tokenizer
    text = caption((4, 9, 0, 2), style)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_a_caption_is_marked_where_it_is_wrong():
    assert marked("I see 3 and 7.", (3, 1)) == [
        ("I see ", False),
        ("3", False),
        (" and ", False),
        ("7", True),
        (".", False),
    ]
    assert missed("I see 3 and 7.", (3, 1)) == [1]


class _Page(HTMLParser):
    """What the page links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple:
    folder = tmp_path_factory.mktemp("demo")
    size = Size(pairs=32, scenes=12, overrides=("--examples_per_step", "8", "--num_train_epochs", "2"))
    return folder, run(0, folder, size), size


def test_the_demo_trains_both_ways_and_tells_them_apart(demo):
    _, results, size = demo
    assert [result.name for result in results] == ["tuned", *OVERRIDES]
    tuned, dpo, mdpo = results
    assert tuned.log_ratio is None and not tuned.history
    assert "rewards/imageless_margins" not in dpo.history[0]
    assert "rewards/imageless_margins" in mdpo.history[0]
    written = json.loads(json.dumps(numbers({0: results}, size)))
    assert written["seeds"]["0"]["mDPO"]["log_ratio"] == mdpo.log_ratio
    assert written["mean"]["tuned"]["cover"] == tuned.scores.cover


def test_the_report_stands_alone(demo):
    folder, _, _ = demo
    page = _Page((folder / "report.html").read_text(encoding="utf-8"))
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert len(page.sources) == 3 + 12  # the charts, and a test picture each
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert Image.open(folder / "report.png").width >= 1200


def test_the_table_has_a_line_per_model_and_every_column(demo):
    _, results, _ = demo
    header, *lines = text_table(results).splitlines()
    assert all(column.name in header for column in COLUMNS)
    assert [line.split()[0] for line in lines] == [result.name for result in results]
    assert all(isinstance(result, Result) and len(result.captions) == 12 for result in results)
