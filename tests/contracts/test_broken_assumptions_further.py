"""The assumptions of intervals, tubes, the shield and the filter: each does damage where it is false, or is no statement about
the world (see `test_broken_assumptions` for cost bounds)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from filter_cases import extreme, linear_filter
from shield_cases import case_of, judge_of, tracking_of
from test_broken_assumptions import CASES as COST_CASES
from test_broken_assumptions import REASONS as COST_REASONS
from test_broken_assumptions import belief, draws
from xmpsc_cases import pendulum_data, pendulum_ensemble, propose

from gpsafe.assumptions import Assumption
from gpsafe.certify import CertificationProblem, judge
from gpsafe.confidence import ActSafeForm, ConfidenceBound, Constant, Lederer, Mixture, NoiseEnergy, Srinivas
from gpsafe.data import Transitions
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.safety.safeopt import lipschitz_safe
from gpsafe.safety.shield import Shield
from gpsafe.sets import Box, Polytope
from gpsafe.systems.double_integrator import DoubleIntegrator
from gpsafe.tube import EnsembleTube, LinearTube, Tube

A = Assumption

# -------------------------------------------------------------- intervals at z = 0, from observations of one value there
BOX = {"lower": (-1.0, -1.0), "upper": (1.0, 1.0)}
LEDERER = Lederer(delta=0.1, **BOX, grid_radius=1e-3)
NOISY = next(
    2.0 * draws(4, s, scale=1.0) for s in range(1000) if float(draws(4, s).mean()) < -0.09
)  # deviation 2, not 0.1
UNLUCKY = next(
    draws(9, s) for s in range(1000) if 0.075 < -float(draws(9, s).mean()) < 0.1
)  # a mean 2.2 to 3 deviations off


@dataclass(frozen=True)
class Interval:
    """A bound, the observations of f(0) that it is shown, and f(0)."""

    bound: ConfidenceBound
    observed: torch.Tensor | None
    value: float
    scale: torch.Tensor | None = None  # of the noise, as stated

    def model(self) -> GP:
        model = belief(None).model
        if self.observed is not None:
            model = model.condition_on(
                torch.zeros(len(self.observed), 2).double(), self.observed[:, None], noise_scale=self.scale
            )
        return model

    def misses(self) -> bool:
        low, high = self.bound.interval(self.model(), torch.zeros(1, 2).double())
        return not float(low) <= self.value <= float(high)


MIXTURE = Mixture(rkhs_norm=1.0, subgaussian=0.1, delta=0.1)
SRINIVAS = Srinivas(rkhs_norm=1.0, subgaussian=0.1, delta=0.9, max_info_gain=lambda n: 0.35)
BIASED = NoiseEnergy(rkhs_norm=1.0, subgaussian=0.1, delta=0.1, noise_kind="bounded")
INTERVALS: dict[Assumption, tuple[Interval, Interval]] = {  # (false, true)
    A.BOUNDED_OBSERVATION: (
        Interval(SRINIVAS, torch.full((100,), -6.0).double(), 0.0),
        Interval(SRINIVAS, torch.full((100,), -0.1).double(), 0.0),
    ),
    A.NOISE_ENERGY: (
        Interval(BIASED, torch.full((100,), 0.5).double(), 0.0),
        Interval(BIASED, torch.full((100,), 0.1).double(), 0.0),
    ),
    A.GAUSSIAN_PRIOR: (Interval(LEDERER, None, 20.0), Interval(LEDERER, None, 2.0)),
    A.LAMBDA_NOISE: (Interval(LEDERER, NOISY, 0.9), Interval(LEDERER, 0.05 * NOISY, 0.0)),
    A.CALIBRATED_CONSTANT: (
        Interval(Constant(value=2.0), UNLUCKY, 0.0),
        Interval(Constant(value=4.0), UNLUCKY, 0.0),
    ),
    A.NOT_A_THEOREM: (
        Interval(Constant(value=2.0), UNLUCKY, 0.0),
        Interval(MIXTURE, UNLUCKY, 0.0),
    ),
    A.NOISE_SCALES: (
        Interval(MIXTURE, 20 * NOISY, 0.9, torch.ones(4).double() + 1e-3),
        Interval(MIXTURE, 20 * NOISY, 0.9, torch.full((4,), 400.0).double()),
    ),
    A.UNCHECKED: (
        Interval(ActSafeForm(rkhs_norm=1.0, subgaussian=0.1, delta=0.1, unchecked=True), UNLUCKY, 0.0),
        Interval(MIXTURE, UNLUCKY, 0.0),
    ),
}


@pytest.mark.parametrize("kind", INTERVALS)
def test_a_false_assumption_makes_an_interval_miss(kind):
    false, true = INTERVALS[kind]
    assert any(entry.kind is kind for entry in false.bound.assumptions(false.model()))
    assert false.misses() and not true.misses()


# ------------------------------------------------------------------------------------------- the shield
LEVELS = torch.tensor([1.0, 0.7, 0.5, 0.35, 0.2, 0.1]).double().reshape(-1, 1, 1).expand(-1, 4, 1)


def worst_state(*, push: float, assume: bool = False) -> float:
    """Largest θ − 1.2 under a planner that pushes up, with a noise of `push` radii at every step."""
    case = case_of() if not assume else case_of(())
    judge_made = judge_of(case)
    if assume:
        judge_made = replace(judge_made, fallbacks=case.choose(44))  # its set-point lies beyond the limit
    shield = Shield.start(
        judge_made, case.confidence, case.system.initial_state, tracking=tracking_of(case), assume=assume
    )
    assert isinstance(shield, Shield)
    kinds = {entry.kind for entry in shield.assumptions}
    assert (A.INITIAL_SET in kinds) == assume and A.NOISE_BOX in kinds
    x, worst = case.system.initial_state, -torch.inf
    for _ in range(shield.horizon):
        decision, shield = shield.decide(x, LEVELS[: 0 if assume else None])
        x = case.system.mean(x, decision.u) + push * shield.judge.noise_radius
        worst = max(worst, float(case.system.cost.excess(x).max()))
    return worst


def noise_box() -> tuple[bool, bool]:
    return worst_state(push=8.0) > 0, worst_state(push=1.0) > 0


def initial_set() -> tuple[bool, bool]:
    return worst_state(push=0.0, assume=True) > 0, worst_state(push=0.0) > 0


# --------------------------------------------------------------------------- tubes of ensembles and of linear plants
def misses_of(model: EnsembleTube, data: Transitions) -> float:
    """Share of one-step outcomes outside every member's ellipsoid μ_m(z) + E(0, (radius σ_m)²)."""
    mean, std = model.ensemble.evaluate(data.x, data.u)
    return float((((data.x_next - mean) / std).norm(dim=-1) > model.radius).all(0).double().mean())


