"""Imagined rollouts against a loop, constraints against their formula, and explorers against each other."""

import math

import pytest
import torch
from hypothesis import given
from strategies import seeds

from gpsafe.algorithms.episode import unverified_episode
from gpsafe.models import Prediction
from gpsafe.planning import EXPLORERS, ICEM, Constraint, Imagined, Planner, imagine, intrinsic_reward, penalised_return
from gpsafe.systems.base import IndicatorCost
from gpsafe.systems.pendulum import Pendulum

PLANT = Pendulum(action_repeat=2, horizon=6)
NOISE = torch.tensor([0.01, 0.02]).double()
FAST = ICEM(samples=30, elites=5, iterations=3, horizon=5)


class Model:
    """The pendulum with an epistemic std that grows with the speed."""

    nx, nu = 2, 1

    def predict(self, x, u):
        return Prediction(PLANT.mean(x, u), 0.01 + 0.05 * x.abs(), NOISE)

    def condition(self, data):
        return self


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def actions(seed: int, k: int = 4, h: int = 5, columns: int = 1) -> torch.Tensor:
    return 2 * torch.rand(k, h, columns, dtype=torch.float64, generator=generator(seed)) - 1


@given(seeds())
def test_imagine_is_the_loop_over_sequences_and_particles(seed):
    u, x0, beta = actions(seed), PLANT.initial_state, 1.7
    found = imagine(Model(), x0, u, particles=3, beta=beta, generator=generator(seed))
    same = generator(seed)
    xi = [torch.randn(2, 3, 2, dtype=torch.float64, generator=same) for _ in range(5)]
    for k in range(4):
        for p in range(3):
            x = x0
            for t in range(5):
                step = Model().predict(x, u[k, t])
                assert torch.allclose(found.std[k, p, t], step.std, atol=1e-12)
                x = step.mean + beta * step.std * xi[t][0, p] + NOISE * xi[t][1, p]
                assert torch.allclose(found.states[k, p, t], x, atol=1e-12)


def test_the_mean_rollout_has_no_noise_and_hallucination_is_an_input():
    u = actions(0)
    mean = imagine(Model(), PLANT.initial_state, u)
    again = imagine(Model(), PLANT.initial_state, torch.cat([u, torch.zeros(4, 5, 2).double()], -1), beta=2.0)
    assert torch.equal(mean.states, again.states)
    up = imagine(Model(), PLANT.initial_state, torch.cat([u, torch.ones(4, 5, 2).double()], -1), beta=2.0)
    first = Model().predict(PLANT.initial_state, u[:, 0])
    assert torch.allclose(up.states[:, 0, 0], first.mean + 2.0 * first.std)
    with pytest.raises(ValueError, match="columns"):
        imagine(Model(), PLANT.initial_state, actions(0, columns=2))


def test_a_tail_goes_on_with_the_fallback():
    u = actions(0)

    def brake(x):
        return (-x[..., 1:]).clamp(-1, 1)

    found = imagine(Model(), PLANT.initial_state, u, tail=brake, tail_steps=3)
    assert found.states.shape == (4, 1, 8, 2)
    x = found.states[:, :, 4]
    assert torch.allclose(found.states[:, :, 5], PLANT.mean(x, brake(x)))


def test_intrinsic_reward_by_hand():
    std, noise = torch.tensor([[0.3, 0.0]]).double(), torch.tensor([0.1, 0.0]).double()
    assert float(intrinsic_reward(std, noise)) == pytest.approx(math.log(10.0))


COST = IndicatorCost(torch.tensor([[0.0, 1.0], [0.0, -1.0]]).double(), torch.tensor([6.0, 6.0]).double())


def test_constraint_forms_by_hand():
    states = torch.tensor([[0.0, 6.5], [0.0, -1.0]]).double()
    assert float(Constraint(COST, 0.1, "mean-excess")(states)) == pytest.approx((0.6 - 0.1) / 2)
    assert float(Constraint(COST, 0.1, "sum-excess")(states)) == pytest.approx(0.6)
    assert float(Constraint(COST, 0.1, "indicator")(states)) == pytest.approx(0.5)
    assert float(Constraint(COST, 0.1, "worst")(states)) == pytest.approx(0.6)
    assert float(Constraint(COST, 0.0, "worst")(states[1:])) == pytest.approx(-5.0)


