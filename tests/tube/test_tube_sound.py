"""Sound tubes: remainders against samples, containment of every plant that the assumption admits, and broken ones."""

import math
from dataclasses import replace
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds
from xmpsc_cases import gp_confidence, gp_pendulum, pendulum_data, pendulum_ensemble, plan

from gpsafe.confidence import ConfidenceSet
from gpsafe.confidence.members import extremal_member
from gpsafe.models import Ensemble, Normalizer, identity_prior, zero_prior
from gpsafe.models._mlp import MLP
from gpsafe.sets import Ellipsoid
from gpsafe.systems.known import pendulum_known
from gpsafe.systems.reference import reference_pendulum
from gpsafe.tube import EnsembleTube, GPTube, Tube, propagate
from gpsafe.tube.ensemble import _cells

KNOWN = pendulum_known(gravity=10.0, gain=3.0, damping=0.3, dt=0.1, hanging_at_zero=False, semi_implicit=True)
PRIORS = {"identity": identity_prior, "zero": zero_prior, "pendulum": KNOWN}


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def curved_ensemble(seed: int, prior: str = "zero", gain: float = 2.0) -> Ensemble:
    """Strongly curved random networks with uneven scales."""
    network = MLP.random(3, (3, 8, 6, 4), torch.Generator().manual_seed(seed))
    return Ensemble.from_weights(
        [gain * w for w in network.weights],
        network.biases,
        nx=2,
        nu=1,
        inputs=Normalizer(0.1 * draw(seed + 1, 3), torch.exp(0.3 * draw(seed + 2, 3))),
        targets=Normalizer(torch.zeros(2).double(), torch.exp(0.3 * draw(seed + 3, 2))),
        log_var_limits=torch.tensor([[-10.0, -9.0], [-6.0, -7.0]], dtype=torch.float64),
        prior=PRIORS[prior],
    )


