"""Certificates that another program decides: ours are accepted, doctored ones are not, and the checker needs nothing of ours.

What is said of plans on learned models and of policies: tests/test_export_learned.py. How forgers work: tests/export_cases.py.
"""

import copy
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from export_cases import accepted, draw, drop, put, refused_at, rehashed, rewritten, told
from hypothesis import given, settings
from hypothesis import strategies as st
from learned_exports import LEARNED
from strategies import make_kernel
from xmpsc_cases import double_integrator, plan

import gpsafe as gs
import gpsafe_check
from gpsafe.assumptions import Assumption, listed
from gpsafe.certify import AffineLaw, CertificationProblem, certify_invariance, judge
from gpsafe.confidence import ConfidenceSet, ConvexProgram, Mixture
from gpsafe.linalg import vector
from gpsafe.saved import export_bound, export_invariance, export_plan
from gpsafe.saved._certificate import written
from gpsafe.sets import Box, Polytope
from gpsafe.systems import AffineKnown
from gpsafe.tube import LinearTube
from proofs_checks._defects import forged
from proofs_checks.safety_filter import linear_case

CHECKER = Path(gpsafe_check.__file__)
DOCUMENT = Path(__file__).parents[1] / "docs" / "certificates.md"
MIXTURE = Mixture(rkhs_norm=2.0, subgaussian=0.1, delta=0.05)


# ----------------------------------------------------------------------------------------------------------- ours
def posterior(kernel: str = "rbf", *, n: int = 9, dim: int = 2, lam: float = 0.01, scaled: bool = False, seed: int = 0):
    model = gs.GP.create(make_kernel(kernel, dim), lam, nx=dim, nu=0, noise_std=0.1, outputs=[0])
    if not n:
        return model
    scale = 1 + draw(n, seed=seed + 1).abs() if scaled else None
    return model.condition_on(draw(n, dim, seed=seed), draw(n, 1, seed=seed + 2), noise_scale=scale)


@lru_cache(maxsize=1)
def bound() -> str:
    return export_bound(ConfidenceSet(MIXTURE, [posterior()]), vector(0.3, -0.2), generation=0)


@lru_cache(maxsize=1)
def flown() -> str:
    found = judge(double_integrator(), vector(0.2, 0.1), vector(0.0), plan(*[-0.1] * 8))
    return export_plan(found)


@lru_cache(maxsize=1)
def kept() -> str:
    return export_invariance(linear_case()[1])


OURS = {"confidence-bound": bound, "plan": flown, "invariance": kept, **LEARNED}


@pytest.mark.parametrize("kind", OURS)
def test_ours_are_accepted(kind):
    tree = json.loads(OURS[kind]())
    assert accepted(OURS[kind]()) and tree["kind"] == kind
    assert all(entry["sentence"] == Assumption[entry["name"]].sentence for entry in tree["assumptions"])


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.sampled_from(
        [
            "rbf",
            "rbf-isotropic",
            "matern-1/2",
            "matern-3/2",
            "matern-5/2",
            "rbf-restricted",
            "additive",
            "periodic",
            "product",
        ]
    ),
    n=st.integers(0, 10),
    dim=st.integers(1, 3),
    lam=st.sampled_from([1e-8, 1e-4, 0.01, 3.0]),
    scaled=st.booleans(),
    seed=st.integers(0, 99),
    far=st.sampled_from([0.0, 1.0, 30.0]),
    generation=st.sampled_from([None, 0, -1]),
)
def test_every_interval_of_the_mixture_bound_is_accepted_and_a_narrower_one_is_not(
    kernel, n, dim, lam, scaled, seed, far, generation
):
    model = posterior(kernel, n=n, dim=dim, lam=lam, scaled=scaled, seed=seed)
    more = model.condition_on(draw(2, dim, seed=seed + 4), draw(2, 1, seed=seed + 5))
    found, z = ConfidenceSet(MIXTURE, [model, more]), far * draw(dim, seed=seed + 3)
    low, high = (float(end) for end in found.bounds(z))
    if generation is None and low > high:
        with pytest.raises(ValueError, match="falsified"):
            export_bound(found, z)
        return
    text = export_bound(found, z, generation=generation)
    assert accepted(text)
    tree = json.loads(text)
    low, high = map(float, tree["evidence"]["interval"])
    if lam < 1e-4 or high - low < 1e-3:  # there the margins of rounding may be as wide as what is cut off below
        return
    for interval in ([low + 1e-3 * (high - low), high], [low, high - 1e-3 * (high - low)]):
        tree["evidence"]["interval"] = [repr(v) for v in interval]
        assert told(rewritten(tree))[0] == 1