def test_the_published_constraint_lets_a_safe_step_pay_for_a_violation():
    """Why sampled pessimism crosses the boundary by a little even where it is certain: documented, not a bug here."""
    states = torch.zeros(20, 2).double()
    states[-1, 1] = 6.0 + 0.01
    assert bool(COST(states).sum() == 1)
    assert float(Constraint(COST, 1e-3, "mean-excess")(states)) <= 0
    assert float(Constraint(COST, 1e-3, "worst")(states)) > 0


def test_penalised_return_takes_the_best_particle_for_return_and_the_worst_for_cost():
    states = torch.zeros(1, 2, 3, 2).double()
    states[0, 0, :, 0], states[0, 1, 1, 1] = 1.0, 7.0
    imagined = Imagined(states, torch.zeros_like(states), NOISE)
    found = penalised_return(
        imagined,
        torch.zeros(1, 3, 1).double(),
        reward=lambda x, u: x[..., 0],
        extrinsic=1.0,
        intrinsic=1.0,
        constraint=Constraint(COST, 0.0, "sum-excess"),
        penalty=10.0,
    )
    assert float(found) == pytest.approx(1.0 - 10.0)


def planner(name: str) -> Planner:
    return Planner(EXPLORERS[name], FAST, PLANT.input_box, PLANT.reward, Constraint(PLANT.cost), particles=3)


@pytest.mark.parametrize("name", EXPLORERS)
def test_every_explorer_runs_an_episode_with_every_pessimism_and_repeats_itself(name):
    for explorer in (planner(name), *(with_pessimism(planner(name), p) for p in ("none", "mean", "sampled"))):
        noise = 0.001 * torch.randn(6, 2, dtype=torch.float64, generator=generator(3))
        runs = [unverified_episode(PLANT, explorer, Model(), noise=noise, generator=generator(5)) for _ in range(2)]
        assert torch.equal(runs[0].states, runs[1].states)
        assert runs[0].states.shape == (7, 2) and runs[0].inputs.shape == (6, 1)
        assert bool(PLANT.input_box.contains(runs[0].inputs).all())
        for x, u, x_next, w in zip(runs[0].states[:-1], runs[0].inputs, runs[0].states[1:], noise, strict=True):
            assert torch.equal(PLANT.mean(x, u) + w, x_next)


def with_pessimism(one: Planner, pessimism: str) -> Planner:
    return Planner(
        one.explorer.with_pessimism(pessimism), FAST, PLANT.input_box, PLANT.reward, Constraint(PLANT.cost), particles=3
    )


def test_pessimism_prices_the_constraint_and_its_absence_does_not():
    fast = torch.tensor([math.pi, 5.9]).double()  # hanging, near the limit: only braking keeps the score finite
    push = torch.ones(1, 5, 1).double()
    free, careful = (planner(name).score(Model(), fast, generator(0))(push) for name in ("opax", "actsafe-sampled"))
    assert float(careful) < -1e3 < 0 < float(free)


def test_greedy_and_opax_seek_different_things():
    scores = {name: planner(name).score(Model(), PLANT.initial_state, generator(0)) for name in ("greedy", "opax")}
    u = torch.zeros(1, 5, 1).double()
    assert float(scores["greedy"](u)) < 0 < float(scores["opax"](u))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="pessimism"):
        EXPLORERS["opax"].with_pessimism("brave")
    with pytest.raises(ValueError, match="tail"):
        Planner(EXPLORERS["opax"], FAST, PLANT.input_box, PLANT.reward, Constraint(PLANT.cost), tail_steps=3)
    with pytest.raises(ValueError, match="form"):
        Constraint(COST, 0.1, "median")
