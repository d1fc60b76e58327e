"""Contract of every confidence bound in the registry."""

import functools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpsafe.confidence import BOUNDS, ConfidenceBound, ConfidenceSet, make_bound
from gpsafe.models.gp import GP
from gpsafe.rkhs import kernels
from tests.strategies import dear, seeds

EXACT = 1e-12
NORM, NOISE = 1.5, 0.3
# Per bound: options, and the regulariser of a model that it covers (for up to 30 data).
CASES: dict[str, tuple[dict, float]] = {
    "mixture": ({}, 0.2),
    "abbasi-yadkori": ({}, 0.2),
    "fiedler": ({}, 2.0),
    "chowdhury-gopalan": ({"max_data": 30}, 1 + 2 / 30),
    "actsafe": ({"max_data": 30}, 1 + 2 / 30),
    "srinivas": ({}, NOISE**2),
    "convex-program": ({}, 0.2),
    "noise-energy": ({"noise_kind": "gaussian"}, 0.2),
    "lederer": ({"lower": (0.0,), "upper": (1.0,)}, NOISE**2),
    "constant": ({"value": 2.5}, 0.2),
}
# Heuristics, and bounds under another assumption, need not be wider than the mixture.
RKHS_THEOREMS = tuple(n for n in BOUNDS if BOUNDS[n].sound and BOUNDS[n].frequentist and n != "noise-energy")
FREQUENTIST = tuple(name for name in BOUNDS if BOUNDS[name].frequentist)
every = pytest.mark.parametrize("name", sorted(BOUNDS))


def build(name: str, delta: float = 0.1, **changes) -> ConfidenceBound:
    options = {**CASES[name][0], **changes}
    if BOUNDS[name].frequentist:
        options = {"rkhs_norm": NORM, "subgaussian": NOISE, **options}
    return make_bound(name, delta=delta, **options)


@functools.cache
def prior_for(outputs: int, regularizer: float, mode: str) -> GP:
    family = [kernels.rbf([0.3] * outputs), kernels.matern(1.5, [0.5] * outputs)][:outputs]
    return GP.create(family, regularizer, nx=outputs, nu=0, noise_std=NOISE, mode=mode)


def model_for(
    name: str, seed: int = 0, *, count: int = 12, outputs: int = 1, lam: float | None = None, mode: str = "theory"
) -> GP:
    generator = torch.Generator().manual_seed(seed)
    model = prior_for(outputs, CASES[name][1] if lam is None else lam, mode)
    if count == 0:
        return model
    z = torch.rand(count, outputs, dtype=torch.float64, generator=generator)
    y = torch.sin(3 * z) + NOISE * torch.randn(count, outputs, dtype=torch.float64, generator=generator)
    return model.condition_on(z, y)


def points(model: GP, seed: int = 1, shape: tuple[int, ...] = (20,)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, model.nx, dtype=torch.float64, generator=generator)


def test_every_registered_bound_has_a_case():
    assert set(CASES) == set(BOUNDS)


@every
def test_registry_name_source_and_soundness_are_stated(name):
    bound = build(name)
    assert bound.name == name
    assert bound.source
    assert bound.sound is (name != "constant")


def test_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"make_bound: expected name in \{.*mixture"):
        make_bound("mixtura", delta=0.1)


@every
@given(seed=seeds(), count=st.integers(0, 30))
def test_beta_is_finite_positive_and_falls_with_delta(name, seed, count):
    model = model_for(name, seed, count=count)
    tight, loose = build(name, 0.01).beta(model), build(name, 0.2).beta(model)
    assert tight.shape == (1,)
    assert bool((loose > 0).all())
    assert bool(torch.isfinite(tight).all())
    assert bool((tight >= loose).all())


@pytest.mark.parametrize("name", FREQUENTIST)
def test_beta_grows_with_norm_and_noise(name):
    model = model_for(name)
    base = build(name).beta(model)
    assert bool((build(name, rkhs_norm=2 * NORM).beta(model) > base).all())
    louder = build(name, subgaussian=2 * NOISE, unchecked=True).beta(model)
    assert bool((louder > base).all()) or name == "srinivas"  # which reads the noise from λ


@every
@dear()
@given(seed=seeds(), count=st.integers(0, 30))
def test_interval_is_ordered_and_contains_the_mean(name, seed, count):
    model = model_for(name, seed, count=count)
    z = points(model, seed, (6,))
    low, high = build(name).interval(model, z)
    mean, _ = model.posterior(z)
    assert bool((low <= high).all())
    if name not in ("convex-program", "noise-energy"):  # whose interval need not contain μ_λ
        assert bool(((low <= mean) & (mean <= high)).all())


