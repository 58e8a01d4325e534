"""What the study asks: each item is a table or figure of the paper, or goes beyond it, as rows of settings.

The paper's numbers are Wang et al., EMNLP 2024 (arXiv 2406.11839), of Bunny-v1.0-3B, one run each: MMHalBench's score,
or Object HalBench's CHAIR_s where that says more. A number that we could not look up is not there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from bench.study.questions import TYPES
from bench.study.runs import Setting

TUNED = Setting(overrides=None, pairs=0)
NO_TERMS = ("--conditional", "false", "--anchors", "[]")
DPO = Setting(overrides=NO_TERMS)
MDPO = Setting()
CAPTION_SCORES = ("chair_i", "chair_s", "cover", "partner_rate", "win_rate", "log_ratio")


class Row(NamedTuple):
    """method: what is trained. paper: the paper's number of this row, if it has one. x: where on the figure's axis it
    is; None in a table."""

    method: str
    setting: Setting
    paper: float | None = None
    x: float | None = None

    @property
    def label(self) -> str:
        return self.method if self.x is None else f"{self.method}, {self.x:,g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """paper_score: what the paper's numbers are; higher_is_better says which way. x: what a figure's axis shows."""

    name: str
    title: str
    question: str
    rows: Sequence[Row]
    scores: Sequence[str] = CAPTION_SCORES
    main_score: str = "chair_s"
    """The score of the differences and of the order."""
    paper_score: str = ""
    higher_is_better: bool = True
    seeds: range = range(5)
    reference: str = "mDPO"
    """The row that the others are compared with, seed by seed."""
    x: str = ""


def _with(setting: Setting, *overrides: str) -> Setting:
    return replace(setting, overrides=(*(setting.overrides or ()), *overrides))


def _methods(x: Sequence[tuple[float, dict, tuple[str, ...]]]) -> list[Row]:
    """DPO and mDPO at each point of an axis: (where on it, fields of the setting, overrides)."""
    return [
        Row(method, _with(replace(setting, **fields), *overrides), x=value)
        for method, setting in (("DPO", DPO), ("mDPO", MDPO))
        for value, fields, overrides in x
    ]


RANDOM_IMAGE = _with(MDPO, "--negative", "random_image")

FIGURE_1 = Item(
    name="figure-1",
    title="Figure 1: does DPO use the image?",
    question="The paper: DPO without images does as well as DPO with them; mDPO does better than both.",
    rows=(
        Row("tuned", TUNED, 2.11),
        Row("DPO", DPO, 2.28),
        Row("DPO, no image", _with(DPO, "--drop_images", "true")),
        Row("mDPO", MDPO, 2.96),
        Row("mDPO, random image", RANDOM_IMAGE),
    ),
    paper_score="MMHalBench score",
    reference="DPO",
    seeds=range(10),  # the claim that all else rests on; DPO's harm differs much from seed to seed
)
TABLE_2 = Item(
    name="table-2",
    title="Table 2: which term does it",
    question="The paper: the image preference carries most of the gain, the anchor the rest.",
    rows=(
        Row("mDPO", MDPO, 2.96),
        Row("− conditional", Setting(overrides=("--conditional", "false")), 2.36),
        Row("− anchor", Setting(overrides=("--anchors", "[]")), 2.50),
        Row("− both (DPO)", DPO, 2.28),
    ),
    paper_score="MMHalBench score",
)
TABLE_3 = Item(
    name="table-3",
    title="Table 3: what the rejected image is",
    question="The paper: a hard negative that keeps little of the image is best.",
    rows=(
        Row("crop 0–20%", MDPO, 2.96),
        Row("crop 20–50%", _with(MDPO, "--negative", "crop_20_50"), 2.92),
        Row("MoCo v2", _with(MDPO, "--negative", "moco_v2"), 2.82),
        Row("random image", RANDOM_IMAGE, 2.81),
    ),
    paper_score="MMHalBench score",
    reference="crop 0–20%",
)
TABLE_4 = Item(
    name="table-4",
    title="Table 4: what is anchored",
    question="The paper: the anchor on the chosen answer is enough; more anchors bring nothing.",
    rows=(
        Row("y_w", MDPO),
        Row("y_w, y_l", _with(MDPO, "--anchors", "[chosen,rejected]")),
        Row("y_w, y_l, m_l", _with(MDPO, "--anchors", "[chosen,rejected,image_rejected]")),
    ),
    reference="y_w",
)
FIGURE_5 = Item(
    name="figure-5",
    title="Figure 5: more pairs",
    question="The paper: mDPO gains from more pairs, DPO does not.",
    rows=_methods([(pairs, {"pairs": pairs}, ()) for pairs in (250, 500, 1000, 2000, 4000, 8000)]),
    reference="",
    x="preference pairs",
)
TABLE_5 = Item(
    name="table-5",
    title="Table 5: by type of question",
    question=(
        "The paper: mDPO gains most on adversarial questions, whose premise is false (1.50 → 4.17), and loses a "
        "little on attributes (3.25 → 3.08)."
    ),
    rows=tuple(
        row._replace(setting=replace(row.setting, world="questions"))
        for row in (Row("tuned", TUNED), Row("DPO", DPO), Row("mDPO", MDPO))
    ),
    scores=("accuracy", *TYPES, "log_ratio"),
    main_score="adversarial",
)
BETA = Item(
    name="beta",
    title="Beyond the paper: β",
    question="Is the order an accident of β = 0.1?",
    rows=_methods([(beta, {}, () if beta == 0.1 else ("--beta", str(beta))) for beta in (0.03, 0.1, 0.3)]),
    reference="",
    x="β",
)
DELTA = Item(
    name="delta",
    title="Beyond the paper: the anchor's δ",
    question="Does it help to ask for more than a reward above zero?",
    rows=tuple(
        Row("mDPO", _with(MDPO, "--anchor", str(delta)) if delta else MDPO, x=delta) for delta in (0.0, 0.5, 1.0)
    ),
    reference="mDPO, 0",
    x="δ, reward units",
)
SHORTCUT = Item(
    name="shortcut",
    title="Beyond the paper: how strong the shortcut must be",
    question="From which share of pairs that a style token gives away does DPO fail?",
    rows=_methods([(share, {"style_probability": share}, ()) for share in (0.0, 0.5, 0.9)]),
    reference="",
    x="share of pairs with the shortcut",
)
CROPS = Item(
    name="crops",
    title="Beyond the paper: which crop the reference sees",
    question=(
        "One crop for all epochs against a fresh one in each; and the authors' bug, in which policy and "
        "reference see different crops."
    ),
    rows=(
        Row("one crop", MDPO),
        Row("a fresh crop each epoch", _with(MDPO, "--negative_per_epoch", "true")),
        Row("another crop for the reference", replace(MDPO, other_crop=True)),
    ),
    reference="one crop",
)
ITEMS = {
    item.name: item for item in (FIGURE_1, TABLE_2, TABLE_3, TABLE_4, FIGURE_5, TABLE_5, BETA, DELTA, SHORTCUT, CROPS)
}

# A setting in which mDPO improves on the tuned model is looked for on SEARCH_SEEDS and confirmed on CONFIRM_SEEDS.
SEARCH_SEEDS, CONFIRM_SEEDS = range(5), range(5, 10)
RARE_PARTNERS = Setting(pairs=4000, partner_probability=0.1)
CANDIDATES = {
    "as everywhere here": MDPO,
    "rejected image random": RANDOM_IMAGE,
    "4,000 pairs, partners rare in them, lr 1e-4": _with(RARE_PARTNERS, "--learning_rate", "1.0e-4"),
}


def as_dpo(setting: Setting) -> Setting:
    """The same data and settings without the image preference and the anchor."""
    return _with(setting, *NO_TERMS)