@settings(max_examples=25, deadline=None)
@given(
    nx=st.integers(1, 3), nu=st.integers(1, 2), steps=st.integers(1, 4), seed=st.integers(0, 999), flat=st.booleans(),
    size=st.sampled_from([1e-6, 1.0, 1e6]),
)  # fmt: skip
def test_every_certified_plan_of_a_linear_tube_is_accepted(nx, nu, steps, seed, flat, size):
    axes = size * 0.05 * draw(nx, seed=seed).abs()
    axes[0] = 0.0 if flat else axes[0]
    plant = AffineKnown(0.6 * draw(nx, nx, seed=seed + 1), draw(nx, nu, seed=seed + 2), size * draw(nx, seed=seed + 3))
    gain, x0 = 0.3 * draw(steps, nu, nx, seed=seed + 4), size * draw(nx, seed=seed + 5)
    wide = Polytope.of_box(Box(-200 * size * torch.ones(nx).double(), 200 * size * torch.ones(nx).double()))
    limits = Polytope.of_box(Box(-50 * size * torch.ones(nu).double(), 50 * size * torch.ones(nu).double()))
    problem = CertificationProblem(LinearTube(plant, axes), wide, limits, wide, gain, steps)
    found = judge(problem, x0, torch.zeros(nu).double(), size * draw(steps, nu, seed=seed + 6))
    assert not found.certified or accepted(export_plan(found))
    assert found.certified or nx > 1 or steps > 1


@settings(max_examples=15, deadline=None)
@given(size=st.floats(0.1, 1.2), turn=st.floats(0.0, 2.0), shift=st.floats(-0.05, 0.05))
def test_every_certified_invariance_of_a_linear_plant_is_accepted(size, turn, shift):
    """|x| ≤ s under x⁺ = (1 − κ)x + o + w."""
    one, box = torch.ones(1, 1).double(), Polytope.of_box(Box(vector(-size), vector(size)))
    wide = Polytope.of_box(Box(vector(-5.0), vector(5.0)))
    problem = CertificationProblem(
        LinearTube(AffineKnown(one, one, vector(0.0)), vector(0.05)), wide, wide, box, 0 * one, 1
    )
    found = certify_invariance(problem, AffineLaw(-turn * one, vector(shift)))
    assert not found.certified or accepted(export_invariance(found))
    assert found.certified or abs(1 - turn) * size + abs(shift) + 0.05 > size - 1e-9


def test_the_numbers_read_back_bit_by_bit():
    model = posterior(n=5, seed=3)
    problem = json.loads(export_bound(ConfidenceSet(MIXTURE, [model]), vector(0.1, 1e-310)))["problem"]
    assert model.inputs is not None
    assert [[float(v) for v in row] for row in problem["inputs"]] == model.inputs.tolist()
    assert float(problem["query"][1]) == 1e-310


def test_the_interval_is_that_of_the_generation_and_output_asked_for():
    old = gs.GP.create(make_kernel("matern-5/2", 3), [0.01, 0.02], nx=2, nu=1, noise_std=0.1)
    old = old.condition_on(draw(4, 3), draw(4, 2, seed=1))
    new = old.condition_on(draw(3, 3, seed=2), draw(3, 2, seed=3))
    both = ConfidenceSet(Mixture(rkhs_norm=(2.0, 3.0), subgaussian=(0.1, 0.2), delta=0.1), [old, new])
    z = vector(0.2, 0.1, -0.3)
    for generation, model in enumerate((old, new)):
        for output in range(2):
            text = export_bound(both, z, output=output, generation=generation)
            interval = [float(v) for v in json.loads(text)["evidence"]["interval"]]
            assert interval == [float(end[output]) for end in both.bound.interval(model, z)] and accepted(text)
    text = export_bound(both, z, output=1)
    assert json.loads(text)["evidence"]["interval"] == [repr(float(end[1])) for end in both.bounds(z)]
    assert accepted(text) and "first [4, 7] observations and |f(z)| <= B sqrt" in json.loads(text)["claim"]
    far = json.loads(export_bound(both, vector(90.0, 0.0, 0.0)))
    assert (
        accepted(json.dumps(far))
        and [abs(float(v)) for v in far["evidence"]["interval"]] == [pytest.approx(2.0 * math.sqrt(2.0))] * 2
    )
    far["problem"]["prior"] = False  # then it is only as sure as far from all data
    assert told(rewritten(far))[0] == 1
    far["problem"]["prior"] = 1
    assert told(rehashed(far))[0] == 2


