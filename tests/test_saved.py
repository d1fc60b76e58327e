"""Saved objects: the same bits come back, files say what they are, and what cannot be written is named."""

import dataclasses
import functools
import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from saved_cases import KNOWN, QUERIES, certificate, draw, examples, grown, process, rewritten
from strategies import ALL_KERNELS, make_kernel
from xmpsc_cases import gp_pendulum, plan, propose

import gpsafe as gs
from gpsafe.assumptions import Believed
from gpsafe.confidence import make_bound
from gpsafe.confidence.lineage import fingerprint
from gpsafe.linalg import vector
from gpsafe.models import identity_prior
from gpsafe.rkhs import kernels
from gpsafe.saved import FORMAT
from gpsafe.saved._learner import digest
from gpsafe.saved.codec import CLASSES

STATED = [name for name in ALL_KERNELS if kernels.is_stated(make_kernel(name, 2))]


def same_posterior(one: gs.GP, other: gs.GP) -> None:
    for ask in (gs.GP.posterior, gs.GP.gradient, gs.GP.prior_variance, gs.GP.residual_mean):
        a, b = ask(one, QUERIES), ask(other, QUERIES)
        assert all(torch.equal(v, w) for v, w in zip(a, b, strict=True))
    assert torch.equal(one.covariance(QUERIES), other.covariance(QUERIES))
    for ask in (gs.GP.info_gain, gs.GP.posterior_norm, gs.GP.log_marginal_likelihood):
        assert torch.equal(ask(one), ask(other))


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
    ids=["scaled", "no blocks", "identity", "practical", "no inputs"],
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
    assert [type(a) for a in shown.assumptions] == [Believed] * len(shown.assumptions)
    assert [getattr(a, "kind", None) for a in again.assumptions] == [
        getattr(a, "kind", None) for a in shown.assumptions
    ]


def test_a_certificate_of_a_learned_tube_comes_back(tmp_path):
    problem = gp_pendulum(steps=2, count=10)
    shown = gs.judge(problem, vector(0.0, 0.0), vector(0.1), propose(plan(0.0, 0.0)))
    again = gs.load(gs.save(tmp_path / "c", shown))
    assert shown.tube is not None
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


@pytest.mark.parametrize(
    "edit", [{"nu": 0.7}, {"eps": 1e-3}, {"distance_module": None, "marked": True}], ids=["nu", "eps", "module"]
)
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
