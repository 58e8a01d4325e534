"""What the study trains: each row changes a few settings of configs/scenes.yaml, and is compared with other rows.

The rows are run block by block, each block over all seeds before the next, so that a study that is stopped leaves
whole seeds of the first blocks. To add a row, put it into a block and its name into a section of ``SECTIONS``.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

SHARP, SMALL = "sharp", "small"
DPO = ("--objective", "dpo")
LORA = ("--use_lora", "true", "--lora_r", "8", "--lora_alpha", "16", "--learning_rate", "1e-3")
OF_THEME = ("--negative", "own")
"""The rejected image is the row's own: ``bench.scenes.runs`` draws another scene of the same theme for it."""


class Row(NamedTuple):
    """One way to train a base, and the rows of the same base that it is compared with.

    Attributes:
        name: Unique on its base.
        base: A key of ``bench.scenes.base.BASES``.
        overrides: Of configs/scenes.yaml; None for the base as it is.
        against: Names of the rows that it is compared with.
        share: Of the pairs, how many are trained on.
        partners: Whether each pair brings a picture of the same theme, and the caption chosen for that one.
        rounds: Of ``mdpo loop``; 0: trained once, on the pairs of the seed.
        asked: Whether it answers the questions by kind, too.
    """

    name: str
    base: str = SHARP
    overrides: tuple[str, ...] | None = ()
    against: tuple[str, ...] = ()
    share: float = 1.0
    partners: bool = False
    rounds: int = 0
    asked: bool = False

    @property
    def file(self) -> str:
        """The name in what a file may be called."""
        return "".join(character if character.isalnum() else "-" for character in self.name)


def _negative(name: str, of: str, against: tuple[str, ...] = ("mDPO",)) -> Row:
    return Row(name, overrides=("--negative", of), against=against)


def _both(base: str, *, image: Sequence[Row]) -> tuple[Row, ...]:
    """The rows that every base has. image: rows that stand among them."""
    return (
        Row("tuned", base, None, asked=True),
        Row("DPO", base, DPO, ("tuned",), asked=True),
        Row("mDPO", base, (), ("tuned", "DPO"), asked=True),
        Row("mDPO - conditional", base, ("--conditional", "false"), ("mDPO",), asked=True),
        *image,
    )


CORE = (
    *_both(
        SHARP,
        image=(
            Row("DPO, no image", overrides=(*DPO, "--drop_images", "true"), against=("DPO",)),
            Row("mDPO - anchor", overrides=("--anchors", "[]"), against=("mDPO",)),
        ),
    ),
    *_both(SMALL, image=(Row("mDPO, random image", SMALL, ("--negative", "random_image"), ("mDPO",)),)),
)
PRESETS = (
    _negative("mDPO, random image", "random_image"),
    Row("mDPO, random image of the theme", overrides=OF_THEME, against=("mDPO", "mDPO, random image"), partners=True),
    _negative("mDPO, nearest image", "nearest_image"),
    Row("SymMPO", overrides=("--objective", "symmpo", *OF_THEME), against=("mDPO",), partners=True),
    Row("MISP, K = 3", overrides=("--objective", "misp"), against=("mDPO",)),
    Row("C2DPO", overrides=("--objective", "c2dpo"), against=("mDPO",)),
    Row("MPO", overrides=("--objective", "mpo"), against=("mDPO",)),
)
REST = (
    Row("DPO, LoRA", overrides=(*DPO, *LORA), against=("tuned",)),
    Row("mDPO, LoRA", overrides=LORA, against=("tuned", "DPO, LoRA")),
    Row("mDPO, 1 round of the loop", against=("tuned",), rounds=1),
    Row("mDPO, 2 rounds of the loop", against=("mDPO, 1 round of the loop",), rounds=2),
    _negative("mDPO, crop 20-50%", "crop_20_50"),
    _negative("mDPO, MoCo v2", "moco_v2"),
    Row("DPO, 1/4 of the pairs", overrides=DPO, share=1 / 4),
    Row("mDPO, 1/4 of the pairs", share=1 / 4),
    Row("DPO, 1/2 of the pairs", overrides=DPO, share=1 / 2),
    Row("mDPO, 1/2 of the pairs", share=1 / 2),
    Row("mDPO, anchors y_w, y_l", overrides=("--anchors", "[chosen,rejected]"), against=("mDPO",)),
    Row(
        "mDPO, anchors y_w, y_l, m_l",
        overrides=("--anchors", "[chosen,rejected,image_rejected]"),
        against=("mDPO",),
    ),
)
BLOCKS: tuple[tuple[Row, ...], ...] = (CORE, PRESETS, REST)
"""In the order in which they are run."""