def calibrated() -> tuple[bool, bool]:
    """A plant that is 0.2 further on than every member says."""
    ensemble, data = pendulum_ensemble(), pendulum_data(400, seed=8)
    model = EnsembleTube.sound(ensemble, steps=3, delta=0.1, epistemic=3.0)
    moved = Transitions(data.x, data.u, data.x_next + 0.2)
    return misses_of(model, moved) > 0.1, misses_of(model, data) > 0.1


def exchangeable() -> tuple[bool, bool]:
    """The plan runs in noise of 0.1, the calibration rows had 0.02."""
    model = EnsembleTube.calibrated(pendulum_ensemble(), pendulum_data(600, seed=5), steps=3, delta=0.1)
    shifted, same = pendulum_data(400, seed=9, noise=0.1), pendulum_data(400, seed=9)
    return misses_of(model, shifted) > 0.1 / 3 + 0.03, misses_of(model, same) > 0.1 / 3 + 0.03


def held_out() -> tuple[bool, bool]:
    """A network finds the hundred rows that it was trained on nearer than any others; δ = 0.1."""
    ensemble = pendulum_ensemble(1, 20, count=100, steps=3000)
    again = EnsembleTube.calibrated(ensemble, pendulum_data(100), steps=1, delta=0.1)
    fresh = EnsembleTube.calibrated(ensemble, pendulum_data(300, seed=5), steps=1, delta=0.1)
    test = pendulum_data(600, seed=9)
    return misses_of(again, test) > 0.2, misses_of(fresh, test) > 0.2


def paper_tube() -> tuple[bool, bool]:
    data = pendulum_data(400, seed=9)
    paper = EnsembleTube.paper(pendulum_ensemble())
    assert {entry.kind for entry in paper.assumptions} == {A.PAPER_TUBE}
    sound = EnsembleTube.calibrated(pendulum_ensemble(), pendulum_data(600, seed=5), steps=3, delta=0.1)
    return misses_of(paper, data) > 0.1, misses_of(sound, data) > 0.1