def test_precision_is_raised_until_the_verdict_is_decided(monkeypatch):
    """λ = 1e-60 with a point seen twice: 128 bits do not tell K + λI from singular."""
    twice = draw(2, 2).repeat(2, 1)
    model = gs.GP.create(make_kernel("rbf", 2), 1e-60, nx=2, nu=0, noise_std=0.1, outputs=[0])
    problem = json.loads(bound())["problem"] | {"regularizer": repr(1e-60), "delta": "0.05", "noise_scale": None}
    problem |= {"inputs": [[repr(v) for v in row] for row in twice.tolist()], "targets": ["0.5", "0.1", "0.5", "0.1"]}
    believed = listed(MIXTURE.assumptions(model))
    problem |= {"generations": [4]}
    text = written("confidence-bound", problem, {"interval": ["-1e+32", "1e+32"]}, believed)
    assert any("512 bits" in line or "256 bits" in line for line in told(text)[1]) and accepted(text)
    monkeypatch.setattr(gpsafe_check, "PRECISIONS", (128,))
    assert told(text)[0] == 1 and "not decided" in told(text)[1][-2]


# ------------------------------------------------------------------------------------------------------- forgeries
def without_row(tree) -> None:
    """A row of S less, and its multipliers."""
    for name in ("H", "h"):
        del tree["problem"]["region"][name][0]
    del tree["evidence"]["region"][0]
    for proofs in ("region", "inputs"):
        for row in tree["evidence"][proofs]:
            del row[0]


def fewer(tree) -> None:
    """A row of data less."""
    for name in ("inputs", "targets"):
        del tree["problem"][name][3]
    tree["problem"]["generations"] = [8]


def of_factors(tree) -> None:
    """The product of the kernel with a product."""
    kernel = tree["problem"]["kernel"]
    kernel[0] = {"family": "product", "factors": [kernel[0], {"family": "product", "factors": [kernel[0]]}]}


def cyclic(tree) -> None:
    """A periodic kernel of the same scales."""
    part = tree["problem"]["kernel"][0]
    part.pop("nu")
    part.update({"family": "periodic", "period": ["3.0"] * len(part["dims"])})


def rougher(tree) -> None:
    tree["problem"]["kernel"][0].update({"family": "matern", "nu": "0.5"})


