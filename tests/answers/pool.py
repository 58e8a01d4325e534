"""Files of answers to questions about small pictures."""

import json
from pathlib import Path

from PIL import Image

from mdpo.answers import Answer
from mdpo.data import PromptRow


def picture(path: Path, colour: str = "red", size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def lines(path: Path, *records: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def record(id: str, response: str, **columns: object) -> dict:
    return {"id": id, "image": "a.png", "prompt": "What is it?", "response": response, **columns}


def answer(id: str, response: str, number: int = 0, *, writer: str = "w", tokens: int | None = None) -> Answer:
    """One without a picture."""
    prompt = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}]}]
    return Answer(PromptRow(id, id, (), prompt), response, number, writer, tokens)
