"""Objectives: each preset against its paper's equation in plain numbers; names, terms and what is wrong with them; the
table.
"""

import cmath
import json
import math
import random
import re
import textwrap
from pathlib import Path

import pytest
import torch
import yaml

from mdpo import MDPOConfig
from mdpo.cli import main
from mdpo.config import build_config, load_config, parse_overrides
from mdpo.errors import InputError
from mdpo.objectives import PRESETS, Objective, objective_of, presets, read_objective, rows
from mdpo_kernels import Term, mdpo_loss, preference_loss

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "mdpo" / "README.md"
BETA = 0.1

# Plain numbers


def ell(u: complex) -> complex:
    """−log σ(u)."""
    return cmath.log(1 + cmath.exp(-u))


# The equations as the papers and the authors' code have them: r is log π − log ρ of (answer, picture), w, l and c the
# chosen, the rejected and the rejected picture's own answer, 0 the row's picture, 1 to 3 the rejected ones, x none.


def dpo(r):
    return ell(BETA * (r["w", 0] - r["l", 0]))


def mdpo(r):
    return dpo(r) + ell(BETA * (r["w", 0] - r["w", 1])) + ell(BETA * r["w", 0])


def rdpo(r):
    return dpo(r) + ell(BETA * (r["w", 0] - r["w", 1]))


def symmpo(r):
    margin, margin_1 = r["w", 0] - r["c", 0], r["c", 1] - r["w", 1]
    loss = dpo(r) + 0.5 * (ell(BETA * margin) + ell(BETA * margin_1))
    loss += ell(BETA * r["w", 0]) + ell(BETA * r["c", 1])
    return loss + 0.0001 * (margin - margin_1) ** 2


def svco(r):
    attend, reject = r["w", 0] - r["w", "x"], r["w", "x"] - r["w", 1]
    attend_1, reject_1 = r["c", 1] - r["c", "x"], r["c", "x"] - r["c", 0]
    return sum(ell(BETA * u) for u in (attend, reject, attend_1, reject_1))


def misp(r):
    better = sum(cmath.exp(BETA * (r["w", k] - r["w", 0])) for k in (1, 2, 3))
    return ell(-cmath.log(better)) + dpo(r)  # −log σ(−log Σ exp)


def c2dpo(r):
    rich, poor = BETA * (r["w", 0] - r["l", 0]), BETA * (r["w", 1] - r["l", 1])
    contrast = -cmath.log(cmath.exp(rich) / (cmath.exp(rich) + cmath.exp(poor)))
    return ell(rich) + 0.3 * contrast + 0.5 * ell(poor)


def mpo(r):
    quality = ell(BETA * r["w", 0]) + ell(-BETA * r["l", 0])
    return 0.8 * dpo(r) + 0.2 * quality - r["w", 0] / 300  # log ρ/300 less than the paper's: a constant


EQUATIONS = {
    "dpo": dpo,
    "mdpo": mdpo,
    "rdpo": rdpo,
    "symmpo": symmpo,
    "svco": svco,
    "misp": misp,
    "c2dpo": c2dpo,
    "mpo": mpo,
}
READ = {
    "chosen": ("w", 0),
    "rejected": ("l", 0),
    "image_rejected": ("w", 1),
    "contrast@image": ("c", 0),
    "contrast@negative": ("c", 1),
    "chosen@none": ("w", "x"),
    "contrast@none": ("c", "x"),
    "rejected@negative": ("l", 1),
    "chosen@negative_2": ("w", 2),
    "chosen@negative_3": ("w", 3),
}


