"""Options of commands that read rows, and text and images as a model does."""

import argparse
from pathlib import Path

MODEL = "base model with its processor: folder, or owner/name[@revision] on the hub"
ADAPTER = "PEFT adapter: folder, or owner/name[@revision] on the hub"
DTYPE = "dtype of the weights: auto, bfloat16, float16 or float32 (default: %(default)s)"
RESULT = "JSON file for mdpo report, such as one in the run's folder; an earlier result is replaced"


def add_row_options(command: argparse.ArgumentParser) -> None:
    """How a command reads rows: ``image_dir``, ``allow_outside`` and ``ignore_columns``."""
    command.add_argument("--image-dir", type=Path, help="folder of the images (default: the data file's folder)")
    command.add_argument(
        "--allow-outside", action="store_true", help="let image paths and links lead out of the image folder"
    )
    command.add_argument(
        "--ignore-columns", type=_columns, default=[], metavar="A,B", help="columns to leave out when rows are read"
    )


def _columns(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def add_text_options(command: argparse.ArgumentParser) -> None:
    """How a command turns rows into text; ``mdpo.data.text_options`` reads them back."""
    group = command.add_argument_group("text", "as in training, so that the model reads the same text")
    group.add_argument("--system-prompt", metavar="TEXT", help="system turn for rows that have none of their own")
    group.add_argument(
        "--chat-template", metavar="JINJA", help="template, or path of a .jinja file (default: the processor's)"
    )
    group.add_argument("--chat-template-kwargs", metavar="JSON", help="variables for the chat template, a JSON object")
    group.add_argument(
        "--prompt-is-rendered",
        choices=("true", "false"),
        help="whether plain-text prompts already contain the template's turns (default: recognised row by row)",
    )


def add_size_options(command: argparse.ArgumentParser) -> None:
    """How large images are for the model; ``mdpo.data.picture_size`` reads them back."""
    group = command.add_argument_group("images", "as in training, so that the model sees the same")
    group.add_argument(
        "--max-pixels", type=int, metavar="N", help="maximum number of pixels of an image (default: the processor's)"
    )
    group.add_argument(
        "--min-pixels", type=int, metavar="N", help="minimum number of pixels of an image (default: the processor's)"
    )
    group.add_argument(
        "--image-processor-kwargs", metavar="JSON", help="the same by the image processor's own names, a JSON object"
    )
