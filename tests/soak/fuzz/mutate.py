"""Values, bytes and words that nobody means to write, drawn from a seed."""

import json
from random import Random
from typing import Any

NASTY: tuple[Any, ...] = (
    float("inf"), float("-inf"), float("nan"), -1, 0, 1, 2, 0.5, 1e-300, 10**30, -(10**30), 2**31, 2**63, True, False,
    None,
    "", " ", "\x00", "a\x00b", "\x1b[31mred", "\u202e\u0301é", "\ud800", "x" * 5000, "nan", "1e999", "true", "no",
    "none",
    "null", "[]", "{}", "{", "a=b", "a=b,c=", "%s", "{0}", "folder", "folder/", "fifo", "missing", "missing/deep",
    "empty",
    "binary", "/dev/null", "/dev/full", "/proc/self/mem", "-", "--", "--beta", ",", "a,b", "(((", "(a+)+$", "*",
    "2024-13-45",
    [], [[]], [None], [1, "x"], ["x"], [True, 1e5], [float("nan")], {}, {"": ""}, {"a": {"b": [1]}}, {"a": None},
    {"1": 2},
)  # fmt: skip
# Where a mapping is expected: keys that the libraries know, with values that they do not.
MAPPINGS: dict[str, tuple[str, ...]] = {
    "lr_scheduler_kwargs": ("min_lr", "num_cycles", "power", "factor", "patience", "lr_end", "timescale",
        "num_decay_steps", "x"),
    "accelerator_config": ("split_batches", "dispatch_batches", "even_batches", "use_seedable_sampler", "non_blocking",
                           "gradient_accumulation_kwargs", "use_configured_state"),
    "parallelism_config": ("dp_replicate_size", "tp_size", "cp_size"),
    "fsdp_config": ("version", "min_num_params", "xla", "transformer_layer_cls_to_wrap", "backward_prefetch",
        "activation_checkpointing"),
    "gradient_checkpointing_kwargs": ("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "context_fn",
        "offload"),
    "activation_checkpointing_kwargs": ("use_reentrant", "every_n_layers", "offload"),
    "chat_template_kwargs": ("enable_thinking", "messages", "tokenize", "add_generation_prompt", "tools", "x"),
    "liger_kernel_config": ("rope", "swiglu", "x"),
    "deepspeed": ("zero_optimization", "train_batch_size", "fp16"),
}  # fmt: skip
WORDS: dict[str, tuple[str, ...]] = {
    "lr_scheduler_type": ("linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt",
        "reduce_lr_on_plateau",
                          "cosine_with_min_lr", "warmup_stable_decay", "greedy"),
    "optim": ("adamw_torch", "adamw_8bit", "galore_adamw", "apollo_adamw", "lomo", "sgd", "adafactor", "rmsprop",
        "grokadamw",
              "schedule_free_adamw", "adamw_anyprecision", "adagrad", "stable_adamw", "adamw_torch_4bit",
              "adamw_apex_fused"),
    "save_strategy": ("no", "steps", "epoch", "best"), "eval_strategy": ("no", "steps", "epoch"),
    "logging_strategy": ("no", "epoch"),
    "negative": ("crop_0_20", "black", "noise", "crop_", "crop_100_0", "crop_-1_5", "crop_nan_nan", "random", "blur",
        "rotate"),
    "reference": ("start", "base"), "dtype": ("float16", "float64", "bf16", "int8"),
    "debug": ("underflow_overflow", "tpu_metrics_debug"),
    "log_level": ("debug", "detail", "passive", "quiet", "warning"), "log_level_replica": ("critical", "x"),
    "torch_compile_mode": ("default", "max-autotune", "fast"), "torch_compile_backend": ("inductor", "eager", "x"),
    "ddp_backend": ("nccl", "gloo", "mpi"), "report_to": ("all", "none", "wandb", "tensorboard", "mlflow"),
    "metric_for_best_model": ("loss", "eval_loss", "rewards/margins", "x"),
    "anchors": ("chosen", "rejected", "chosen,rejected", "x"),
    "lora_target_modules": ("all-linear", "q_proj", ".*", "(", "(a+)+$"),
    "chat_template": ("{{", "{% for %}", "{{ 1/0 }}", "x"),
    "fsdp": ("full_shard", "full_shard auto_wrap", "x"),
    "resume_from_checkpoint": ("true", "false", "folder", "checkpoint-1"),
    "include_num_input_tokens_seen": ("all", "non_padding"), "dataloader_multiprocessing_context": ("fork", "x"),
    "optim_args": ("momentum=0.9", "lr=x", "betas=1", "momentum=nan", "weight_decay=-1", "foreach=2"),
}  # fmt: skip


