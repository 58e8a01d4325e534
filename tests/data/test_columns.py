"""No column of a row is dropped in silence: published schemas are read, what is unknown is refused by name."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdpo.data import PromptRow, parse_rows, read_rows
from mdpo.data.images import StoredImage, open_image
from mdpo.data.rows import PreferenceRow
from mdpo.errors import InputError

PAIR = {"chosen": "yes", "rejected": "no"}
GOOD = {"image": "a.png", "prompt": "is it red?", **PAIR}
TEXT = {"prompt": "is it red?", **PAIR}
QUESTION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "is it red?"}]}]
GPT = {name: {"from": "gpt", "value": text} for name, text in PAIR.items()}
HUMAN = [{"from": "human", "value": "<image>\nis it red?"}]
USER = {"role": "user", "content": "<image>is it red?"}
ANSWERS = {name: {"role": "assistant", "content": text} for name, text in PAIR.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index, name in enumerate(("a.png", "b.png")):
        pixels = np.random.default_rng(index).integers(0, 255, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def one(row: dict, folder: Path, **options) -> PreferenceRow:
    (parsed,) = parse_rows([row], folder, **options)
    return parsed


def picture(folder: Path) -> Image.Image:
    return Image.open(folder / "a.png").convert("RGB")


# As their cards on the hub and their documentation list the columns; see mdpo/data/columns.py for the sources.
PUBLISHED = {
    "openbmb/RLAIF-V-Dataset": {
        "ds_name": "RLAIF-V", "image": {"bytes": b"", "path": "a.png"}, "question": "is it red?", **PAIR,
        "origin_dataset": "VQAv2", "origin_split": "{}", "idx": "0", "image_path": "coco/1.jpg",
    },
    "openbmb/RLHF-V-Dataset": {
        "ds_name": "RLHF-V", "image": "a.png", "text": json.dumps({"question": "is it red?", **PAIR}),
        "origin_dataset": "VQAv2", "origin_split": "{}", "idx": 3, "image_path": "coco/1.jpg",
    },
    "RLHF-V's first file": {
        "dataset_name": "RLHF-V", "image": "a.png", "text": json.dumps({"question": "is it red?", **PAIR}),
        "origin_dataset": "VQAv2", "origin_split": "{}", "origin_split_inner_idx": 3, "image_path": "coco/1.jpg",
    },
    "MMInstruction/VLFeedback": {
        "id": "svit-1", "img_path": "a.png", "prompt": "is it red?", "models": ["llava", "qwen"],
        "completions": [
            {"response": text, "annotations": {"Helpfulness": {"Rating": rating, "Rationale": "so"}}, "model": "llava"}
            for text, rating in (("no", "2"), ("yes", "5"))
        ],
    },
    "llamafactory/RLHF-V": {"conversations": HUMAN, **GPT, "images": ["a.png"]},
    "LLaMA-Factory, a template's columns": {
        "conversations": HUMAN, **GPT, "images": ["a.png"], "system": "Be brief.", "tools": "[]", "videos": [],
    },
    "LLaMA-Factory, OpenAI's form": {"messages": [USER], **ANSWERS, "images": ["a.png"]},
    "HuggingFaceH4/rlaif-v_formatted": {
        "images": ["a.png"],
        "prompt": [{"role": "user",
                "content": [{"type": "image", "text": None}, {"type": "text", "text": "is it red?"}]}],
        **{name: [{"role": "assistant", "content": [{"type": "text", "text": text}]}] for name, text in PAIR.items()},
    },
    "trl-lib, scores": {**GOOD, "score_chosen": 9.0, "score_rejected": 1.0, "chat_template_kwargs": {"a": 1}},
    "OpenGVLab/MMPR": {"image": "a.png", "question": "is it red?", **PAIR},
    "the mDPO authors' file": {"img_path": "a.png", "prompt": "<image>\nis it red?", **PAIR},
    "ms-swift, a response": {"messages": [USER, ANSWERS["chosen"]], "rejected_response": "no", "images": ["a.png"]},
    "ms-swift, messages": {
        "messages": [USER, ANSWERS["chosen"]], "rejected_messages": [USER, ANSWERS["rejected"]], "images": ["a.png"],
        "rejected_images": ["a.png"],
    },
    "POVID": {
        "id": "1", "image": "a.png", "conversations": [*HUMAN, GPT["chosen"]],
        "rejected_conversations": [*HUMAN, GPT["rejected"]],
    },
    "TRL, implicit prompt": {
        "images": ["a.png"], **{name: [{"role": "user", "content": "is it red?"}, ANSWERS[name]] for name in PAIR},
    },
    "Qwen, the image in its part": {
        "prompt": [{"role": "user", "content": [
            {"type": "image", "image": "a.png", "text": None}, {"type": "text", "text": "is it red?", "image": None}]}],
        **PAIR,
    },
    "OpenAI, image_url": {
        "prompt": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "a.png", "detail": "auto"}},
            {"type": "text", "text": "is it red?"}]}],
        **PAIR,
    },
    "pandas' index": {**GOOD, "__index_level_0__": 7, "Unnamed: 0": 7, "margin": float("nan")},
    "null structs of a table": {**GOOD, "video": {"bytes": None, "path": None}, "audios": [None], "history": []},
}  # fmt: skip


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("Is it red? Yes.", "Is it red? No.", ("Is it red?", "Yes.", "No.")),
        ("Is it red?\nyes", "Is it red?\nyesterday", ("Is it red?", "yes", "yesterday")),
        ("USER: q ASSISTANT: yes", "USER: q ASSISTANT: no", ("USER: q ASSISTANT:", "yes", "no")),
    ],
)
def test_a_prompt_inside_both_answers_is_what_they_start_with(folder, caplog, chosen, rejected, expected):
    row = one({"chosen": chosen, "rejected": rejected}, folder)
    assert (row.plain, row.chosen, row.rejected) == expected
    assert "1 rows have no prompt; it is what chosen and rejected both start with" in caplog.text


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "yes", "rejected": "no"},
        {"chosen": "red", "rejected": "red"},
        {"chosen": "it is red", "rejected": "it is"},
        {"prompt": None, "chosen": "it is red", "rejected": "it is blue"},
        {"images": ["a.png"], "chosen": "it is red", "rejected": "it is blue"},
    ],
)
def test_without_a_prompt_inside_the_answers_it_is_missing(folder, row):
    with pytest.raises(InputError, match="column 'prompt' is (missing|null)"):
        one(row, folder)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rows_are_read_as_they_are(folder, name):
    row = dict(PUBLISHED[name])
    if name == "openbmb/RLAIF-V-Dataset":
        row["image"] = {"bytes": (folder / "a.png").read_bytes(), "path": "a.png"}
    parsed = one(row, folder)
    prompt = parsed.prompt[-1:] if "system" in row else parsed.prompt  # a system turn may stand before the question
    assert (prompt, parsed.chosen, parsed.rejected) == (QUESTION, "yes", "no")
    assert [open_image(image, "") for image in parsed.images] == [picture(folder)]
    assert parsed.rejected_images == ()


@pytest.mark.parametrize("name", [name for name in PUBLISHED if "VLFeedback" not in name])
def test_their_questions_alone_are_read_for_generation(folder, name):
    row = dict(PUBLISHED[name])
    if name == "openbmb/RLAIF-V-Dataset":
        row["image"] = "a.png"
    parsed = one({**row, "answer": "red", "label": 1, "margin": 0.5}, folder, kind=PromptRow)
    assert parsed.prompt[-1:] == QUESTION and parsed.images == (folder / "a.png",)


def test_a_tie_is_still_a_question(folder):
    row = PUBLISHED["MMInstruction/VLFeedback"]
    tie = {**row, "completions": [row["completions"][0]] * 2}
    assert one(tie, folder, kind=PromptRow).prompt == QUESTION


REFUSED = {  # column: (value, part of the message)
    "videos": (["a.mp4"], "is video or sound"),
    "video": ("a.mp4", "is video or sound"),
    "video_path": ("a.mp4", "is video or sound"),
    "audio": ("a.wav", "is video or sound"),
    "audios": (["a.wav"], "is video or sound"),
    "rejected_videos": (["a.mp4"], "is video or sound"),
    "history": ([["hello", "hi"]], "earlier turns.*messages into prompt"),
    "margin": (0.5, "a margin between the answers"),
    "weight": (2.0, "a weight of the row"),
    "label": (True, "give chosen and rejected"),
    "objects": ({"bbox": [[1, 2, 3, 4]]}, "boxes"),
    "question": ("what?", "prompt and question both give the prompt; keep one"),
    "conversations": (HUMAN, "prompt and conversations both give the prompt"),
    "messages": ([USER], "prompt and messages both give the prompt"),
    "instruction": ("what?", "prompt and instruction both give the prompt"),
    "rejected_image": ("b.png", "rename it to rejected_images"),
    "image_path": ("b.png", "image and image_path both seem to name images"),
    "Prompt": ("what?", "rename it to prompt"),
    "rejeced": ("nein", "rename it to rejected"),
    "completions": ([{"response": "a"}], "rated answers beside"),
    "rejected_response": ("nein", "not a known column"),
    "anything": ({"a": [1]}, "not a known column; rename it to what it is"),
    "x" * 500: (1, "x{40}…"),
}


@pytest.mark.parametrize("column", REFUSED, ids=lambda name: name[:20])
def test_a_column_that_may_say_something_is_refused_by_name(folder, column):
    value, message = REFUSED[column]
    with pytest.raises(InputError, match=f"dataset, row 0: {column}: .*{message}") as error:
        one({**GOOD, column: value}, folder)
    assert f"ignore_columns (--ignore-columns {column[:40]}" in str(error.value) and len(str(error.value)) < 1200
    assert one({**GOOD, column: value}, folder, ignore_columns=[column]) == one(GOOD, folder)
    assert one({**GOOD, column: None}, folder) == one(GOOD, folder), "null says nothing"


MISNAMED = (
    "image_path image_paths img imgs picture image_file image_url file_name Image pixel_values photo imagePath IMG"
).split()


@pytest.mark.parametrize("column", MISNAMED)
def test_a_misnamed_image_is_an_error_that_names_the_right_column(folder, column):
    with pytest.raises(InputError, match=f"{column}: is not read, so the row would have no image; rename it to"):
        one({**TEXT, column: "a.png"}, folder)
    with pytest.raises(InputError, match=f"{column}: is not read"):
        one({**TEXT, column: "a.png"}, folder, kind=PromptRow)


def test_an_image_path_is_a_note_beside_the_image_alone(folder):
    row = {"question": "is it red?", **PAIR, "image_path": "coco/1.jpg"}
    assert one({**row, "image": "a.png"}, folder).images == (folder / "a.png",)
    for image in ({}, {"image": None}, {"image": {"bytes": None, "path": None}}):
        with pytest.raises(InputError, match="image_path: is not read|images: an image must be a path"):
            one({**row, **image}, folder)


def test_all_unread_columns_are_named_at_once(folder):
    row = {**GOOD, "videos": ["a.mp4"], "weight": 1.0}
    with pytest.raises(InputError, match=r"not read either: weight\).*--ignore-columns videos,weight\)"):
        one(row, folder)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**GOOD, "prompt": "<video>what happens?"}, "prompt: the prompt has <video>"),
        ({**GOOD, "prompt": [{"role": "user", "content": [{"type": "text", "text": "<audio>?"}]}]}, "has <audio>"),
        ({**GOOD, "prompt": [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}]}, "of type 'video'"),
        ({**GOOD, "prompt": [{"role": "user", "content": "q", "images": ["a.png"]}]}, "a message has 'images'"),
        ({**GOOD, "chosen": [{"role": "assistant", "content": "yes", "weight": 0}]}, "chosen: a message has 'weight'"),
        ({**GOOD, "chosen": {"role": "assistant", "content": "yes", "tool_calls": [1]}}, "a message has 'tool_calls'"),
        ({"conversations": [{**HUMAN[0], "loss": 1}], **GPT, "image": "a.png"}, "conversations: a message has 'loss'"),
        ({"text": json.dumps({"question": "q", **PAIR, "video": "a.mp4"}), "image": "a.png"}, "text: its 'video'"),
        ({"text": json.dumps({"question": "q", **PAIR}), "chosen": "other"}, "chosen: is not read beside text"),
        ({**PUBLISHED["MMInstruction/VLFeedback"], "rejected": "nein"}, "rejected: is not read beside"),
        ({**PUBLISHED["ms-swift, a response"], "rejected": "nein"}, "all give the rejected answer; keep one"),
        ({**PUBLISHED["ms-swift, messages"], "rejected_images": ["b.png"]}, "gives the rejected answer other images"),
        (
            {**PUBLISHED["ms-swift, messages"], "rejected_messages": [{**USER, "content": "?"}, ANSWERS["rejected"]]},
            "rejected_messages: is not messages with another answer",
        ),
        ({"images": [], "chosen": [USER, ANSWERS["chosen"]], "rejected": [ANSWERS["rejected"]]}, "differ before"),
        ({**PUBLISHED["Qwen, the image in its part"], "images": ["a.png"]}, "both inside the prompt's parts and in a"),
        ({**PUBLISHED["Qwen, the image in its part"], "image": "b.png"}, "both inside the prompt's parts and in a"),
        ({**GOOD, "instruction": "x", "prompt": None}, "rename 'instruction' to prompt"),
    ],
)
def test_what_stands_deeper_in_a_row_is_not_dropped_either(folder, row, message):
    with pytest.raises(InputError, match=f"^dataset, row 0: .*{message}"):
        one(row, folder)


def part(**says) -> dict:
    content = [{"type": "image", **says}, {"type": "text", "text": "is it red?"}]
    return {"prompt": [{"role": "user", "content": content}], **PAIR}


def test_a_parts_image_is_a_path_bytes_or_base64(folder):
    encoded = base64.b64encode((folder / "a.png").read_bytes()).decode()
    for says in (
        {"image": "a.png"},
        {"path": "a.png"},
        {"url": "a.png"},
        {"base64": encoded},
        {"image": f"data:image/png;base64,{encoded}"},
        {"image": Image.open(folder / "a.png")},
        {"image": {"bytes": (folder / "a.png").read_bytes(), "path": None}},
    ):
        (image,) = one(part(**says), folder).images
        assert open_image(image, "") == picture(folder)


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ({"image": "https://x.y/a.png"}, "is a URL; nothing is fetched"),
        ({"image": "a.png", "max_pixels": 50176}, "sets max_pixels .* processor's own settings"),
        ({"image": "a.png", "min_pixels": 3136}, "sets min_pixels"),
        ({"image": "a.png", "resized_height": 28}, "sets resized_height"),
        ({"image": "a.png", "path": "b.png"}, "names its image twice, as image and path"),
        ({"image": "a.png", "alt": "a car"}, "a part has 'alt', which is not read"),
        ({"image": "../a.png"}, "outside the image folder"),
    ],
)
def test_a_part_that_says_more_is_refused(folder, says, message):
    with pytest.raises(InputError, match=message):
        one(part(**says), folder)


def test_images_in_some_parts_alone_are_refused(folder):
    content = [{"type": "image", "image": "a.png"}, {"type": "image"}, {"type": "text", "text": "?"}]
    with pytest.raises(InputError, match="1 of 2 image parts name their image"):
        one({"prompt": [{"role": "user", "content": content}], **PAIR}, folder)
    low = [{"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}}]
    with pytest.raises(InputError, match="sets detail for its image"):
        one({"prompt": [{"role": "user", "content": low}], **PAIR}, folder)


def test_base64_goes_through_the_one_door(folder):
    data = (folder / "a.png").read_bytes()
    encoded = base64.b64encode(data).decode()
    wrapped = "\n".join(encoded[at : at + 76] for at in range(0, len(encoded), 76))
    for value in (encoded, wrapped, f"data:image/png;base64,{encoded}", f"DATA:image/PNG;BASE64,{encoded}", data):
        (image,) = one({**GOOD, "image": value}, folder).images
        assert isinstance(image, StoredImage) and image.read() == data
    postscript = base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n" + bytes(200)).decode()
    (image,) = one({**GOOD, "image": f"data:image/eps;base64,{postscript}"}, folder).images
    with pytest.raises(InputError, match="cannot identify it as BMP, GIF"):
        open_image(image, "row 0")


LONG = "A" * 200_000


@pytest.mark.parametrize(
    "row",
    [
        {**GOOD, "image": f"data:image/png;base64,{LONG}!"},
        {**GOOD, "image": f"data:image/png,{LONG}"},
        {**GOOD, "image": f"data:text/plain;base64,{LONG}"},
        {**GOOD, "image": f"/9j/{LONG}A"},
        {**GOOD, "image": f"https://x.y/{LONG}"},
        {**GOOD, "image": f"../{LONG}"},
        {**GOOD, "image": f"{LONG}\t"},
        {**GOOD, "id": [LONG]},
        {**GOOD, "id": LONG},
        {**GOOD, LONG: 1},
        {**{f"{LONG}{at}": at for at in range(50)}, "chosen": "a"},
        {**GOOD, "prompt": [{"role": "user", "content": [{"type": LONG}]}]},
        {**GOOD, "prompt": [{"role": "user", LONG: 1, "content": "?"}]},
        {**GOOD, "prompt": [{LONG: LONG}]},
        {**GOOD, "chosen": [{"role": LONG, "content": "x"}]},
        {"conversations": [{"from": LONG, "value": LONG}], **GPT},
        {"completions": LONG},
        {"text": LONG},
    ],
)
def test_no_message_prints_a_long_value_whole(folder, tmp_path, row):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (row, {**row, "image": "a.png"})))
    with pytest.raises(InputError) as error:  # an id may be long: it is named when it comes again
        read_rows(path, folder)
    assert len(str(error.value)) < 2000 and "A" * 1000 not in str(error.value)


def test_an_image_that_is_base64_of_nothing_is_named_in_short(folder):
    (image,) = one({**GOOD, "image": f"data:image/png;base64,{LONG}"}, folder).images
    with pytest.raises(InputError, match="does not decode") as error:
        open_image(image, "row 0")
    assert len(str(error.value)) < 300
