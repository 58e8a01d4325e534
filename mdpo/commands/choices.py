"""The words that options may be set to. Tests hold each list to the table or module that knows the word."""

OBJECTIVES = (
    ("dpo", 850, 1500, "nothing more"),
    ("mdpo", 1600, 2250, "an image, 1 rejected image"),
    ("rdpo", 1600, 2250, "an image, 1 rejected image"),
    ("symmpo", 1800, 3750, "an image, 1 rejected image, contrast"),
    ("svco", 1950, 3300, "an image, 1 rejected image, contrast"),
    ("misp", 3100, 3750, "an image, 3 rejected images"),
    ("c2dpo", 1700, 3000, "an image, 1 rejected image"),
    ("mpo", 850, 1500, "nothing more"),
)
"""The preset objectives: name, packed tokens of a usual pair, the same unshared, and what a row needs."""

OBJECTIVE_NAMES = tuple(name for name, *_ in OBJECTIVES)
NEGATIVES = (
    "crop_0_20",
    "crop_20_50",
    "moco_v2",
    "random_image",
    "nearest_image",
    "own",
    "black",
    "diffusion_noise",
    "masked_patches",
)
LAUNCHERS = ("ddp", "fsdp2", "zero2")
ENGINES = ("auto", "transformers", "vllm")
BENCHMARKS = ("amber", "mmhal", "object-halbench")
CHAIR_VARIANTS = ("rohrbach", "rlhfv")
BEAMS = ("greedy", "rlhfv")
RANKINGS = ("judge", "chair", "function", "self", "agreement")