# By the type of a setting, what passes the first look at it.
FITTING: dict[type, tuple[Any, ...]] = {
    int: (0, 1, 2, 3, 7, -1, 1000, 65536, 2**31 - 1, 2**31, 2**32, 2**63 - 1),
    float: (0, 0.0, 1e-300, 1e-45, 0.3, 1, 2.5, 1e5, 1e30, 1e300, -0.0, -1e-300),
    bool: (True, False),
    str: ("", " ", "x", "folder", "fifo", "missing", "empty", "binary", "train.jsonl", "model", "/dev/null",
        "/dev/full", "a,b", "é\u0301",
          "\x1b[31mred", "x" * 5000, "{{ x", "owner/name", "http://127.0.0.1:1/x", "file://x", "model/config.json"),
    dict: ({}, {"x": 1}, {"x": {"y": None}}, {"": []}),
    list: ([], ["x"], ["x", "x"], [""], [0.5], [1, 2, 3]),
}  # fmt: skip


def value_for(random: Random, name: str, kinds: tuple[type, ...]) -> Any:
    """A value for a setting of one of ``kinds``: one of the nasty ones, one that fits its type, a wrong or right word
    of its own, or a mapping of its own keys."""
    kind = random.random()
    fitting = [value for kind in kinds for value in FITTING.get(kind, ())]
    if name not in MAPPINGS and name not in WORDS and kind < 0.6 and fitting:
        return random.choice(fitting)
    if name in MAPPINGS and kind < 0.6:
        keys = random.sample(MAPPINGS[name], k=min(len(MAPPINGS[name]), random.choice((1, 1, 2))))
        return {key: random.choice(NASTY) for key in keys}
    if name in WORDS and kind < 0.6:
        return random.choice(WORDS[name])
    return random.choice(NASTY)


def mutate_json(random: Random, value: Any) -> Any:
    """The value with one place in it changed: replaced, left out, doubled, renamed, or wrapped."""
    places = list(_places(value))
    if not places:
        return random.choice(NASTY)
    holder, key = random.choice(places)
    change = random.choice(("replace", "replace", "replace", "remove", "rename", "wrap", "double"))
    if change == "remove":
        del holder[key]
    elif change == "rename" and isinstance(holder, dict):
        holder[str(random.choice(NASTY))[:20]] = holder.pop(key)
    elif change == "wrap":
        holder[key] = random.choice(([holder[key]], {"x": holder[key]}, str(holder[key])))
    elif change == "double" and isinstance(holder, list):
        holder.append(holder[key])
    else:
        holder[key] = random.choice(NASTY)
    return value


def _places(value: Any) -> Any:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def mutate_bytes(random: Random, content: bytes) -> bytes:
    """The bytes with something cut, flipped, doubled, put in, or with what a text file should not begin with."""
    at = random.randrange(len(content) + 1)
    to = min(len(content), at + random.choice((1, 1, 4, 40, 4000)))
    return random.choice(
        (
            lambda: content[:at],
            lambda: content[:at] + content[to:],
            lambda: content[:at] + random.randbytes(to - at) + content[to:],
            lambda: content[:to] + content[at:],
            lambda: b"\xef\xbb\xbf" + content,
            lambda: content.decode("latin-1").encode("utf-16"),
            lambda: b"",
            lambda: (
                content[:at]
                + random.choice((b"\x00", b"\xff", b"\x1b[2J", b"\t", b"\n", b"{", b"]", b'"'))
                + content[at:]
            ),
        )
    )()