@every
def test_interval_keeps_leading_batch_dims(name):
    model = model_for(name)
    z = points(model, shape=(3, 4))
    low, high = build(name).interval(model, z)
    flat_low, flat_high = build(name).interval(model, z.reshape(12, 1))
    assert low.shape == high.shape == (3, 4, 1)
    assert float((low.reshape(12, 1) - flat_low).abs().max()) <= 1e-9
    assert float((high.reshape(12, 1) - flat_high).abs().max()) <= 1e-9


@every
def test_delta_is_split_over_outputs(name):
    changes = {"lower": (0.0, 0.0), "upper": (1.0, 1.0), "lipschitz": 5.0} if name == "lederer" else {}
    model = model_for(name, outputs=2)
    both = build(name, 0.1, **changes).beta(model)
    kernel_models = [
        GP.create(kernel, CASES[name][1], nx=2, nu=0, noise_std=NOISE, outputs=[j]).condition_on(
            model.inputs, model.targets[:, j : j + 1]
        )
        for j, kernel in enumerate(model.kernels)
    ]
    single = torch.cat([build(name, 0.05, **changes).beta(m) for m in kernel_models])
    assert float((both - single).abs().max()) <= 1e-9 * float(both.max())


@pytest.mark.parametrize("name", FREQUENTIST)
def test_norm_and_noise_per_output(name):
    model = model_for(name, outputs=2)
    vector = build(name, rkhs_norm=(NORM, 2 * NORM), subgaussian=(NOISE, NOISE)).beta(model)
    base, double = build(name).beta(model), build(name, rkhs_norm=2 * NORM).beta(model)
    assert float((vector[0] - base[0]).abs()) <= EXACT * float(base[0])
    assert float((vector[1] - double[1]).abs()) <= EXACT * float(double[1])
    with pytest.raises(ValueError, match="rkhs_norm scalar or of length 2"):
        build(name, rkhs_norm=(1.0, 1.0, 1.0)).beta(model)


@every
def test_practical_mode_is_refused_unless_unchecked_which_marks_the_output(name):
    model = model_for(name, mode="practical")
    with pytest.raises(ValueError, match="theory-mode"):
        build(name).beta(model)
    marked = build(name, unchecked=True)
    assert bool(torch.isfinite(marked.beta(model)).all())
    assert any("unchecked" in line for line in marked.assumptions(model))
    assert not ConfidenceSet(marked).update(model).sound


@every
def test_set_is_sound_exactly_for_theorems(name):
    model = model_for(name)
    assert ConfidenceSet(build(name)).update(model).sound is BOUNDS[name].sound
    assert build(name).assumptions(model)


@every
@pytest.mark.parametrize(
    "changes",
    [{"delta": 0.0}, {"delta": 1.0}, {"delta": math.nan}, {"delta": -0.1}, {"rkhs_norm": 0.0}, {"rkhs_norm": math.nan},
     {"rkhs_norm": -1.0}, {"subgaussian": 0.0}, {"subgaussian": -math.inf}],
)  # fmt: skip
def test_bad_parameters_are_refused(name, changes):
    with pytest.raises(ValueError, match="expected"):
        replace(build(name), **changes)


@pytest.mark.parametrize("name", RKHS_THEOREMS)
@given(seed=seeds(), count=st.integers(1, 30), delta=st.sampled_from([0.001, 0.1, 0.5]))
def test_no_closed_form_beta_is_below_the_mixture(name, seed, count, delta):
    model = model_for(name, seed, count=count)
    reference = make_bound("mixture", rkhs_norm=NORM, subgaussian=NOISE, delta=delta).beta(model)
    assert bool((build(name, delta).beta(model) >= reference * (1 - EXACT)).all())


@pytest.mark.parametrize(
    ("name", "changes", "lam", "count", "reason"),
    [
        ("chowdhury-gopalan", {}, 0.09, 5, r"lambda = 1 \+ 2/max_data"),
        ("chowdhury-gopalan", {}, None, 31, "n <= max_data"),
        ("actsafe", {}, 0.09, 5, r"lambda = 1 \+ 2/max_data"),
        ("actsafe", {"max_data": None}, 0.09, 5, "max_data"),
        ("srinivas", {}, 0.2, 5, r"lambda = subgaussian\^2"),
        ("fiedler", {"convention": "published"}, 2.0, 5, "lambda <= 1"),
        ("lederer", {"lower": (0.0, 0.0), "upper": (1.0, 1.0)}, None, 5, "dimension 2"),
    ],
)
def test_a_model_outside_the_theorem_is_refused_unless_unchecked(name, changes, lam, count, reason):
    model = model_for(name, count=count, lam=lam)
    with pytest.raises(ValueError, match=reason):
        build(name, **changes).beta(model)
    with pytest.raises(ValueError, match="unchecked=True"):
        ConfidenceSet(build(name, **changes)).update(model)
    marked = build(name, **changes, unchecked=True)
    assert bool((marked.beta(model) > 0).all())
    assert not ConfidenceSet(marked).update(model).sound
