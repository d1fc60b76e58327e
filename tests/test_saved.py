"""Saved objects: the same bits come back, a file is not believed, and what cannot be written is named."""

import dataclasses
import functools
import io
import json
import math
import re
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import ALL_KERNELS, make_kernel
from xmpsc_cases import double_integrator, gp_pendulum, plan, propose

import gpsafe as gs
from gpsafe.algorithms._saved import digest
from gpsafe.confidence import BOUNDS, Falsification, make_bound
from gpsafe.confidence.lineage import fingerprint
from gpsafe.cost.base import CostInterval
from gpsafe.linalg import vector
from gpsafe.models import identity_prior
from gpsafe.rkhs import kernels
from gpsafe.safety import SafeParameters
from gpsafe.safety.safe_set import Witness
from gpsafe.saved import FORMAT
from gpsafe.saved.codec import CLASSES
from gpsafe.systems import CartPoleKnown, SineKnown

KNOWN = gs.AffineKnown(0.9 * torch.eye(2).double(), torch.ones(2, 1).double(), vector(0.1, -0.2))
STATED = [name for name in ALL_KERNELS if kernels.is_stated(make_kernel(name, 2))]
QUERIES = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def process(kernel=None, *, blocks=(7, 5), scaled: bool = False, **options) -> gs.GP:
    """A posterior that grew block by block, asked in between, so that its factors have the rounding of their blocks."""
    given = {"nx": 2, "nu": 1, "noise_std": 0.1, "prior": KNOWN, **options}
    model = gs.GP.create(make_kernel("rbf", 3) if kernel is None else kernel, 0.01, **given)
    for seed, count in enumerate(blocks):
        weight = 1 + draw(count, seed=seed).abs() if scaled and seed else None
        model = model.condition_on(
            draw(count, 3, seed=seed), draw(count, model.num_outputs, seed=seed), noise_scale=weight
        )
        model.posterior(QUERIES)
    return model


def grown(*, mixed: bool = False) -> gs.ConfidenceSet:
    """Four generations; `mixed`: two outputs with kernels of their own."""
    model = process([make_kernel("matern-5/2", 3), make_kernel("additive", 3)] if mixed else None, blocks=())
    found = gs.ConfidenceSet(gs.Mixture(rkhs_norm=3.0, subgaussian=0.1, delta=0.1)).update(model)
    for seed in range(3):
        model = model.condition_on(draw(40 + seed, 3, seed=seed), draw(40 + seed, 2, seed=seed))
        found = found.update(model)
    return found


def certificate() -> gs.certify.Certificate:
    problem = double_integrator(steps=3)
    return gs.judge(problem, vector(0.2, 0.0), vector(0.3), propose(plan(-0.1, 0.0, 0.0)))


def same_posterior(one: gs.GP, other: gs.GP) -> None:
    for ask in (gs.GP.posterior, gs.GP.gradient, gs.GP.prior_variance, gs.GP.residual_mean):
        a, b = ask(one, QUERIES), ask(other, QUERIES)
        assert all(torch.equal(v, w) for v, w in zip(a, b, strict=True))
    assert torch.equal(one.covariance(QUERIES), other.covariance(QUERIES))
    for ask in (gs.GP.info_gain, gs.GP.posterior_norm, gs.GP.log_marginal_likelihood):
        assert torch.equal(ask(one), ask(other))


def rewritten(path, change):
    """The file with `change(about, arrays)` applied, its checksums those of an honest file."""
    with np.load(path) as found:
        about = json.loads(found["object.json"])
        arrays = {name: found[name] for name in found.files if name != "object.json"}
    change(about, arrays)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("object.json", json.dumps(about))
    path.write_bytes(buffer.getvalue())
    return path


