"""The simulation lemma with its index and its cap, and the total-variation bound built on it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, optimize, stats
from strategies import seeds

from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost.monte_carlo import mean_lower
from gpsafe.cost.total_variation import TotalVariation, parting_rate, simulation_gap
from gpsafe.data import Transitions
from gpsafe.models import GP
from gpsafe.policies.rollout import closed_loop
from gpsafe.systems.base import sample_noise
from gpsafe.systems.reference import reference_1d, reference_1d_policies
from gpsafe.systems.task import Task

SOLVE = 1e-8


def chains(seed: int, states: int, closeness: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two transition matrices whose rows differ by about `closeness`, and costs in [0, 1]."""
    rng = np.random.default_rng(seed)
    first = rng.dirichlet(np.full(states, 0.5), states)
    other = rng.dirichlet(np.full(states, 0.5), states)
    return first, (1 - closeness) * first + closeness * other, rng.random(states).round(1)


def cost_of(matrix: np.ndarray, cost: np.ndarray, horizon: int) -> float:
    """E Σ_{t<T} c(x_t) from state 0."""
    mass, total = np.eye(len(cost))[0], 0.0
    for _ in range(horizon):
        total += mass @ cost
        mass = mass @ matrix
    return total


def rates_along(follow: np.ndarray, other: np.ndarray, horizon: int) -> torch.Tensor:
    """p_t = E TV(follow, other) under `follow`."""
    distance = 0.5 * np.abs(follow - other).sum(-1)
    mass, rates = np.eye(len(distance))[0], []
    for _ in range(horizon):
        rates.append(mass @ distance)
        mass = mass @ follow
    return torch.tensor(np.array(rates))


@given(seeds(), st.integers(2, 5), st.integers(1, 9), st.sampled_from([0.01, 0.1, 0.5, 1.0]))
def test_simulation_lemma_holds_for_finite_chains(seed, states, horizon, closeness):
    f, g, cost = chains(seed, states, closeness)
    gap = abs(cost_of(f, cost, horizon) - cost_of(g, cost, horizon))
    for pair in ((f, g), (g, f)):
        assert gap <= float(simulation_gap(rates_along(*pair, horizon), 1.0)) + 1e-12


