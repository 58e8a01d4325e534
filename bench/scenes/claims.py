"""What the paper claims, as differences that can be seen in this world, and what became of each.

The paper is Wang et al., EMNLP 2024 (arXiv 2406.11839); its numbers are of Bunny-v1.0-3B, one run each, as MMHalBench's
score where nothing else is said. A number that we could not look up is not there.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from bench.scenes.rows import SHARP, SMALL
from bench.scenes.scores import Comparison, Table
from bench.study.statistics import Interval

ALIKE = 3.0
"""In points: differences smaller than this count as none."""
Expected = Literal["less", "more", "no less", "alike"]
Verdict = Literal["holds", "not shown", "reversed", "not run"]


class Claim(NamedTuple):
    """A row's score is expected to be less than another's, or more, not less, or alike.

    Attributes:
        key: The heading in remarks.md under which the reason is given.
        paper: The paper's numbers, the row's after the other's, or "" where we have none.
    """

    key: str
    text: str
    paper: str
    one: str
    other: str
    score: str = "chair_s"
    expected: Expected = "less"

    def on(self, base: str) -> Comparison:
        return Comparison(base, self.one, self.other, self.score)


ADVERSARIAL = "right: adversarial premise"
CLAIMS = (
    Claim("mdpo-tuned", "mDPO makes up less than the tuned model", "2.11 → 2.96", "mDPO", "tuned"),
    Claim("mdpo-dpo", "mDPO makes up less than DPO", "2.28 → 2.96", "mDPO", "DPO"),
    Claim("looks-tuned", "mDPO looks more than the tuned model", "", "mDPO", "tuned", "looking", "more"),
    Claim("looks-dpo", "mDPO looks more than DPO", "", "mDPO", "DPO", "looking", "more"),
    Claim(
        "dpo-tuned",
        "DPO makes up no less than the tuned model",
        "CHAIR_s 43.0 → 44.3",
        "DPO",
        "tuned",
        "chair_s",
        "no less",
    ),
    Claim(
        "dpo-no-image",
        "DPO without images makes up as much as DPO",
        "Figure 1: alike",
        "DPO, no image",
        "DPO",
        "chair_s",
        "alike",
    ),
    Claim("cover", "mDPO's captions cover less than the tuned model's", "75.6 → 67.4", "mDPO", "tuned", "cover"),
    Claim("conditional", "the image preference lowers what is made up", "2.36 → 2.96", "mDPO", "mDPO - conditional"),
    Claim("anchor", "the anchor lowers what is made up", "2.50 → 2.96", "mDPO", "mDPO - anchor"),
    Claim(
        "image-over-anchor",
        "the image preference does more than the anchor",
        "2.36 → 2.50",
        "mDPO - anchor",
        "mDPO - conditional",
    ),
    Claim(
        "anchor-alone", "DPO with the anchor alone makes up less than DPO", "2.28 → 2.36", "mDPO - conditional", "DPO"
    ),
    Claim("crop-20-50", "a crop of 0-20% is better than one of 20-50%", "2.92 → 2.96", "mDPO", "mDPO, crop 20-50%"),
    Claim("moco", "a crop of 0-20% is better than MoCo v2's augmentation", "2.82 → 2.96", "mDPO", "mDPO, MoCo v2"),
    Claim("random-image", "a crop of 0-20% is better than a random image", "2.81 → 2.96", "mDPO", "mDPO, random image"),
    Claim(
        "more-anchors",
        "an anchor on y_l as well changes nothing",
        "Table 4: alike",
        "mDPO, anchors y_w, y_l",
        "mDPO",
        "chair_s",
        "alike",
    ),
    Claim(
        "mdpo-scale", "mDPO gains from four times as many pairs", "Figure 5: gains", "mDPO", "mDPO, 1/4 of the pairs"
    ),
    Claim(
        "dpo-scale",
        "DPO does not gain from four times as many pairs",
        "Figure 5: does not",
        "DPO",
        "DPO, 1/4 of the pairs",
        "chair_s",
        "no less",
    ),
    Claim(
        "adversarial",
        "mDPO denies false premises more often than the tuned model",
        "1.50 → 4.17",
        "mDPO",
        "tuned",
        ADVERSARIAL,
        "more",
    ),
)

HYPOTHESIS = """\
Written before the two bases were measured: the less a base looks at the picture, the more mDPO gives it. Two
earlier bases made us think so: on one with a looking gap of 18 points mDPO gained nothing over the tuned model,
on a poorer one with a gap of 7 points CHAIR_s fell by 9.9 ± 3.9. So against the tuned model mDPO should lower
CHAIR_s more on the small base than on the sharp one, and raise looking more."""
GAINS: dict[str, Expected] = {"chair_s": "less", "looking": "more"}
"""What mDPO's difference from the tuned model on the small base is expected to be beside that on the sharp one."""


def gains(score: str) -> tuple[Comparison, Comparison]:
    """mDPO less the tuned model, on the small base and on the sharp one."""
    return Comparison(SMALL, "mDPO", "tuned", score), Comparison(SHARP, "mDPO", "tuned", score)


def of_claims() -> Iterator[Comparison]:
    """What the table of claims compares."""
    for claim in CLAIMS:
        yield from (claim.on(base) for base in (SHARP, SMALL))


def verdict(gap: Interval | None, expected: Expected) -> Verdict:
    """What a difference says of a claim. gap: with the interval that holds for all tests at once."""
    if gap is None:
        return "not run"
    low, high = gap.mean - gap.half, gap.mean + gap.half  # nan for a single seed, for which every comparison is false
    if expected == "less":
        return "holds" if high < 0 else "reversed" if low > 0 else "not shown"
    if expected == "more":
        return "holds" if low > 0 else "reversed" if high < 0 else "not shown"
    if expected == "no less":
        return "holds" if low > -ALIKE else "reversed" if high < 0 else "not shown"
    return "holds" if low > -ALIKE and high < ALIKE else "reversed" if low > 0 or high < 0 else "not shown"


def together(verdicts: Mapping[str, Verdict]) -> str:
    """The verdicts of the bases in one cell."""
    found = {base: each for base, each in verdicts.items() if each != "not run"}
    if not found:
        return "not run"
    if len(set(found.values())) == 1:
        each = next(iter(found.values()))
        return each if len(found) > 1 else f"{each} ({next(iter(found))})"
    return ", ".join(f"{each} ({base})" for base, each in found.items())


def all_tests(table: Table, shown: Iterator[Comparison]) -> int:
    """How many differences have an interval at all: each counts once, wherever and whichever way round it is shown."""
    found = {(each.base, frozenset((each.one, each.other)), each.score): each for each in (*shown, *of_claims())}
    tests = sum(len(table.gaps(comparison)) > 1 for comparison in found.values())
    return max(1, tests + sum(table.other_gap(*gains(score)) is not None for score in GAINS))