class Section(NamedTuple):
    """A table of the page: a table or figure of the paper, or what goes beyond it.

    Attributes:
        figure: Name of the picture that belongs to it, without its ending.
        rows: Names, as they stand in the table.
    """

    title: str
    question: str
    base: str
    rows: tuple[str, ...]
    figure: str = ""

    def against(self, name: str) -> tuple[str, ...]:
        """The rows of this table that one of its rows is compared with."""
        return tuple(other for other in find(self.base, name).against if other in self.rows)


SECTIONS = (
    Section(
        "Figure 1: does DPO use the image?",
        "The paper: DPO does as well without images as with them, and mDPO does better than both.",
        SHARP,
        ("tuned", "DPO", "DPO, no image", "mDPO"),
        "figure-1",
    ),
    Section(
        "Table 2: which term does it",
        "The paper: the image preference carries most of the gain, the anchor the rest. Without both mDPO is DPO.",
        SHARP,
        ("mDPO", "mDPO - conditional", "mDPO - anchor", "DPO"),
    ),
    Section(
        "Table 3: what the rejected image is",
        "The paper: a crop that keeps little of the image is the best. Beyond it: a random image of the same theme, "
        "which the theme alone does not tell from the right one, and the most similar image by the model's own tower.",
        SHARP,
        (
            "mDPO", "mDPO, crop 20-50%", "mDPO, MoCo v2", "mDPO, random image", "mDPO, random image of the theme",
            "mDPO, nearest image",
        ),
    ),
    Section(
        "Table 4: what is anchored",
        "The paper: the anchor on the chosen answer is enough; more anchors bring nothing.",
        SHARP,
        ("mDPO", "mDPO, anchors y_w, y_l", "mDPO, anchors y_w, y_l, m_l"),
    ),
    Section(
        "Figure 5: more pairs",
        "The paper: mDPO gains from more pairs, DPO does not.",
        SHARP,
        (
            "DPO, 1/4 of the pairs", "DPO, 1/2 of the pairs", "DPO", "mDPO, 1/4 of the pairs", "mDPO, 1/2 of the pairs",
            "mDPO",
        ),
        "figure-5",
    ),
    Section(
        "LoRA",
        "An adapter of rank 8 on every linear layer of the language model instead of all of its weights, at a learning "
        "rate of 1e-3.",
        SHARP,
        ("tuned", "DPO, LoRA", "mDPO, LoRA"),
    ),
    Section(
        "Other objectives on the same pairs",
        "The presets of `mdpo train`, as they are, each with the rejected images that it needs: crops, or for SymMPO "
        "pictures of the same theme with the captions chosen for them.",
        SHARP,
        (
            "DPO", "mDPO", "mDPO, random image", "mDPO, nearest image", "SymMPO", "MISP, K = 3", "C2DPO", "MPO",
        ),
        "cost",
    ),
    Section(
        "Rounds on its own answers",
        "`mdpo loop`: five captions a picture, drawn from the model as it is in that round, judged and paired as "
        "everywhere here; each round goes on from the last.",
        SHARP,
        ("tuned", "mDPO, 1 round of the loop", "mDPO, 2 rounds of the loop"),
    ),
    Section(
        "The small base",
        "The same rows on a base of another size and with a poorer tower.",
        SMALL,
        ("tuned", "DPO", "mDPO", "mDPO - conditional", "mDPO, random image"),
    ),
)  # fmt: skip


def rows() -> Iterator[Row]:
    """All rows, in the order in which a seed runs them."""
    for block in BLOCKS:
        yield from block


def find(base: str, name: str) -> Row:
    """The row. Raises KeyError where there is none."""
    for row in rows():
        if (row.base, row.name) == (base, name):
            return row
    raise KeyError((base, name))