LOW, HIGH = ("evidence", "interval", 0), ("evidence", "interval", 1)
FORGED = {
    "confidence-bound": {
        "an interval shrunk from below by 1e-9": (put(*LOW, value=lambda v: v + 1e-9 * abs(v)), "lower end"),
        "an interval shrunk from above by 1e-9": (put(*HIGH, value=lambda v: v - 1e-9 * abs(v)), "upper end"),
        "a row of data less": (fewer, "end"),
        "another target": (put("problem", "targets", 0, value=lambda v: v + 1.0), "end"),
        "another lambda": (put("problem", "regularizer", value=lambda v: v / 2), "end"),
        "a larger B": (put("problem", "rkhs_norm", value=lambda v: v * 1.001), "end"),
        "a larger R": (put("problem", "subgaussian", value=lambda v: v * 1.001), "end"),
        "a smaller delta": (put("problem", "delta", value=0.01), "end"),
        "a delta of 1": (put("problem", "delta", value=1.0), "delta"),
        "a negative R": (put("problem", "subgaussian", value=-0.1), "signs"),
        "shorter length-scales": (put("problem", "kernel", 0, "lengthscale", 0, value=lambda v: v / 2), "end"),
        "a rougher kernel": (rougher, "end"),
        "a periodic kernel": (cyclic, "end"),
        "a product of products": (of_factors, "kernel[0] factors"),
        "a kernel of no name": (put("problem", "kernel", 0, "family", value="cubic"), "kernel[0]"),
        "a dimension twice": (put("problem", "kernel", 0, "dims", value=[0, 0]), "kernel[0] dimensions"),
        "another bound": (put("problem", "bound", value="fiedler"), "bound"),
        "no kernel": (put("problem", "kernel", value=[]), "kernel"),
        "a negative variance": (put("problem", "kernel", 0, "variance", value=-1.7), "kernel[0] numbers"),
        "fewer observations used": (put("problem", "generations", value=[8]), "end"),
        "observations that are not there": (put("problem", "generations", value=[10]), "generations"),
        "no observations named": (put("problem", "generations", value=[]), "generations"),
        "an interval upside down": (lambda tree: tree["evidence"]["interval"].reverse(), "interval"),
        "another query": (put("problem", "query", 0, value=lambda v: v + 1.0), "end"),
        "more outputs": (put("problem", "outputs", value=2), "end"),
        "an output that is none": (put("problem", "output", value=1), "output"),
        "quieter observations": (put("problem", "noise_scale", value=["0.5"] * 9), "noise scales"),
        "an assumption less": (drop("assumptions", 3), "assumptions"),
    },
    "plan": {
        "another start": (put("problem", "x0", 0, value=lambda v: v + 1e-12), "start"),
        "another start for tube and problem": (
            lambda tree: [put(*p, 0, value=0.99)(tree) for p in (("problem", "x0"), ("evidence", "center", 0))],
            "tube at stage 1",
        ),
        "an input beyond U": (put("problem", "plan", 3, 0, value=1.5), "inputs at stage 3 row 0"),
        "a larger noise axis with the old tube": (put("problem", "half_axes", 1, value=0.021), "tube at stage 1"),
        "a tube that is too thin": (
            put("evidence", "factor", 5, 0, 0, value=lambda v: v * (1 - 1e-9)),
            "tube at stage 5",
        ),
        "a tube that is moved": (put("evidence", "center", 4, 1, value=lambda v: v + 1e-6), "tube at stage 4"),
        "a tube that does not start at a point": (put("evidence", "factor", 0, 0, 0, value=0.1), "start"),
        "another plant": (put("problem", "A", 0, 1, value=lambda v: v + 1e-6), "tube at stage 1"),
        "another gain": (put("problem", "gain", 2, 0, 0, value=lambda v: v / 2), "tube at stage 3"),
        "less room": (put("problem", "states", "h", 0, value=0.2), "states at stage 1 row 0"),
        "a start outside": (put("problem", "states", "h", 0, value=0.1), "states at stage 0 row 0"),
        "a smaller target": (put("problem", "terminal", "h", 0, value=0.2), "terminal row 0"),
        "a negative tolerance": (put("problem", "tolerance", value=-1e-9), "tolerance"),
        "a negative half-axis": (put("problem", "half_axes", 0, value=-0.005), "signs"),
        "an assumption less": (drop("assumptions", 2), "assumptions"),
    },
    "invariance": {
        "a larger noise axis": (put("problem", "half_axes", 0, value=lambda v: 2 * v), "region row"),
        "another law": (put("problem", "gain", 0, 0, value=lambda v: v + 1e-12), "region row 0"),
        "another offset": (put("problem", "offset", 0, value=1.0), "row"),
        "another plant": (put("problem", "A", 0, 0, value=lambda v: v + 1e-12), "region row"),
        "a wind": (put("problem", "c", 0, value=0.1), "region row"),
        "fewer inputs": (put("problem", "inputs", "h", 0, value=lambda v: v / 1e3), "inputs row 0"),
        "a row less": (without_row, "row"),
        "a smaller set": (put("problem", "region", "h", 0, value=lambda v: v / 2), "not empty"),
        "a negative multiplier": (put("evidence", "region", 0, 0, value="-1"), "row 0"),
        "a point outside": (put("evidence", "point", 0, value="1000"), "not empty"),
    },
}
CASES = [(kind, name) for kind, edits in FORGED.items() for name in edits]


@pytest.mark.parametrize(("kind", "name"), CASES, ids=lambda v: v.replace(" ", "-"))
def test_a_doctored_certificate_is_refused_at_the_line_that_fails(kind, name):
    edit, line = FORGED[kind][name]
    refused_at(OURS[kind](), edit, line)


def test_what_is_true_of_another_problem_is_accepted_for_that_problem_only():
    """A larger tolerance weakens the claim: under the old claim it is refused, under its own it is true, and it says so."""
    tree = json.loads(flown())
    tree["problem"]["tolerance"] = "0.001"
    assert told(rehashed(tree))[1][-1] == "refused at claim"
    assert accepted(rewritten(tree)) and "each to within 0.001." in rewritten(tree)
    tree = json.loads(flown())
    for name in ("H", "h"):
        del tree["problem"]["states"][name][0]
    assert told(json.dumps(tree))[0] == 2 and told(rehashed(tree))[1][-1] == "refused at claim"
    assert accepted(rewritten(tree)) and "in the 3 rows of states" in rewritten(tree)