# ------------------------------------------------------------------------------------- what comes back
@pytest.mark.parametrize("family", STATED)
def test_a_posterior_of_every_stated_kernel_comes_back_bit_by_bit(family, tmp_path):
    model = process(make_kernel(family, 3))
    again = gs.load(gs.save(tmp_path / "m", model))
    same_posterior(model, again)
    assert [fingerprint(k) for k in model.kernels] == [fingerprint(k) for k in again.kernels]
    assert again.mode == "theory" and all(kernels.is_stated(k) for k in again.kernels)
    more = draw(6, 3, seed=5), draw(6, 2, seed=6)
    same_posterior(model.condition_on(*more), again.condition_on(*more))


@pytest.mark.parametrize(
    "options",
    [
        {"scaled": True},
        {"blocks": ()},
        {"outputs": [1], "prior": identity_prior},
        {"mode": "practical", "prior": gs.models.zero_prior},
        {"nx": 3, "nu": 0, "prior": gs.models.zero_prior},
    ],
    ids=str,
)
def test_every_form_of_a_model_comes_back(options, tmp_path):
    model = process(**options)
    again = gs.load(gs.save(tmp_path / "m", model))
    same_posterior(model, again)
    assert digest(model.prior) == digest(again.prior)
    for name in ("mode", "outputs", "nx", "nu", "num_data"):
        assert getattr(model, name) == getattr(again, name)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_confidence_set_keeps_its_bits_and_its_lineage(mixed, tmp_path):
    found = grown(mixed=mixed)
    path = gs.save(tmp_path / "F", found)
    again = gs.load(path)
    more = draw(6, 3, seed=5), draw(6, 2, seed=6)
    for one, other in (
        (found, again),
        (found.update(found.model.condition_on(*more)), again.update(again.model.condition_on(*more))),
    ):
        assert one.sound and other.sound and one.assumptions == other.assumptions
        assert all(torch.equal(a, b) for a, b in zip(one.bounds(QUERIES), other.bounds(QUERIES), strict=True))
    again.update(found.model.condition_on(*more))  # the model that stayed in memory continues the loaded set as well
    with pytest.raises(ValueError, match="observations of the last generation"):
        again.update(process(list(found.model.kernels) if mixed else None, blocks=(200,)))
    assert gs.save(tmp_path / "again", again).read_bytes() == path.read_bytes()


def test_a_gram_matrix_that_gpytorch_rounds_by_its_blocks_is_no_obstacle(tmp_path):
    """Far from the origin its values err by 1e-7, and differently in every block; the factor in the file is an honest one."""
    model = process(kernels.product(kernels.rbf(1.0), kernels.periodic(1.3, 0.7)), blocks=())
    for seed in range(5):
        model = model.condition_on(1e4 + draw(20, 3, seed=seed), draw(20, 2, seed=seed))
    again = gs.load(gs.save(tmp_path / "m", model))
    assert all(
        torch.equal(a, b) for a, b in zip(model.posterior(1e4 + QUERIES), again.posterior(1e4 + QUERIES), strict=True)
    )


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    model = process()
    model._factors[0].lower[1, 0] += 1e-6  # written on by someone
    with pytest.raises(ValueError, match="save: expected the Cholesky factor"):
        gs.save(tmp_path / "m", model)
    assert not list(tmp_path.iterdir())


def test_generations_share_what_they_share(tmp_path):
    found = grown()
    last = gs.ConfidenceSet(found.bound, (found.model,))
    assert gs.save(tmp_path / "all", found).stat().st_size < 1.1 * gs.save(tmp_path / "last", last).stat().st_size
    stores = {id(g._factors[0].store) for g in gs.load(tmp_path / "all").generations if g.num_data}
    assert len(stores) <= len({id(g._factors[0].store) for g in found.generations if g.num_data})


def test_generations_that_were_factored_on_their_own_keep_their_own_factors(tmp_path):
    model = process(blocks=(30,))
    other = process(blocks=()).condition_on(
        torch.cat([model.inputs, QUERIES]), torch.cat([model.targets, draw(40, 2)])
    )  # one block in place of two: other last digits
    found = gs.ConfidenceSet(gs.Mixture(rkhs_norm=3.0, subgaussian=0.1, delta=0.1), (model, other))
    again = gs.load(gs.save(tmp_path / "F", found))
    for one, two in zip(found.generations, again.generations, strict=True):
        same_posterior(one, two)