def ball(seed: int, count: int, dim: int) -> torch.Tensor:
    """Points of the unit ball, half of them on its boundary."""
    ray = draw(seed, count, dim)
    ray = ray / ray.norm(dim=-1, keepdim=True)
    ray[: count // 2] *= torch.rand(count // 2, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return ray


@given(seeds(), st.sampled_from(sorted(PRIORS)), st.sampled_from([1e-3, 0.05, 0.5]))
@settings(max_examples=15)
def test_ensemble_remainders_bound_curvature_and_spread_over_the_section(seed, prior, size):
    model = EnsembleTube.sound(curved_ensemble(seed, prior), steps=3, delta=0.1)
    x, u = draw(seed, 3, 2), draw(seed + 1, 3, 1)
    factor, gain = size * draw(seed + 2, 3, 2, 2), draw(seed + 3, 1, 2)
    local, rest = model.linearise(x, u), model.remainder(x, u, factor, gain)
    e = (factor.unsqueeze(1) @ ball(seed, 200, 2).unsqueeze(-1)).squeeze(-1)  # (M, 200, 2)
    moved = model.ensemble.evaluate(x.unsqueeze(1) + e, u.unsqueeze(1) + e @ gain.mT, paired=True)
    linear = local.mean.unsqueeze(1) + e @ (local.A + local.B @ gain).mT
    spread = (model.radius * moved[1] - local.variance.sqrt().unsqueeze(1)).clamp_min(0.0)
    excess = (moved[0] - linear).abs() + spread - rest.unsqueeze(1)
    assert float(excess.max()) <= 1e-12
    if size == 0.5:
        assert float((moved[0] - linear).abs().max()) > 1e-3  # the curvature is there to be bounded


@given(st.integers(1, 4), st.integers(1, 80), seeds())
@settings(max_examples=10)
def test_cells_cover_the_unit_ball(dim, budget, seed):
    centers, half = _cells(dim, budget, torch.zeros(1).double())
    assert len(centers) <= budget
    gaps = (ball(seed, 100, dim).unsqueeze(1) - centers).abs().amax(-1).amin(-1)
    assert float(gaps.max()) <= half * (1 + 1e-12)


def test_cells_make_large_sections_affordable():
    """Eight steps of the trained pendulum: some 1e2 rad wide with one cell, half a radian with 64."""
    one, many = (replace(EnsembleTube.sound(pendulum_ensemble(), steps=8, delta=0.1), cells=cells) for cells in (1, 64))
    gain, x0 = torch.tensor([[0.2, -0.8]]).double(), torch.tensor([math.pi, 0.3]).double()
    wide, narrow = (propagate(m, x0, plan(*[0.0] * 8), gain).ellipsoids.radius[:, -1, 0].amax() for m in (one, many))
    assert float(narrow) < 0.6
    assert float(wide) > 10.0


def follow(tube: Tube, inputs: torch.Tensor, step, paths: int, member: int = 0) -> float:
    """Largest gauge of closed-loop paths in a member's tube, step(x, u, k) → x⁺."""
    x, worst = tube.center[member, 0].expand(paths, -1), 0.0
    for k in range(tube.steps):
        u = inputs[k] + (x - tube.reference[k]) @ tube.gain[k].mT
        x = step(x, u, k)
        worst = max(worst, float(Ellipsoid(tube.center[member, k + 1], tube.factor[member, k + 1]).gauge(x).max()))
    return worst


def admitted_plant(model: EnsembleTube, member: int, seed: int):
    """x⁺ = μ_m + radius·σ_m(z)∘ξ at z itself, ‖ξ‖ = 1: every step at the edge of what `calibrated` admits."""
    one = model.ensemble.member(member)

    def step(x, u, k):
        mean, std = one.evaluate(x, u)
        ray = draw(seed + k, *x.shape)
        return mean[0] + model.radius * std[0] * ray / ray.norm(dim=-1, keepdim=True)

    return step


@given(seeds(), st.sampled_from(sorted(PRIORS)))
@settings(max_examples=10)
def test_sound_ensemble_tubes_contain_every_admitted_plant_of_every_member(seed, prior):
    model = EnsembleTube.sound(curved_ensemble(seed, prior), steps=4, delta=0.1)
    inputs, gain = 0.5 * draw(seed + 1, 4, 1), 0.3 * draw(seed + 2, 1, 2)
    tube = propagate(model, 0.3 * draw(seed, 2), inputs, gain)
    for m in range(3):
        assert follow(tube, inputs, admitted_plant(model, m, seed), 100, m) <= 1 + 1e-9
    assert float(tube.factor.abs().max()) < 1e3  # small enough to say something


def test_control_tubes_without_a_remainder_are_left():
    worst = 0.0
    with mock.patch.object(EnsembleTube, "remainder", lambda self, x, *_: torch.zeros_like(x)):
        for seed in range(12):
            model = EnsembleTube.sound(curved_ensemble(seed, gain=4.0), steps=4, delta=0.1)
            inputs, gain = 0.5 * draw(seed + 1, 4, 1), 0.3 * draw(seed + 2, 1, 2)
            tube = propagate(model, 0.3 * draw(seed, 2), inputs, gain)
            worst = max(worst, *(follow(tube, inputs, admitted_plant(model, m, seed), 200, m) for m in range(3)))
    assert worst > 1.05


def test_conformal_radii_are_order_statistics():
    ensemble, rows = pendulum_ensemble(), pendulum_data(99, 5)
    mean, std = ensemble.evaluate(rows.x, rows.u)
    scores = ((rows.x_next - mean) / std).norm(dim=-1).amax(0).sort().values
    assert EnsembleTube.calibrated(ensemble, rows, steps=1, delta=0.1).radius == float(scores[89])
    assert EnsembleTube.calibrated(ensemble, rows, steps=5, delta=0.1).radius == float(scores[97])


# ---------------------------------------------------------------------------- Gaussian process
def gp_worst(model: GPTube, seed: int, residual) -> float:
    """Gauge of closed loops of known part + residual, with noises at the edge of their ellipsoids."""
    system = reference_pendulum()
    inputs, gain = 0.6 * draw(seed, 6, 1), torch.tensor([[-3.0, -0.6]]).double()
    tube = propagate(model, torch.tensor([0.3, -0.5]).double(), inputs, gain)
    half_axes = model.linearise(tube.center[:, 0], tube.inputs[:, 0]).variance.sqrt()[0]

    def step(x, u, k):
        ray = draw(seed + k, *x.shape)
        value = system.known(x, u).clone()
        value[:, 1] += residual(torch.cat([x, u], dim=-1))
        return value + half_axes * ray / ray.norm(dim=-1, keepdim=True)

    return follow(tube, inputs, step, 60)


@pytest.mark.parametrize("count", [1, 60])
def test_sound_gp_tubes_contain_f_star_and_members_at_the_edge(count):
    confidence = gp_confidence(count)
    model = GPTube(confidence, 6, 0.1)
    system = reference_pendulum()
    z = torch.tensor([0.3, -0.5, 0.2], dtype=torch.float64)
    edge = [extremal_member(confidence.bound, confidence.model, z, sign) for sign in (1.0, -1.0)]
    worst = [gp_worst(model, 3, f) for f in (lambda v: system.residual_fn(v)[..., 0], *edge)]
    assert max(worst) <= 1 + 1e-9
    with mock.patch.object(GPTube, "remainder", lambda self, x, *_: torch.zeros_like(x)):
        assert max(gp_worst(model, 3, f) for f in edge) > 1.1


def test_gp_remainders_vanish_only_with_the_section_and_the_doubt():
    model = GPTube(gp_confidence(60), 4, 0.1)
    x, u, gain = torch.zeros(1, 2).double(), torch.zeros(1, 1).double(), torch.zeros(1, 2).double()
    previous = 0.0
    for size in (0.0, 0.01, 0.1, 0.5):
        rest = model.remainder(x, u, size * torch.eye(2).double().unsqueeze(0), gain)
        assert float(rest[0, 1]) > previous
        previous = float(rest[0, 1])
    low, high = model.confidence.bounds(torch.zeros(1, 3).double())
    at_point = model.remainder(x, u, torch.zeros(1, 2, 2).double(), gain)
    assert float(at_point[0, 1]) == pytest.approx(float(0.5 * (high - low)), rel=1e-6)


def test_an_empty_confidence_set_claims_nothing():
    confidence = gp_confidence(60)
    shifted = confidence.model.condition_on(torch.zeros(50, 3).double(), torch.full((50, 1), 0.8).double())
    model = GPTube(ConfidenceSet(confidence.bound).update(confidence.model).update(shifted), 4, 0.1)
    assert confidence.falsified(torch.zeros(1, 3).double()) is None
    tube = propagate(model, torch.zeros(2).double(), plan(0, 0), torch.zeros(1, 2).double())
    assert not bool(torch.isfinite(tube.factor[:, 1]).all())


def test_gp_tubes_say_what_they_assume():
    problem = gp_pendulum()
    told = " ".join(problem.model.assumptions)
    assert all(word in told for word in ("rkhs_norm", "subgaussian", "Gaussian noise", "4 steps"))
    with pytest.raises(ValueError, match="delta in \\(0, 1\\)"):
        GPTube(gp_confidence(60), 4, 1.5)