def mutate_file(random: Random, name: str, content: bytes) -> bytes:
    """By its JSON where it has any, else by its bytes.

    A safetensors file's header is JSON after eight bytes of length.
    """
    if random.random() < 0.25:
        return mutate_bytes(random, content)
    try:
        if name.endswith(".safetensors"):
            size = int.from_bytes(content[:8], "little")
            header = json.dumps(mutate_json(random, json.loads(content[8 : 8 + size]))).encode("utf-8", "surrogatepass")
            return len(header).to_bytes(8, "little") + header + content[8 + size :]
        if name.endswith(".jsonl"):
            rows = [json.loads(line) for line in content.splitlines()]
            mutated = mutate_json(random, rows)
            lines = [json.dumps(row) for row in mutated] if isinstance(mutated, list) else [json.dumps(mutated)]
            return "".join(f"{line}\n" for line in lines).encode()
        return json.dumps(mutate_json(random, json.loads(content))).encode()
    except ValueError:
        return mutate_bytes(random, content)


YAML_SNIPPETS = (
    b"!!python/object/apply:os.system ['x']", b"!!binary aGk=", b"!x y", b"&a [*a]", b"*nowhere", b"<<: 3",
    b"<<: {a: b}",
    b"---\na: 1\n---\nb: 2", b"\ttab: 1", b"? [a, b]\n: c", b"? {a: b}\n: c", b"1: 2", b"true: 1", b"~: 1", b"'': 1",
    b": 1", b"- a",
    b"beta: &b 0.1\nanchor: *b", b"beta: 0.1\nbeta: 0.2", b"beta: |\n  0.1", b"beta: >-\n  0.1", b"beta: 0x10",
    b"beta: 1_0",
    b"beta: 1:30", b"beta: !!float x", b"seed: !!int 'x'", b"%YAML 9.9\n---\na: b", b"a: [", b"a: {", b"a: 'x",
    b'a: "\\q"',
    b'system_prompt: "\\0"', b"\xff\xfe", b"\x00", b"beta: \xc3\x28", b"system_prompt: \xef\xbf\xbf", b"beta: .nan",
    b"beta: -.inf",
    b"lr_scheduler_kwargs: {a: &c {b: *c}}", b"token-budget: 5", b"token_budget: 400\ntoken-budget: 5", b"a" * 70000,
    b"[" * 3000,
    b"x: &a [1]\ny: [" + b"*a, " * 40 + b"1]", b"seed: 2001-01-01", b"seed: 2001-99-99",
    b"output_dir: 2001-01-01 10:00:00",
)  # fmt: skip


def mutate_yaml(random: Random, content: bytes) -> bytes:
    for _ in range(random.choice((1, 1, 2, 3))):
        if random.random() < 0.5:
            content = mutate_bytes(random, content)
            continue
        lines = content.split(b"\n")
        at = random.randrange(len(lines) + 1)
        content = b"\n".join([*lines[:at], random.choice(YAML_SNIPPETS), *lines[at:]])
    return content


def mutate_words(random: Random, words: list[str], options: list[str]) -> list[str]:
    """A command line with something missing, more, doubled, shortened or nonsensical."""
    words = list(words)
    for _ in range(random.choice((1, 1, 2, 3))):
        at = random.randrange(len(words)) if words else 0
        nasty = word(random)
        change = random.randrange(10)
        if change == 0 and words:
            del words[at]
        elif change == 1 and words:
            words.insert(at, words[random.randrange(len(words))])
        elif change == 2:
            words.insert(at, random.choice(options))
        elif change == 3:
            words += [random.choice(options), nasty]
        elif change == 4:
            words.append(f"{random.choice(options)}={nasty}")
        elif change == 5:
            option = random.choice(options)
            words += [option[: random.randint(3, len(option))], nasty]
        elif change == 6 and words:
            other = random.randrange(len(words))
            words[at], words[other] = words[other], words[at]
        elif words:
            words[at] = nasty
    return words


_WORDS = (
    "caf\udce9", "--output", "--key=", "-x", "@file", "train.jsonl", "model", "x" * 200_000, "24GiB", "1e9GiB", "0.1b",
    "9" * 400 + "GiB", "auto", ".", "~no such user/x", '{"a": 1}', "https://127.0.0.1:1/x",
)  # fmt: skip


def word(random: Random) -> str:
    value = random.choice((*NASTY, *_WORDS))
    return value if isinstance(value, str) else json.dumps(value) if isinstance(value, (list, dict)) else str(value)