OPTIONS = {"chowdhury-gopalan": {"max_data": 40}, "actsafe": {"max_data": 40, "unchecked": True}}
OPTIONS |= {"lederer": {"lower": (-1.0,), "upper": (1.0,), "lipschitz": 3.0}, "fiedler": {"convention": "published"}}


@functools.cache
def examples() -> dict[str, object]:
    """One object of every class that a file may hold."""
    box = gs.Box(vector(-1.0, -2.0), vector(1.0, 2.0))
    cost = gs.IndicatorCost(torch.eye(2).double(), vector(1.0, 1.0))
    found = [make_bound(name, **{"rkhs_norm": (2.0, 0.1), "subgaussian": 0.3, "delta": 0.05, **OPTIONS.get(name, {})})
             for name in BOUNDS]  # fmt: skip
    shown, problem = certificate(), gp_pendulum(steps=2, count=10)
    parameters = SafeParameters.initial(draw(2, 3), budget=0.5)
    parameters = parameters.add(draw(1, 3), vector(0.2), episode=3, bound="dp", rule="bound")
    policies = gs.SafePolicySet.initial(6, [2], budget=0.5)
    upper = vector(math.inf, 0.4, 0.1, 0.45, 2.0, 2.0)
    policies = policies.expand(upper, episode=1, bound="dp", distance=0.35 * (1 - torch.eye(6).double()))
    found += [grown(), Falsification((1.0, 2.0), 0, 0.5, -0.5), box, gs.Polytope.of_box(box)]
    found += [
        gs.Ellipsoid(vector(0.0, 1.0), torch.eye(2).double()),
        gs.Zonotope(vector(0.0, 1.0), torch.eye(2).double()),
    ]
    found += [
        KNOWN,
        CartPoleKnown(9.8, 1.0, 0.1, 0.5, 10.0, 0.02, 8.0),
        gs.Task(vector(0.0, 0.0), 5, cost, 0.1, vector(0.1, 0.0)),
    ]
    found += [
        SineKnown(KNOWN.A, KNOWN.B, KNOWN.c, draw(1, 2), draw(1, 3), vector(0.3)),
        cost,
        gs.HingeCost(vector(1.0, 0.0), 0.5),
    ]
    found += [gs.AffinePolicies(draw(4, 1), draw(4, 1, 2), gs.Box(vector(-1.0), vector(1.0)))]
    found += [gs.Transitions(draw(3, 2), draw(3, 1), draw(3, 2)), gs.Verdict(-math.inf, 0.5, 1.0, witness="ω")]
    found += [CostInterval(vector(0.0), vector(0.5), True, "dp", 0.01, shown.assumptions, torch.tensor([False]))]
    found += [
        policies,
        parameters,
        Witness(0, "given", math.nan, "assumption"),
        shown,
        problem,
        shown.margins,
        shown.proposal,
    ]
    found += [shown.tightest, shown.tube, problem.model, shown.problem.model]
    assert {w.rule for w in policies.witnesses.values()} == {"given", "bound", "lipschitz"}
    return {type(value).__name__: value for value in found}


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_class_comes_back_with_equal_content(name, tmp_path):
    value = examples()[name]
    again = gs.load(gs.save(tmp_path / "x", value))
    assert type(again) is type(value) is CLASSES[name]
    for f in dataclasses.fields(value):
        if f.init and name not in ("ConfidenceSet", "GPTube", "CertificationProblem"):  # these hold models: see above
            assert digest(getattr(value, f.name)) == digest(getattr(again, f.name)), f.name


def test_assumptions_keep_their_kind(tmp_path):
    shown = certificate()
    again = gs.load(gs.save(tmp_path / "c", shown))
    assert again.certified and again.outcome is shown.outcome
    assert [a.kind for a in again.assumptions] == [a.kind for a in shown.assumptions]