def splitting(rate: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """From a free state one chain is absorbed by the unsafe state at `rate`, the other never."""
    stay = np.eye(2)
    leave = np.array([[1 - rate, rate], [0.0, 1.0]])
    return leave, stay, np.array([0.0, 1.0])


@pytest.mark.parametrize("horizon", [2, 3, 10])
def test_index_and_factor_are_sharp_to_first_order(horizon):
    rate = 1e-6
    f, g, cost = splitting(rate)
    gap = cost_of(f, cost, horizon) - cost_of(g, cost, horizon)
    bound = float(simulation_gap(rates_along(g, f, horizon), 1.0))
    assert gap <= bound <= gap * (1 + 1e-4)
    assert bound == pytest.approx(rate * horizon * (horizon - 1) / 2, rel=1e-9)


def test_control_one_step_less_per_parting_is_no_bound():
    f, g, cost = splitting(1e-3)
    gap = cost_of(f, cost, 10) - cost_of(g, cost, 10)
    rates = rates_along(g, f, 10)
    shifted = sum(float(rates[t]) * max(10 - 2 - t, 0) for t in range(10))
    assert gap > shifted


def test_control_capping_inside_the_expectation_is_no_bound():
    """f′ goes to a cheap or a dear state with probability ½; f, at total variation ½, always to the dear one.

    min(T·C, Σ c + C Σ τ_t (T−1−t)) averaged over paths of f′ is then below J(f).
    """
    horizon = 11
    follow = np.array([[0.0, 0.5, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    other = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    cost = np.array([0.0, 0.0, 1.0])
    truth = cost_of(other, cost, horizon)
    ahead, rate = horizon - 1, 0.5
    inside = 0.5 * min(ahead, 0 + rate * ahead) + 0.5 * min(ahead, ahead + rate * ahead)
    assert truth == ahead > inside
    outside = cost_of(follow, cost, horizon) + float(simulation_gap(rates_along(follow, other, horizon), 1.0))
    assert outside >= truth


@given(seeds(), st.integers(1, 8), st.sampled_from([0.05, 0.3, 1.0]))
def test_cap_is_the_linear_program_and_its_dual_at_integers(seed, horizon, scale):
    rates = scale * np.random.default_rng(seed).random(horizon)
    weights = np.arange(horizon - 1, -1, -1.0)
    program = optimize.linprog(-weights, A_ub=np.ones((1, horizon)), b_ub=[1.0], bounds=[(0, p) for p in rates])
    value = float(simulation_gap(torch.tensor(rates), 3.0))
    assert value == pytest.approx(-3.0 * program.fun, abs=SOLVE)
    dual = min(cut + float((rates * np.clip(weights - cut, 0, None)).sum()) for cut in range(horizon))
    assert value == pytest.approx(3.0 * dual, abs=SOLVE)


@given(st.floats(-3, 3), st.floats(0.05, 2.0))
def test_parting_rate_is_the_total_variation_of_gaussians(shift, std):
    density = lambda v: abs(stats.norm.pdf(v, 0, std) - stats.norm.pdf(v, shift, std))  # noqa: E731
    low, high = min(0.0, shift) - 9 * std, max(0.0, shift) + 9 * std
    exact = 0.5 * integrate.quad(density, low, high, points=[0.0, shift, shift / 2], limit=200)[0]
    rate = parting_rate(torch.tensor([abs(shift)]).double(), torch.tensor([std]).double())
    assert float(rate) == pytest.approx(exact, abs=1e-7)


def test_parting_rate_in_two_dimensions_and_without_noise():
    noise = torch.tensor([0.5, 2.0], dtype=torch.float64)
    rate = parting_rate(torch.tensor([0.3, 0.8], dtype=torch.float64), noise)
    assert float(rate) == pytest.approx(math.erf(math.hypot(0.6, 0.4) / 2 / math.sqrt(2)), rel=1e-12)
    still = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert float(parting_rate(torch.tensor([1e-9, 0.0]).double(), still)) == 1.0
    assert float(parting_rate(torch.tensor([0.0, 0.0]).double(), still)) == 0.0


@pytest.fixture(scope="module")
def noisy():
    """A plant whose noise is large against what is unknown after some data: the bound is not vacuous."""
    plant = reference_1d(noise_std=0.15)
    policies, _ = reference_1d_policies()
    model = GP.create(plant.kernels, 0.15**2, nx=1, nu=1, noise_std=plant.noise_std, prior=plant.known)
    g = torch.Generator().manual_seed(0)
    x, u = plant.state_box.sample(400, g) * 0.6, plant.input_box.sample(400, g)
    next_x = plant.mean(x, u) + sample_noise(plant.noise_std, (400,), g)
    bound = Mixture(rkhs_norm=tuple(plant.rkhs_norm.tolist()), subgaussian=0.15, delta=0.1)
    confidence = ConfidenceSet(bound).update(model).update(model.condition(Transitions(x, u, next_x)))
    return plant, policies.select(torch.tensor([0, 10, 20])), confidence


def test_bound_dominates_the_true_cost_and_says_something_when_noise_is_large(noisy):
    plant, policies, confidence = noisy
    bound = TotalVariation(
        task=Task.of(plant).with_(horizon=6),
        seed=4,
        samples=2000,
    )
    interval = bound.evaluate(confidence, policies)
    noise = sample_noise(plant.noise_std, (6, 1, 5000), torch.Generator().manual_seed(9))
    states, _ = closed_loop(plant.mean, policies, plant.initial_state, noise)
    truth = mean_lower(plant.cost(states[..., :-1, :]).sum(-1), 6.0, 1e-4)
    assert bool((truth <= interval.upper).all())
    assert bool((interval.upper < 5.0).all())
    assert not bool(interval.vacuous.any())
    assert bool((interval.lower <= interval.upper).all())


def test_more_data_lowers_the_penalty(noisy):
    plant, policies, confidence = noisy
    early = ConfidenceSet(confidence.bound).update(confidence.generations[0])
    noise = sample_noise(plant.noise_std, (6, 1, 50), torch.Generator().manual_seed(9))
    task = TotalVariation(task=Task.of(plant).with_(horizon=6), seed=4)
    _, before = task.paths(early, policies, noise)
    _, after = task.paths(confidence, policies, noise)
    assert bool((after.mean(1) < before.mean(1)).all())
