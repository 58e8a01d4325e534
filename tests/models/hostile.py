"""Folders as somebody who means harm would publish them: each tries to run code or to be fetched from elsewhere."""

import json
from pathlib import Path

CODE = "import pathlib\npathlib.Path({marker!r}).write_text('ran')\nclass Evil:\n    pass\n"


def update(path: Path, **values) -> None:
    """Sets keys of a JSON file."""
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **values}))


def _code(folder: Path, marker: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(CODE.format(marker=str(marker)))


def auto_map(folder: Path, marker: Path) -> None:
    _code(folder, marker, "evil.py")
    kinds = ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoModelForCausalLM")
    update(folder / "config.json", auto_map=dict.fromkeys(kinds, "evil.Evil"))


def unknown_type(folder: Path, marker: Path) -> None:
    auto_map(folder, marker)
    update(folder / "config.json", model_type="evil")


def from_the_hub(folder: Path, marker: Path) -> None:
    update(folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil/repository--evil.Evil"})


def tokenizer(folder: Path, marker: Path) -> None:
    _code(folder, marker, "evil.py")
    update(
        folder / "tokenizer_config.json",
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]},
    )


def processor(folder: Path, marker: Path) -> None:
    _code(folder, marker, "evil.py")
    kinds = ("AutoProcessor", "AutoImageProcessor")
    update(folder / "processor_config.json", processor_class="Evil", auto_map=dict.fromkeys(kinds, "evil.Evil"))
    update(folder / "preprocessor_config.json", image_processor_type="Evil", auto_map=dict.fromkeys(kinds, "evil.Evil"))


def audio_tokenizer(folder: Path, marker: Path) -> None:
    named = {"audio_tokenizer_class": "DacModel", "audio_tokenizer_name_or_path": "evil/repository"}
    update(folder / "processor_config.json", audio_tokenizer=named)


def kernel(folder: Path, marker: Path) -> None:
    update(folder / "config.json", attn_implementation="evil/kernel")


def generation(folder: Path, marker: Path) -> None:
    _code(folder, marker, "custom_generate/generate.py")
    update(folder / "generation_config.json", penalty_alpha=0.6, top_k=4)


def dola(folder: Path, marker: Path) -> None:
    update(folder / "generation_config.json", dola_layers="high")


def no_tokenizer(folder: Path, marker: Path) -> None:
    (folder / "tokenizer.json").unlink()
    update(folder / "tokenizer_config.json", name_or_path="evil/repository")


def adapter_beside(folder: Path, marker: Path) -> None:
    update(folder / "adapter_config.json", peft_type="LORA", base_model_name_or_path="evil/repository")


def no_weights(folder: Path, marker: Path) -> None:
    (folder / "model.safetensors").unlink()


MODELS = {
    make.__name__: make
    for make in (
        auto_map,
        unknown_type,
        from_the_hub,
        tokenizer,
        processor,
        audio_tokenizer,
        kernel,
        generation,
        dola,
        no_tokenizer,
        adapter_beside,
        no_weights,
    )
}


def adapter_without_weights(folder: Path, marker: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def adapter_of_a_pickle(folder: Path, marker: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def adapter_of_another_base(folder: Path, marker: Path) -> None:
    update(folder / "adapter_config.json", base_model_name_or_path="evil/repository", revision="main")


def adapter_of_adapters(folder: Path, marker: Path) -> None:
    update(folder / "adapter_config.json", peft_type="XLORA", adapters={"a": "evil/repository"})


def adapter_with_a_tokenizer(folder: Path, marker: Path) -> None:
    update(
        folder / "adapter_config.json",
        peft_type="PROMPT_TUNING",
        prompt_tuning_init="TEXT",
        num_virtual_tokens=4,
        prompt_tuning_init_text="x",
        tokenizer_name_or_path="evil/repository",
        tokenizer_kwargs={"trust_remote_code": True},
    )


ADAPTERS = {
    make.__name__: make
    for make in (
        adapter_without_weights,
        adapter_of_a_pickle,
        adapter_of_another_base,
        adapter_of_adapters,
        adapter_with_a_tokenizer,
    )
}