def test_a_certificate_of_a_learned_tube_comes_back(tmp_path):
    problem = gp_pendulum(steps=2, count=10)
    shown = gs.judge(problem, vector(0.0, 0.0), vector(0.1), propose(plan(0.0, 0.0)))
    again = gs.load(gs.save(tmp_path / "c", shown))
    assert again.outcome is shown.outcome and torch.equal(again.tube.factor, shown.tube.factor)
    x0 = vector(0.05, 0.1)
    assert torch.equal(again.problem.tube(x0, plan(0.1, 0.0)).factor, problem.tube(x0, plan(0.1, 0.0)).factor)


def test_numpy_alone_reads_a_file(tmp_path):
    model = process(blocks=(5, 3))
    with np.load(gs.save(tmp_path / "m", model), allow_pickle=False) as found:
        about = json.loads(found["object.json"])
        lower = found[about["object"]["factors"][0]["lower"]["array"]]
        inputs = found[about["object"]["inputs"]["array"]]
    assert about["format"] == FORMAT
    call = about["kernels"][0]
    gap = (inputs[:, None] - inputs[None]) / np.array(call["lengthscale"])
    gram = call["variance"] * np.exp(-0.5 * (gap**2).sum(-1))
    assert call["kernel"] == "rbf" and np.allclose(lower @ lower.T, gram + 0.01 * np.eye(8))