def inside(tube: Tube, x: torch.Tensor, stage: int) -> torch.Tensor:
    """Whether x is in some member's cross-section."""
    away = torch.linalg.solve(tube.factor[:, stage], (x - tube.center[:, stage]).unsqueeze(-1))
    return (away.squeeze(-1).norm(dim=-1) <= 1 + 1e-9).any()


def noise_ellipsoid() -> tuple[bool, bool]:
    """A certified plan under disturbances at twice the half-axes, and at once."""
    safe = linear_filter()
    model = safe.problem.model
    assert isinstance(model, LinearTube)
    plan, x0 = torch.full((safe.problem.steps, 1), 0.0).double(), vector(0.3, 0.1)
    certificate = judge(safe.problem, x0, vector(0.0), propose(plan))
    assert certificate.certified and certificate.tube is not None

    def leaves(scale: float) -> bool:
        x, tube, out = x0, certificate.tube, False
        for k in range(safe.problem.steps):
            u = certificate.law(k, x)
            x = model.plant(x, u) + scale * extreme(model.half_axes, vector(1.0, 1.0))
            out |= not bool(inside(tube, x, k + 1))
        return out

    return leaves(3.0), leaves(0.999)


def terminal_invariant() -> tuple[bool, bool]:
    """A box about the origin from which the uncontrolled plant drifts away; the certified set is kept."""
    plant = DoubleIntegrator().prior(mass_error=0.0)
    box = Box(vector(-0.5, -0.5), vector(0.5, 0.5))
    drifts = not bool(Polytope.of_box(box).contains(plant(vector(0.5, 0.5), vector(0.0))))
    safe = linear_filter()
    assert safe.invariance is not None
    law, region = safe.invariance.law, safe.invariance.region
    vertices = region.vertices()
    assert isinstance(safe.problem.model, LinearTube)
    kept = region.contains(safe.problem.model.plant(vertices, law(vertices)))
    assert isinstance(safe.problem, CertificationProblem)
    bare = replace(safe, invariance=None)
    assert any(entry.kind is A.TERMINAL_INVARIANT for entry in bare.assumptions)
    return drifts, not bool(kept.all())


def lipschitz() -> tuple[bool, bool]:
    """f = 1/4 − x/2, known at x = 0 alone, as SafeOpt sees it: a stated slope of 0.1 admits x = 1, where f < 0."""
    points = torch.linspace(0.0, 1.0, 5).double().unsqueeze(-1)
    value, known = 0.25 - 0.5 * points[:, 0], points[:, 0] == 0.0
    lower = torch.where(known, value, -torch.inf).unsqueeze(-1)
    gap = torch.cdist(points, points)
    admitted = [lipschitz_safe(known, lower, gap, vector(slope), vector(0.0)) for slope in (0.1, 0.5)]
    return bool((admitted[0] & (value < 0)).any()), bool((admitted[1] & (value < 0)).any())


RUNS: dict[Assumption, Callable[[], tuple[bool, bool]]] = {
    A.NOISE_BOX: noise_box, A.INITIAL_SET: initial_set, A.CALIBRATED: calibrated, A.EXCHANGEABLE: exchangeable,
    A.HELD_OUT: held_out, A.PAPER_TUBE: paper_tube, A.NOISE_ELLIPSOID: noise_ellipsoid,
    A.TERMINAL_INVARIANT: terminal_invariant, A.LIPSCHITZ: lipschitz,
}  # fmt: skip


@pytest.mark.parametrize("kind", RUNS)
def test_a_false_assumption_lets_a_plant_out(kind):
    assert RUNS[kind]() == (True, False)


REASONS = {
    A.SAMPLE_PATH: "a steeper path leaves the interval only where it also leaves the Gaussian prior, which is broken above",
    A.IN_SET: "listed where UNCHECKED or NOT_A_THEOREM is, which are broken above",
    A.GIVEN: "the user's own words",
    A.SCALED_GAUSSIAN: "of recalibrated models, on which no certificate rests: broken in tests/calibration",
    A.SAME_SHAPE: "likewise",
    A.LIKELIHOOD_RATIO: "likewise",
    A.FEEDBACK: "likewise",
}


def test_every_kind_of_assumption_is_broken_by_a_case_or_has_a_reason():
    cases = [set(COST_CASES), set(COST_REASONS), set(INTERVALS), set(RUNS), set(REASONS)]
    assert set().union(*cases) == set(Assumption) and sum(map(len, cases)) == len(Assumption)