@pytest.mark.parametrize("name", EQUATIONS)
def test_a_preset_is_its_papers_equation(name):
    objective, draw, examples = PRESETS[name], random.Random(name), 5
    ratios = [{READ[branch]: draw.gauss(0, 20) for branch in objective.branches} for _ in range(examples)]
    reference = torch.randn(len(objective.branches), examples, dtype=torch.float64) * 30
    policy = torch.tensor([[r[READ[branch]] for r in ratios] for branch in objective.branches], dtype=torch.float64)
    policy = (policy + reference).requires_grad_()
    result = preference_loss(policy, reference, objective.terms, branches=objective.branches, beta=BETA)
    result.losses.sum().backward()

    expected = [EQUATIONS[name](r).real for r in ratios]
    assert result.losses.tolist() == pytest.approx(expected, rel=1e-10)
    step = 1e-30  # the derivative by a step in the imaginary direction is exact to rounding
    for row, branch in enumerate(objective.branches):
        slopes = [EQUATIONS[name]({**r, READ[branch]: r[READ[branch]] + step * 1j}).imag / step for r in ratios]
        assert policy.grad is not None and policy.grad[row].tolist() == pytest.approx(slopes, rel=1e-9, abs=1e-12)


def test_every_preset_has_its_equation_and_its_source():
    assert EQUATIONS.keys() == PRESETS.keys()
    assert all(re.search(r"20\d\d", preset.source) for preset in PRESETS.values())


def test_the_generation_term_has_the_gradient_of_sft():
    """At the mean length of the paper's answers; the rest of MPO is in its equation above."""
    (term,) = (term for term in PRESETS["mpo"].terms if term.link == "linear")
    logps = torch.tensor([[-200.0, -350.0]], requires_grad=True)  # sums over 300 tokens
    preference_loss(logps, torch.tensor([[-210.0, -300.0]]), [term], branches=["chosen"], beta=0.1).loss.backward()
    assert logps.grad is not None and logps.grad[0].tolist() == pytest.approx([-1.0 / 300 / 2] * 2)


def test_mdpo_is_the_loss_of_that_name():
    policy, reference = torch.randn(2, 3, 4, dtype=torch.float64).unbind()
    objective = PRESETS["mdpo"]
    ours = preference_loss(policy, reference, objective.terms, branches=objective.branches, beta=0.3)
    assert torch.equal(ours.losses, mdpo_loss(policy, reference, beta=0.3).losses)


# Names and terms


def config(tmp_path: Path, **settings) -> MDPOConfig:
    return MDPOConfig(**{"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", **settings})


TERMS = [
    {"name": "response_preference", "rows": {"chosen": 1, "rejected": -1}},
    {
        "name": "image_preference",
        "rows": {"chosen": 1, "chosen@negative": -1},
        "weight": 0.5,
        "link": "log_sigmoid",
        "offset": 0,
    },
]


@pytest.mark.parametrize("name", PRESETS)
def test_a_name_is_its_preset(tmp_path, name):
    args = config(tmp_path, objective=name)
    assert args.objective == name and objective_of(args).terms == PRESETS[name].terms
    assert config(tmp_path, objective=PRESETS[name]).objective == name


def test_the_default_is_mdpo_with_its_own_parameters(tmp_path):
    args = config(tmp_path, conditional=False, anchors=["rejected"], anchor=0.5)
    objective = objective_of(args)
    assert args.objective == "mdpo" and objective.branches == ("chosen", "rejected", "image_rejected")
    assert [(term.name, term.offset) for term in objective.terms] == [
        ("response_preference", 0),
        ("anchor_rejected", -0.5),
    ]
    assert args.branches == ("chosen", "rejected") and not args.negatives


def test_a_list_of_terms_from_a_file_and_from_the_command_line(tmp_path):
    path = tmp_path / "run.yaml"
    required = f"model_name_or_path: m\ntrain_data: d\nuse_cpu: true\noutput_dir: {tmp_path}\n"
    path.write_text(
        f"{required}objective:\n"
        "  - {name: response_preference, rows: {chosen: 1, rejected: -1}}\n"
        "  - {name: image_preference, rows: {chosen: 1, chosen@negative: -1}, weight: 0.5, link: log_sigmoid, offset: "
        "0}\n  - name: ranking\n    weight: 1e-1\n    rows: [{chosen: 1, image_rejected: -1}, {chosen: 1, "
        "chosen@negative_2: -1}]\n"
    )
    objective = objective_of(load_config(path)[1])
    assert objective.branches == ("chosen", "rejected", "image_rejected", "chosen@negative_2")
    assert [(term.weight, len(term.matrix)) for term in objective.terms] == [(1, 1), (0.5, 1), (0.1, 2)]
    path.write_text(required)
    spelled = json.dumps(TERMS)
    assert load_config(path, parse_overrides(["--objective", spelled]))[1].objective == read_objective(TERMS)
    assert load_config(path, parse_overrides(["--objective", "svco"]))[1].objective == "svco"