# ------------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize("family", sorted(set(ALL_KERNELS) - set(STATED)))
def test_a_kernel_made_elsewhere_is_refused_by_name(family, tmp_path):
    with pytest.raises(ValueError, match=re.escape(kernels.describe(make_kernel(family, 3)))):
        gs.save(tmp_path / "m", process(make_kernel(family, 3)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("edit", [{"nu": 0.7}, {"eps": 1e-3}, {"distance_module": None, "marked": True}], ids=str)
def test_a_kernel_that_its_call_does_not_describe_is_refused(edit, tmp_path):
    kernel = make_kernel("matern-5/2", 3)
    vars(kernel.base_kernel).update(edit)
    with pytest.raises(ValueError, match="MaternKernel"):
        gs.save(tmp_path / "m", gs.GP.create(kernel, 0.1, nx=2, nu=1, noise_std=0.1))


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (lambda: process(prior=lambda x, u: 0 * x), "GP.prior: the function .*<lambda>"),
        (
            lambda: make_bound("srinivas", rkhs_norm=1.0, subgaussian=0.1, delta=0.1, max_info_gain=float),
            "max_info_gain",
        ),
        (lambda: gs.Box(vector(0.0), vector(1.0)).contains, "method"),
        (lambda: {"model": torch.zeros(3)}, "float64"),
        (lambda: (1, object()), r"tuple\[1\]: builtins.object"),
        (lambda: 1j, "complex"),
    ],
    ids=["prior", "bound", "method", "float32", "object", "complex"],
)
def test_what_has_no_form_is_refused_by_name(value, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        gs.save(tmp_path / "x", value())
    assert not list(tmp_path.iterdir())


def test_a_learner_is_pointed_to_its_own_save(tmp_path):
    with pytest.raises(ValueError, match="a learner"):
        gs.save(tmp_path / "x", object.__new__(gs.ActSafe))
    (tmp_path / "learner.json").write_text("{}")
    with pytest.raises(ValueError, match="its class loads it"):
        gs.load(tmp_path)


def test_missing_foreign_and_newer_files_are_named(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(ValueError, match=f"{path}: missing"):
        gs.load(path)
    for data in (b"", b"not a zip", json.dumps({"format": FORMAT}).encode()):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"{path}: torn or foreign"):
            gs.load(path)
    np.savez(tmp_path / "plain.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="foreign"):
        gs.load(tmp_path / "plain.npz")
    for form, named in (("gpsafe object 2", "another version"), ("else 1", "foreign"), (3, "foreign")):
        with pytest.raises(ValueError, match=named):
            gs.load(rewritten(gs.save(path, KNOWN), lambda about, _, form=form: about.update(format=form)))
    with pytest.raises(ValueError, match="folder"):
        gs.save(tmp_path, KNOWN)


def test_a_file_runs_nothing(tmp_path):
    """Pickled arrays, and classes that nobody listed, are refused before anything of theirs is made."""
    pickled = np.array([print], dtype=object)
    with pytest.raises(ValueError, match="allow_pickle"):
        gs.load(rewritten(gs.save(tmp_path / "x", KNOWN), lambda _, arrays: arrays.update(a9=pickled)))
    for tree in (
        {"class": "Popen", "args": "ls"},
        {"function": "print"},
        {"kernel": 0},
        {"believed": "LUCK", "detail": ""},
    ):
        with pytest.raises(ValueError, match="x, got"):
            gs.load(rewritten(gs.save(tmp_path / "x", KNOWN), lambda about, _, tree=tree: about.update(object=tree)))
    call = {"kernel": "freeze", "kernel_": 1}
    with pytest.raises(ValueError, match="rbf"):
        gs.load(rewritten(gs.save(tmp_path / "x", KNOWN), lambda about, _: about.update(kernels=[call])))


@functools.cache
def honest(folder: str) -> tuple[bytes, bytes]:
    path = gs.save(f"{folder}/x", process(blocks=(2,)))
    return path.read_bytes(), gs.save(f"{folder}/y", gs.load(path)).read_bytes()


@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), cut=st.booleans())
def test_a_torn_file_is_refused_or_harmless(place, flip, cut, tmp_path_factory):
    """A byte changed or the end cut off: the file is refused by name, or what it says has not changed."""
    folder = str(tmp_path_factory.getbasetemp())
    whole, _ = honest(folder)
    at = int(place * len(whole))
    path = f"{folder}/torn"
    with open(path, "wb") as file:
        file.write(whole[:at] if cut else whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
    try:
        again = gs.load(path)
    except ValueError as error:
        refusal = str(error)
    else:
        refusal = f"{path}: its content is the old one"
        assert not cut and gs.save(f"{folder}/z", again).read_bytes() == whole
    assert path in refusal


# ------------------------------------------------------------------------------------- what is not believed
def model_of(about):
    return about["object"]


def scaled_factor(about, arrays):
    arrays[model_of(about)["factors"][0]["lower"]["array"]] *= 1 + 1e-9


def smaller_inverse(about, arrays):
    arrays[model_of(about)["factors"][0]["inverse"]["array"]] *= 1 + 1e-9


def dense_inverse(about, arrays):
    arrays[model_of(about)["factors"][0]["inverse"]["array"]][0, -1] = 1e-9


def moved_datum(about, arrays):
    arrays[model_of(about)["inputs"]["array"]][3, 1] += 1e-6


def other_lambda(about, arrays):
    arrays[model_of(about)["regularizer"]["array"]] *= 0.5


def other_kernel(about, arrays):
    about["kernels"][0]["variance"] *= 1.001


def quiet_rows(about, arrays):
    arrays[model_of(about)["noise_scale"]["array"]][:] = 0.5


def unknown_mode(about, arrays):
    model_of(about)["mode"] = "certain"


def infinite_target(about, arrays):
    arrays[model_of(about)["targets"]["array"]][0, 0] = math.inf


def missing_field(about, arrays):
    del model_of(about)["noise_scale"]


def missing_array(about, arrays):
    del arrays[model_of(about)["targets"]["array"]]


MODEL_FORGERIES = [scaled_factor, smaller_inverse, dense_inverse, moved_datum, other_lambda, other_kernel, quiet_rows]
MODEL_FORGERIES += [unknown_mode, infinite_target, missing_field, missing_array]


@pytest.mark.parametrize("forge", MODEL_FORGERIES, ids=lambda f: f.__name__)
def test_a_model_whose_parts_do_not_fit_is_refused(forge, tmp_path):
    path = gs.save(tmp_path / "m", process(scaled=True))
    rewritten(path, lambda about, arrays: None)
    gs.load(path)  # control: the rewriting alone changes nothing
    with pytest.raises(ValueError, match=f"what gpsafe.save writes in {path}"):
        gs.load(rewritten(path, forge))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_a_set_whose_generations_do_not_continue_each_other_is_refused(n, tmp_path):
    def swap(about, arrays):
        generations = about["object"]["generations"]
        generations[n], generations[n + 1] = generations[n + 1], generations[n]

    with pytest.raises(ValueError, match="last generation"):
        gs.load(rewritten(gs.save(tmp_path / "F", grown()), swap))


def witnesses_of(about):
    return dict(about["object"]["witnesses"]["map"])


@pytest.mark.parametrize(
    "change",
    [
        lambda about: witnesses_of(about)[1].update(value=0.6),
        lambda about: witnesses_of(about)[1].update(value={"number": "nan"}),
        lambda about: witnesses_of(about)[1].update(value={"number": "-inf"}),
        lambda about: witnesses_of(about)[1].update(rule="luck"),
        lambda about: witnesses_of(about)[0].update(neighbour=99),
        lambda about: witnesses_of(about)[0].update(neighbour=None),
        lambda about: about["object"]["witnesses"]["map"].append([17, witnesses_of(about)[1]]),
        lambda about: about["object"].update(budget=0.3),
        lambda about: about["object"]["witnesses"].update(map=[]),
    ],
)
def test_a_safe_set_with_a_member_beyond_the_budget_is_refused(change, tmp_path):
    path = gs.save(tmp_path / "S", examples()["SafePolicySet"])
    with pytest.raises(ValueError, match=f"in {path}"):
        gs.load(rewritten(path, lambda about, _: change(about)))


@pytest.mark.parametrize("names", [("budget",), ("theta",), ("radius",)], ids=str)
def test_safe_parameters_that_do_not_fit_are_refused(names, tmp_path):
    def change(about, arrays):
        for name in names:
            if name == "budget":
                about["object"]["budget"] = 0.1
            else:
                array = about["object"][name]["array"]
                arrays[array] = arrays[array][:-1] if name == "theta" else arrays[array] - 1.0

    with pytest.raises(ValueError, match="SafeParameters"):
        gs.load(rewritten(gs.save(tmp_path / "S", examples()["SafeParameters"]), change))


def narrower_tube(about, arrays):
    arrays[about["object"]["tube"]["factor"]["array"]] *= 0.5


def wider_states(about, arrays):
    arrays[about["object"]["problem"]["states"]["h"]["array"]] *= 2.0


def better_verdict(about, arrays):
    about["object"]["verdict"].update(upper=-9.0, lower=-9.0)


def fewer_assumptions(about, arrays):
    about["object"]["assumptions"].pop()


def another_action(about, arrays):
    arrays[about["object"]["action"]["array"]] += 0.5


def no_tube(about, arrays):
    about["object"]["tube"] = None


CERTIFICATE_FORGERIES = [narrower_tube, wider_states, better_verdict, fewer_assumptions, another_action, no_tube]


@pytest.mark.parametrize("forge", CERTIFICATE_FORGERIES, ids=lambda f: f.__name__)
def test_a_certificate_that_the_judge_does_not_confirm_is_refused(forge, tmp_path):
    with pytest.raises(ValueError, match="Certificate whose claims hold"):
        gs.load(rewritten(gs.save(tmp_path / "c", certificate()), forge))


def test_a_refusal_cannot_be_turned_into_a_certificate(tmp_path):
    problem = double_integrator(steps=3)
    shown = gs.judge(problem, vector(0.2, 0.0), vector(0.3), propose(plan(5.0, 0.0, 0.0)))
    assert not shown.certified
    assert not gs.load(gs.save(tmp_path / "c", shown)).certified
    with pytest.raises(ValueError, match="where the judge finds"):
        gs.load(rewritten(tmp_path / "c", better_verdict))
