"""Settings that decide how rows become text, shared by training, scoring and generation, and their options."""

import argparse
import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta
from jinja2.ext import Extension
from transformers import ProcessorMixin

from mdpo.errors import InputError

# Arguments that are no variables of a template; older versions of transformers do not name all in the signature.
_SET_ELSEWHERE = {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "tokenize"}


@dataclass(frozen=True, slots=True)
class TextOptions:
    """Settings of the text that the model reads.

    system_prompt: a system turn for rows that have none of their own.
    chat_template: a Jinja template, or the path of a file that contains one, instead of the processor's.
    chat_template_kwargs: variables for the template, such as ``{"enable_thinking": False}``; a row's own win.
    prompt_is_rendered: whether a prompt that is plain text already contains the template's turns; None: recognise it.
    """

    system_prompt: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    prompt_is_rendered: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.chat_template_kwargs, Mapping | None):
            kind = type(self.chat_template_kwargs).__name__
            raise InputError(f"chat_template_kwargs: a {kind}; give the template's variables by name")

    @classmethod
    def of(cls, settings: Any) -> "TextOptions":
        """From a run's settings, an ``MDPOConfig``."""
        return cls(
            settings.system_prompt,
            settings.chat_template,
            settings.chat_template_kwargs,
            settings.prompt_is_rendered,
        )

    def values(self) -> dict[str, Any]:
        """These settings by name, the template by its content. Raises InputError as ``read_template``."""
        return asdict(self) | {"chat_template": self.chat_template and read_template(self.chat_template)}

    def digest(self) -> str:
        """A short name of these settings. Raises InputError as ``read_template``."""
        text = json.dumps(self.values(), sort_keys=True, default=str)
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def text_options(options: argparse.Namespace) -> TextOptions:
    """The options of ``mdpo.commands.rows.add_text_options`` as ``TextOptions``.

    Raises InputError if --chat-template-kwargs is not a JSON object.
    """
    kwargs = options.chat_template_kwargs
    if kwargs is not None:
        try:
            kwargs = json.loads(kwargs)
        except (ValueError, RecursionError) as error:
            raise InputError(f"--chat-template-kwargs: not JSON ({error}); give an object, such as {{}}") from error
    rendered = {"true": True, "false": False, None: None}[options.prompt_is_rendered]
    # As in a training configuration, none is no text.
    system, template = (
        None if str(text).lower() in ("none", "null") else text
        for text in (options.system_prompt, options.chat_template)
    )
    return TextOptions(system, template, kwargs, rendered)


def read_template(setting: str) -> str:
    """The template that the setting ``chat_template`` means: itself, or the content of the file at that path.

    Raises InputError if it is neither a Jinja template nor a readable file.
    """
    if "{%" in setting or "{{" in setting or "\n" in setting:
        return setting
    try:
        path = Path(setting).expanduser()
        if not path.is_file():  # reading a named pipe would wait for ever
            raise FileNotFoundError
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a home directory that is not known
        problem = f"{setting[:80]!r} is neither a Jinja template nor a file that can be read"
        raise InputError(f"chat_template: {problem} ({type(error).__name__}); give one of the two") from error


def resolve_template(processor: ProcessorMixin, setting: str | None) -> str:
    """The template in use: the setting's, else the processor's, else its tokenizer's.

    Raises InputError if there is none, if there are several and none is named "default", or if it is not valid Jinja.
    """
    if setting is not None:
        template = read_template(setting)
    else:
        found: Any = getattr(processor, "chat_template", None)
        if not found:  # transformers' processors do not look there themselves
            found = getattr(getattr(processor, "tokenizer", None), "chat_template", None)
        if not found:
            raise InputError(
                "the processor has no chat template; save it with the one that the model was tuned with, or set "
                "chat_template"
            )
        if isinstance(found, Mapping):
            if "default" not in found and len(found) > 1:
                raise InputError(
                    f"chat_template: the processor has {', '.join(sorted(found))} and none named default; set one "
                    "of them"
                )
            found = found["default"] if "default" in found else next(iter(found.values()))
        template = found
    try:
        _environment().parse(template)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(
            f"chat_template: not a Jinja template (line {error.lineno}: {error.message}); fix it"
        ) from error
    return template


def check_kwargs(processor: ProcessorMixin, template: str, kwargs: Mapping[str, Any]) -> str | None:
    """What is wrong with variables that are meant for the template; None if nothing is."""
    if not kwargs:
        return None
    taken = inspect.signature(type(processor).apply_chat_template).parameters.keys() | _SET_ELSEWHERE
    known = meta.find_undeclared_variables(_environment().parse(template))
    for name in kwargs:
        if name in taken:
            return f"{name!r} is not a variable of the template but an argument that is set elsewhere"
        if name not in known:
            return f"the chat template does not read {str(name)[:40]!r}"
    return None


class _Generation(Extension):
    """Parses ``{% generation %}``, with which templates mark what the assistant says. Nothing here renders it."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


EXTENSIONS = [_Generation, "jinja2.ext.loopcontrols"]  # of Jinja, which chat templates may use


def _environment() -> jinja2.Environment:
    return jinja2.Environment(extensions=EXTENSIONS)