def test_terms_from_python(tmp_path):
    terms = tuple(Term(**term) for term in TERMS)
    recorded = config(tmp_path, objective=terms).objective
    assert recorded == config(tmp_path, objective=TERMS).objective == json.loads(json.dumps(recorded))
    own = Objective.of(*terms, source="a test")
    assert objective_of(config(tmp_path, objective=own)).terms == own.terms
    assert recorded[1] == {
        "name": "image_preference",
        "rows": {"chosen": 1.0, "image_rejected": -1.0},
        "link": "log_sigmoid",
        "weight": 0.5,
        "offset": 0.0,
    }


def term(**changes) -> list[dict]:
    return [{"name": "a", "rows": {"chosen": 1, "rejected": -1}, **changes}]


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ([{"name": f"t{n}", "rows": {"chosen": 1}} for n in range(257)],
            "objective: its terms have 257 rows in all; at most 256 are read"),
        (term(rows=[{"chosen": 1}] * 300), "objective: its terms have 300 rows in all; at most 256 are read"),
        (term(rows={"chosen@negative_" + "1" * 5000: 1}), "objective: term a: branch 'chosen@negative_1111"),
        (term(rows={"chosen@negative_65": 1}), "is unknown; did you mean .*negative_64 or none"),
        (term(rows={"chosen@negative_1": 1}), "is unknown; did you mean"),
        (term(rows={"chosen": 1, "chosen@negative_64": -1}),
            "objective: branch 'chosen@negative_64' is read, and none with negative;"),
        (term(rows={"image_rejected": 1, "rejected@negative_3": -1}),
            "'rejected@negative_3' is read, and none with negative_2;"),
        ("sympo", "objective: 'sympo' is unknown; did you mean symmpo?"),
        ([], r"objective is \[\]; expected dpo, .* or a list of terms .*"),
        (term(wieght=1), "objective: term a: key 'wieght' is unknown; did you mean weight?"),
        (term(link="log_sigmoide"), "objective: term a: link 'log_sigmoide' is unknown; did you mean log_sigmoid?"),
        (term(rows={"chosen": 1, "chosen@negativ": -1}),
            "objective: term a: branch 'chosen@negativ' is unknown; did you mean chosen@negative?"),
        (term(rows={"chosen": 1, "chosen@image": -1}), "objective: term a: a row names the branch chosen twice"),
        (term(rows={"chosen": 0}), "objective: term a: 'chosen' has the coefficient 0"),
        (term(rows={}), "objective: term a: rows is "),
        (term(rows={"chosen": "much"}), "objective: term a: 'chosen' has the coefficient 'much'"),
        (term(weight=-1), "objective: term a: weight is -1; expected a finite number, at least 0"),
        (term(offset=math.inf), "objective: term a: offset is inf"),
        (term(rows=[{"chosen": 1}, {"rejected": 1}], link="square"), "objective: term a: 2 rows with link square"),
        (term(name="two words"), "objective: term 1: name is 'two words'; give a word"),
        (term() + term(), "objective: terms has two by the name 'a'"),
        ([{"rows": {"chosen": 1}}], "objective: term 1: key 'name' is missing"),
        ([{"name": "a"}], "objective: term a: key 'rows' is missing"),
        (["dpo"], "objective: term 1 is 'dpo'; expected a mapping with name and rows"),
    ],
)  # fmt: skip
def test_what_is_no_objective_is_one_line(tmp_path, objective, message):
    with pytest.raises(InputError, match=message) as caught:
        config(tmp_path, objective=objective)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 800


def build(tmp_path: Path, **settings) -> MDPOConfig:
    required = {"model_name_or_path": "m", "train_data": "d", "use_cpu": True, "output_dir": str(tmp_path)}
    return build_config({**required, **settings}, source="run.yaml")[1]


