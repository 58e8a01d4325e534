"""The published objectives by name.

Δ(m, y) = β(log π(y|m, x) − log ρ(y|m, x)) is the reward of an answer y read with a picture m. In the equations m is the
row's picture, m′ its rejected one (m′_k its k-th), ∅ none; y_w and y_l are the chosen and the rejected answer, y_w′ is
the one that is right for m′. ℓ(u) = −log σ(u).

β is the setting of that name, not part of an objective: 0.1, which each of the papers uses but MISP-DPO, which has 0.5.
"""

from collections.abc import Sequence

from mdpo.packing.branches import MDPO_BRANCHES
from mdpo_kernels import Term, mdpo_terms

from .objective import Objective

_RESPONSE = Term("response_preference", {"chosen": 1, "rejected": -1})
_IMAGE = Term("image_preference", {"chosen": 1, "image_rejected": -1})


def mdpo(
    conditional: bool = True, anchors: Sequence[str] = ("chosen",), anchor: float | Sequence[float] = 0.0
) -> Objective:
    """mDPO's, with its own parameters; see ``mdpo_kernels.mdpo_terms``."""
    terms = mdpo_terms(conditional=conditional, anchors=anchors, anchor=anchor)
    return Objective(MDPO_BRANCHES, terms, "mDPO, Wang et al. 2024 (arXiv 2406.11839), eqs. 1 to 6")


# ℓ(Δ(m, y_w) − Δ(m, y_l))
DPO = Objective.of(_RESPONSE, source="DPO, Rafailov et al. 2023 (arXiv 2305.18290), eq. 7")

# ℓ(Δ(m, y_w) − Δ(m, y_l)) + ℓ(Δ(m, y_w) − Δ(m′, y_w)), m′ a picture retrieved as similar to m; no anchor.
RDPO = Objective.of(
    _RESPONSE,
    _IMAGE,
    source="rDPO, Re-Align, Xing et al. 2025 (arXiv 2502.13146), as the authors' rDPOtrainer.py computes it",
)

# ℓ(Δ(m, y_w) − Δ(m, y_l)) + λ[ℓ(M) + ℓ(M′)] + γ(M − M′)² + η[ℓ(Δ(m, y_w)) + ℓ(Δ(m′, y_w′))] with
# M = Δ(m, y_w) − Δ(m, y_w′), M′ = Δ(m′, y_w′) − Δ(m′, y_w), λ = 0.5, η = 1. The authors' code has γ = 1e-4 on margins
# of log-ratios, before β: at their β of 0.1 that is γ/β² = 0.01 on margins of rewards.
SYMMPO = Objective.of(
    _RESPONSE,
    Term("pair_preference", {"chosen": 1, "contrast@image": -1}, weight=0.5),
    Term("pair_preference_negative", {"contrast@negative": 1, "chosen@negative": -1}, weight=0.5),
    Term(
        "margin_consistency",
        {"chosen": 1, "contrast@image": -1, "contrast@negative": -1, "chosen@negative": 1},
        link="square",
        weight=0.01,
    ),
    Term("anchor_chosen", {"chosen": 1}),
    Term("anchor_contrast", {"contrast@negative": 1}),
    source=(
        "SymMPO, Liu et al. 2025 (arXiv 2506.11712), as the authors' dpo_loss in muffin/train/trainers.py computes it"
    ),
)

# ℓ(Δ(m, y_w) − Δ(∅, y_w)) + ℓ(Δ(∅, y_w) − Δ(m′, y_w)), attend and reject, and the same for (m′, y_w′) with m in the
# place of m′. y_l has no part in it.
SVCO = Objective.of(
    Term("attend_chosen", {"chosen": 1, "chosen@none": -1}),
    Term("reject_chosen", {"chosen@none": 1, "chosen@negative": -1}),
    Term("attend_contrast", {"contrast@negative": 1, "contrast@none": -1}),
    Term("reject_contrast", {"contrast@none": 1, "contrast@image": -1}),
    source="S-VCO, Wu et al. 2025 (arXiv 2502.13928), as the authors' dpo_loss in trainer.py computes it",
)

# log(1 + Σ_k exp(Δ(m′_k, y_w) − Δ(m, y_w))) over three rejected pictures (Plackett and Luce: m before all of them), and
# ℓ(Δ(m, y_w) − Δ(m, y_l)). The paper weighs a sampled picture's gradient by 1/q of its sampler; here all weigh the
# same.
MISP = Objective.of(
    _RESPONSE,
    Term("image_ranking", [{"chosen": 1, f"chosen@{m}": -1} for m in ("negative", "negative_2", "negative_3")]),
    source=(
        "MISP-DPO, Li et al. 2026 (arXiv 2509.25717), L_img + λ L_text with λ = 1; after summaries of the paper, "
        "not its text"
    ),
)

# D(m) = Δ(m, y_w) − Δ(m, y_l): ℓ(D(m)) + λ_c ℓ(D(m) − D(m′)) + λ_u ℓ(D(m′)), λ_c = 0.3 and λ_u = 0.5, the paper's for
# LLaVA-1.5-7B. Its poorer context is the prompt without a caption of the picture; here it is the rejected picture.
C2DPO = Objective.of(
    _RESPONSE,
    Term("context_gain", {"chosen": 1, "rejected": -1, "chosen@negative": -1, "rejected@negative": 1}, weight=0.3),
    Term("response_preference_negative", {"chosen@negative": 1, "rejected@negative": -1}, weight=0.5),
    source="C²-DPO, Ko et al. 2026 (Context Blindness in DPO), eq. 10",
)

# 0.8 ℓ(Δ(m, y_w) − Δ(m, y_l)) + 0.2[ℓ(Δ(m, y_w) − δ) + ℓ(δ − Δ(m, y_l))] − 1.0 log π(y_w|m, x)/|y_w|, with δ = 0: BCO's
# δ is a running mean of rewards, and no number of an objective. The last, SFT's, is here −w·Δ(m, y_w) with
# w = 1.0/(β·300) at β = 0.1, 300 tokens being the mean of the paper's chosen answers (section 3.2): the reference is a
# constant, so an example's gradient is SFT's times |y_w|/300 (and times β/0.1).
MPO = Objective.of(
    Term("response_preference", {"chosen": 1, "rejected": -1}, weight=0.8),
    Term("quality_chosen", {"chosen": 1}, weight=0.2),
    Term("quality_rejected", {"rejected": -1}, weight=0.2),
    Term("generation", {"chosen": 1}, link="linear", weight=1.0 / (0.1 * 300)),
    source="MPO, Wang et al. 2024 (arXiv 2411.10442), eqs. 3 to 8 without the reward shift δ",
)

PRESETS = {
    "dpo": DPO,
    "mdpo": mdpo(),
    "rdpo": RDPO,
    "symmpo": SYMMPO,
    "svco": SVCO,
    "misp": MISP,
    "c2dpo": C2DPO,
    "mpo": MPO,
}
