"""Answers drawn by vLLM, where it is installed: the same prompts and the same settings, several times as fast.

Written after the documentation of vLLM 0.11 to 0.22 (``LLM``, ``SamplingParams``, ``TokensPrompt``, ``LoRARequest``).
It has not run with vLLM itself: the tests hold what it is given, by a stand-in of the same names.

vLLM's random numbers are its own, of the seed that each answer gets here. So its answers are others than those that
transformers draws, from the same probabilities.
"""

import argparse
import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from mdpo.data.encode import Encoder
from mdpo.data.images import open_image
from mdpo.data.picture_size import size_options, size_settings
from mdpo.data.problem import RowError
from mdpo.data.text_options import text_options
from mdpo.errors import InputError
from mdpo.evaluation.answer_options import open_processor
from mdpo.evaluation.endings import Endings, Written
from mdpo.evaluation.trained_text import say_other_prompt
from mdpo.hub import folder_of
from mdpo.models.adapters import adapter_config, check_base
from mdpo.models.folder import short
from mdpo.models.proportion import model_config
from mdpo.shown import say

from .draw import Item, Sampling, answer_seed

TRANSFORMERS, VLLM = "transformers", "vllm"
ENGINES = ("auto", TRANSFORMERS, VLLM)
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM reserves room for
_AT_ONCE = 512  # answers that vLLM is given at a time: as many are lost, at the most, where the run is interrupted


def choose_engine(asked: str) -> str:
    """The engine that "auto" stands for here, said where a GPU has to do without vLLM; any other as it is.

    Raises InputError where vLLM is asked for and does not import.
    """
    if asked == TRANSFORMERS or (asked == "auto" and not torch.cuda.is_available()):
        return TRANSFORMERS
    try:
        importlib.import_module("vllm")
    except Exception as error:  # a build for another version of CUDA or PyTorch raises whatever it likes
        problem = (
            "it is not installed" if isinstance(error, ModuleNotFoundError) and error.name == "vllm" else short(error)
        )
        if asked == VLLM:
            raise InputError(
                f"--engine vllm: it does not import ({problem}); install it, or give --engine transformers"
            ) from error
        say(f"engine: transformers, because vLLM does not import: {problem}")
        return TRANSFORMERS
    return VLLM


def engine_versions(engine: str) -> dict[str, str]:
    """The engine's version by its name, where it is none of what every run has."""
    return {VLLM: importlib.import_module("vllm").__version__} if engine == VLLM else {}


def open_vllm(
    options: argparse.Namespace, sampling: Sampling, items: Sequence[Item]
) -> Callable[[Sequence[Item]], Iterator[Written]]:
    """What draws answers by vLLM, from the model and the adapter that the options name.

    items: all that will be drawn: vLLM is told how many images a question has at the most.

    Raises InputError where vLLM does not serve the model.
    """
    return _Vllm(options, sampling, items)


class _Vllm:
    def __init__(self, options: argparse.Namespace, sampling: Sampling, items: Sequence[Item]) -> None:
        self._model, self._sampling = str(options.model), sampling
        self._vllm: Any = importlib.import_module("vllm")
        folder, processor = folder_of(options.model), open_processor(options)
        self._encoder = Encoder(processor, text_options(options))
        self._endings = Endings(self._encoder, _generation_config(folder))
        settings: dict[str, Any] = {"limit_mm_per_prompt": {"image": max(len(row.images) for row, _ in items)}}
        if size_options(options).values():
            settings["mm_processor_kwargs"] = size_settings(processor)
        self._adapter: Any = None
        if options.adapter is not None:
            adapter = folder_of(options.adapter, called="adapter")
            check_base(adapter, folder)
            say_other_prompt(adapter, text_options(options), size_options(options))
            settings |= {"enable_lora": True, "max_lora_rank": _room(adapter)}
            self._adapter = importlib.import_module("vllm.lora.request").LoRARequest(
                adapter.name, 1, str(adapter.resolve())
            )
        try:
            self._engine = self._vllm.LLM(model=str(folder), dtype=options.dtype, **settings)
        except Exception as error:  # as it raises whatever a model leads it to
            raise self._refused(error) from error

    def __call__(self, items: Sequence[Item]) -> Iterator[Written]:
        for start in range(0, len(items), _AT_ONCE):
            yield from self._drawn(items[start : start + _AT_ONCE])

    def _drawn(self, items: Sequence[Item]) -> Iterator[Written]:
        once = {id(row): row for row, _ in items}
        prompts = dict(zip(once, map(self._prompt, once.values()), strict=True))
        try:
            outputs = self._engine.generate(
                [prompts[id(row)] for row, _ in items],
                [self._parameters(item) for item in items],
                use_tqdm=False,
                lora_request=self._adapter,
            )
        except Exception as error:  # as above
            raise self._refused(error) from error
        for output in outputs:
            (answer,) = output.outputs
            yield self._endings.written(list(answer.token_ids))._replace(whole=answer.finish_reason == "stop")

    def _prompt(self, row: Any) -> Any:
        """The ids of training with one placeholder per image, which vLLM expands itself."""
        (ids,) = self._encoder.prompts([row])
        if isinstance(ids, RowError):
            raise ids
        prompt = self._vllm.TokensPrompt(prompt_token_ids=ids)
        if row.images:
            prompt["multi_modal_data"] = {"image": [open_image(image, row.where) for image in row.images]}
        return prompt

    def _parameters(self, item: Item) -> Any:
        return self._vllm.SamplingParams(
            n=1,
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
            max_tokens=self._sampling.max_new_tokens,
            seed=answer_seed(self._sampling.seed, item) % 2**63,
            stop_token_ids=self._endings.stops,
            stop=[self._endings.end] if self._endings.by_text else None,
        )

    def _refused(self, error: Exception) -> InputError:
        return InputError(f"vLLM does not serve {self._model}: {short(error, 300)}; give --engine transformers")


def _generation_config(folder: Path) -> GenerationConfig:
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    return GenerationConfig.from_model_config(model_config(folder))


def _room(adapter: Path) -> int:
    """The least rank that vLLM reserves room for, and that the adapter's fit into."""
    config = adapter_config(adapter)
    if config.get("peft_type") != "LORA":
        raise InputError(
            f"adapter {adapter} is {short(ValueError(config.get('peft_type')), 40)}, and vLLM reads LoRA alone; "
            "give --engine transformers"
        )
    rank = max([config.get("r", 0), *(config.get("rank_pattern") or {}).values()])
    room = next((room for room in _RANKS if room >= rank), None)
    if room is None:
        raise InputError(
            f"adapter {adapter} has rank {rank}, and vLLM reads up to {_RANKS[-1]}; give --engine transformers"
        )
    return room