@pytest.mark.parametrize("value", [{"conditional": False}, {"conditional": True}, {"anchors": []}, {"anchor": 0.0}])
def test_mdpos_parameters_beside_another_objective_are_refused(tmp_path, value):
    (name,) = value
    with pytest.raises(
        InputError, match=f"^run.yaml: {name}: a parameter of objective mdpo, and objective is dpo; leave {name} out"
    ):
        build(tmp_path, objective="dpo", **value)
    with pytest.raises(InputError, match=f"{name}: a parameter of objective mdpo, and objective is a list of terms"):
        build(tmp_path, objective=TERMS, **value)
    build(tmp_path, objective="mdpo", **value)


@pytest.mark.parametrize("name", PRESETS)
def test_without_images_pictures_cannot_be_compared(tmp_path, name):
    if name in ("dpo", "mpo"):
        assert config(tmp_path, objective=name, drop_images=True).drop_images
        return
    with pytest.raises(InputError, match="^drop_images: "):
        config(tmp_path, objective=name, drop_images=True)


# What they cost


# #pictures·650 (50 without a picture) + #branches·100, and each branch with a prompt of its own: by hand.
COSTS = {
    "dpo": (850, 1500),
    "mdpo": (1600, 2250),
    "rdpo": (1600, 2250),
    "symmpo": (1800, 3750),
    "svco": (1950, 3300),
    "misp": (3100, 3750),
    "c2dpo": (1700, 3000),
    "mpo": (850, 1500),
}


def test_the_table_counts_what_the_branches_cost():
    assert {row.name: (row.packed, row.unshared) for row in rows()} == COSTS
    brings = {row.name: row.brings for row in rows()}
    assert brings["dpo"] == "nothing more" and brings["misp"] == "an image, 3 rejected images"
    assert brings["svco"] == "an image, 1 rejected image, contrast"


def test_the_help_shows_the_table(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    for row in rows():
        assert re.search(rf"^  {row.name} +{row.packed:,} +{row.unshared:,} ", shown, re.MULTILINE)


def test_the_pages_terms_are_an_objective(tmp_path):
    (spelled,) = re.findall(r"```yaml\n(objective:.*?)```", PAGE.read_text(), re.DOTALL)
    objective = objective_of(config(tmp_path, **yaml.safe_load(spelled)))
    assert objective.branches == ("chosen", "rejected", "image_rejected")
    assert [term.link for term in objective.terms] == ["log_sigmoid", "log_sigmoid", "square"]


def test_a_new_objective_takes_a_dozen_lines_in_one_file(tmp_path, monkeypatch):
    """Those that CONTRIBUTING.md shows, run where they would stand."""
    code = next(
        textwrap.dedent(block)
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
        if "PRESETS[" in block
    )
    assert len(code.splitlines()) <= 12
    namespace = {**vars(presets), "PRESETS": {}}
    exec(code, namespace)
    ((name, objective),) = namespace["PRESETS"].items()
    monkeypatch.setitem(PRESETS, name, objective)

    args = config(tmp_path, objective=name)
    assert objective_of(args) == objective and len(objective.terms) == 2
    assert {row.name: (row.packed, row.unshared) for row in rows()}[name] == (650 + 50 + 3 * 100, 2 * 750 + 150)
    rewards = torch.tensor([[2.0], [1.0], [0.5]], dtype=torch.float64)
    loss = preference_loss(rewards, None, objective.terms, branches=objective.branches, beta=1.0).loss
    assert loss.item() == pytest.approx((ell(1) + 0.5 * ell(1.5)).real)


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[1].glob("configs/*.yaml")), ids=lambda path: path.stem)
def test_every_config_takes_another_objective_on_the_command_line(path):
    _, args = load_config(path, {"objective": "symmpo", "use_cpu": True, "bf16": False})
    assert args.branches == PRESETS["symmpo"].branches
    _, args = load_config(path, {"use_cpu": True, "bf16": False})
    assert objective_of(args) == PRESETS["mdpo"]