@pytest.mark.parametrize("kind", OURS)
def test_every_assumption_is_needed_word_for_word(kind):
    tree = json.loads(OURS[kind]())
    needed = [i for i, entry in enumerate(tree["assumptions"]) if entry["name"] not in gpsafe_check.EXTRA]
    assert len(needed) >= 3
    for i in needed:
        for part in ("name", "words", "sentence"):
            forged = copy.deepcopy(tree)
            forged["assumptions"][i][part] += " "
            code, lines = told(rehashed(forged))
            assert code == 1 and lines[-1] == f"refused at assumptions[{i}]"
        forged = copy.deepcopy(tree)
        del forged["assumptions"][i]
        assert told(rehashed(forged))[1][-1] == "refused at assumptions"


@pytest.mark.parametrize(
    "value",
    ["nan", "inf", "-inf", "1e400", "0x1p0", "1_0", " 1.0", "1.00", "1", "", "1.0\n", "１.0", 1.0, 1, None, True, [], "5e-325"],
)  # fmt: skip
def test_numbers_that_are_no_float64_are_no_certificate(value):
    places = [("confidence-bound", ("problem", "targets", 0)), ("plan", ("problem", "x0", 0))]
    places += [("membership", ("evidence", "boxes", 3, 0)), ("membership", ("evidence", "upper"))]
    places += [("membership", ("problem", "x0")), ("plan-gp", ("evidence", "factor", 1, 0, 0))]
    places += [("plan-gp", ("problem", "learned", 0, "targets", 0)), ("plan-ensemble", ("problem", "biases", 1, 0, 1))]
    places += [("plan-ensemble", ("problem", "radius")), ("plan-ensemble", ("problem", "weights", 0, 1, 0, 0))]
    for kind, path in places:
        tree = part = json.loads(OURS[kind]())
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value
        assert told(rehashed(tree))[0] == 2, path
    tree = json.loads(kept())
    tree["evidence"]["point"][0] = value if value != "1" else "2/2"
    assert told(rehashed(tree))[0] == 2


@pytest.mark.parametrize("kind", OURS)
def test_other_fields_at_any_place_are_no_certificate(kind):
    def places(tree, path=()):
        if isinstance(tree, dict):
            yield path
            for key, part in tree.items():
                yield from places(part, (*path, key))

    tree = json.loads(OURS[kind]())
    for path in places(tree):
        for change in (lambda part: part.update(more=1), lambda part: part.pop(next(iter(part)))):
            forged = copy.deepcopy(tree)
            part = forged
            for key in path:
                part = part[key]
            change(part)
            assert told(rehashed(forged) if "sha256" in forged else json.dumps(forged))[0] == 2, path


def test_torn_foreign_and_ambiguous_files_are_no_certificates():
    text = flown()
    double = text.replace('"kind": "plan"', '"kind": "plan", "kind": "plan"')
    bad = [b"", b"[]", b"null", b"\xff\xfe", text[:-40].encode(), double.encode(), b"[" * 100_000, b'"\\ud800"']
    bad += [text.replace("certificate/1", "certificate/2").encode(), text.replace('"plan"', '"planned"', 1).encode()]
    bad += [text.replace('"0.0"', "NaN", 1).encode(), text.replace('"0.0"', "0.0", 1).encode(), b"1" * 5000]
    assert [told(one)[0] for one in bad] == [2] * len(bad)
    assert "twice" in told(double)[1][0]


# --------------------------------------------------------------------------------------------- alone, and at a shell
ALONE = """
import runpy, sys
class Only:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names | {"flint"}:
            raise AssertionError(f"imports {name}")
sys.meta_path.insert(0, Only())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def alone(checker: Path, *files: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-c", ALONE, str(checker), *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, cwd=checker.parent, encoding="utf-8")


def test_the_checker_runs_alone_with_the_standard_library_and_flint(tmp_path):
    checker = tmp_path / "gpsafe_check.py"
    checker.write_bytes(CHECKER.read_bytes())
    files = {kind: tmp_path / f"{kind}.json" for kind in OURS}
    for kind, path in files.items():
        path.write_text(OURS[kind]())
    found = alone(checker, *files.values())
    assert (found.returncode, found.stderr, found.stdout.count("\naccepted\n")) == (0, "", len(OURS))
    tree = json.loads(bound())
    put(*LOW, value=lambda v: v / 2)(tree)
    files["narrow"] = tmp_path / "narrow.json"
    files["narrow"].write_text(rewritten(tree))
    assert alone(checker, *files.values()).returncode == 1
    assert alone(checker, *files.values(), tmp_path / "missing.json").returncode == 2
    assert alone(checker).returncode == 2


def test_control_a_checker_that_imports_more_is_caught(tmp_path):
    checker = tmp_path / "gpsafe_check.py"
    checker.write_text(CHECKER.read_text().replace("import json\n", "import json\nimport numpy\n", 1))
    assert "imports numpy" in alone(checker).stderr


def test_a_bound_without_flint_is_not_accepted_and_says_why(monkeypatch):
    monkeypatch.setattr(gpsafe_check, "flint", None)
    assert told(bound()) == (2, ["FAIL file: kind confidence-bound needs python-flint, which cannot be imported"])
    assert accepted(flown())


# ------------------------------------------------------------------------------------------- what is not exported
def test_the_words_of_assumptions_are_the_librarys():
    assert {name: Assumption[name].sentence for name in gpsafe_check.SENTENCES} == gpsafe_check.SENTENCES


@pytest.mark.parametrize("kind", OURS)
def test_the_document_names_every_field(kind):
    (section,) = re.findall(rf"\n## [^\n]*\(`{kind}`\)\n(.*?)(?=\n## |\Z)", DOCUMENT.read_text(), flags=re.S)
    tree = json.loads(OURS[kind]())
    named = set(re.findall(r"`(\w+)`", section))
    assert {*tree["problem"], *tree["evidence"]} <= named
    assert len(DOCUMENT.read_text().splitlines()) <= 260


class OtherTube(LinearTube):
    """What it does beside A, B and c the format cannot say."""


class OtherPlant(AffineKnown):
    """As `OtherTube`."""


def test_what_the_format_cannot_say_is_refused():
    z, gp = vector(0.0, 0.0), posterior()
    refused: list[tuple[Callable[[], str], str]] = [
        (lambda: export_bound(ConfidenceSet(replace(MIXTURE, unchecked=True), [gp]), z), "within its theorem"),
        (
            lambda: export_bound(ConfidenceSet(ConvexProgram(rkhs_norm=1.0, subgaussian=1.0, delta=0.1), [gp]), z),
            "mixture",
        ),
        (lambda: export_bound(ConfidenceSet(MIXTURE, [posterior("product-scaled")]), z), "theory-mode"),
        (lambda: export_bound(ConfidenceSet(MIXTURE, [gp]), vector(0.0, math.nan)), "export_bound: .*finite"),
        (lambda: export_bound(ConfidenceSet(MIXTURE, [gp]), vector(0.0)), "export_bound: .*shape"),
        (lambda: export_bound(ConfidenceSet(MIXTURE, [gp]), z, output=1), "output"),
        (lambda: export_bound(ConfidenceSet(MIXTURE, [gp]), z, generation=1), "generation"),
    ]
    problem, sure = linear_case()
    lost = judge(double_integrator(), vector(0.2, 0.1), vector(0.0), plan(*[1.0] * 8))
    base = double_integrator()
    narrow = replace(base, model=LinearTube(base.model.plant, base.model.half_axes, mode="paper"))  # type: ignore[attr-defined]
    paper = judge(narrow, vector(0.2, 0.1), vector(0.0), plan(*[-0.1] * 8))
    loud = certify_invariance(replace(problem, terminal=problem.states), sure.law)
    held = judge(base, vector(0.2, 0.1), vector(0.0), plan(*[-0.1] * 8))
    tube, plant = base.model, base.model.plant  # type: ignore[attr-defined]
    others = [OtherTube(plant, tube.half_axes), LinearTube(OtherPlant(plant.A, plant.B, plant.c), tube.half_axes)]  # type: ignore[attr-defined]
    foreign = [forged(held, problem=replace(base, model=model)) for model in others]
    refused += [
        (lambda: export_plan(lost), "certificate that holds"),
        (lambda: export_plan(paper), "LinearTube"),
        (
            lambda: export_plan(foreign[0]),
            "an AffineKnown in sound mode, or a GPTube or EnsembleTube, got OtherTube",
        ),
        (
            lambda: export_plan(foreign[1]),
            "an AffineKnown in sound mode, or a GPTube or EnsembleTube, got LinearTube",
        ),
        (lambda: export_invariance(loud), "invariance that holds"),
    ]
    for ask, message in refused:
        with pytest.raises(ValueError, match=message):
            ask()
