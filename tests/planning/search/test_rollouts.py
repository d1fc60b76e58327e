"""The surrogate problem: exact gradients, its constraint above the sampled indicator cost, common random numbers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.models import GP
from gpsafe.planning.search.problem import value_and_gradients
from gpsafe.planning.search.rollouts import Rollouts, hinge
from gpsafe.policies.parametric import feedback_family, set_point_family
from gpsafe.policies.rollout import closed_loop, transitions
from gpsafe.systems.base import sample_noise
from gpsafe.systems.reference import reference_1d, reference_pendulum


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def learned(plant, family, theta: torch.Tensor) -> ConfidenceSet:
    model = GP.create(
        plant.kernels, 1e-4, nx=plant.nx, nu=plant.nu, noise_std=plant.noise_std, prior=plant.known,
        outputs=plant.outputs,
    )  # fmt: skip
    noise = sample_noise(plant.noise_std, (plant.horizon, 1, 1), generator(0))
    states, inputs = closed_loop(plant.mean, family(theta), plant.initial_state, noise)
    model = model.condition(transitions(states[:1, 0], inputs[:1, 0]))
    bound = Mixture(rkhs_norm=tuple(plant.rkhs_norm.tolist()), subgaussian=0.01, delta=0.1)
    return ConfidenceSet(bound).update(model)


@pytest.fixture(scope="module")
def line():
    plant = reference_1d()
    family = set_point_family((-0.6, 1.4), (1.0, 6.0), input_box=plant.input_box)
    return plant, family, learned(plant, family, torch.tensor([[0.4, 3.0]]).double())


@pytest.fixture(scope="module")
def pendulum():
    plant = reference_pendulum()
    lower, upper = torch.tensor([-0.5, 1.0, 0.3]).double(), torch.tensor([3.5, 4.0, 1.2]).double()
    family = feedback_family(lower, upper, input_box=plant.input_box, nx=2)
    return plant, family, learned(plant, family, torch.tensor([[0.8, 2.5, 0.7]]).double())


@pytest.mark.parametrize("pessimism", ["mean", "sampled", "hallucinated"])
@pytest.mark.parametrize("goal", ["exploration", "reward"])
@pytest.mark.parametrize("case", ["line", "pendulum"])
def test_gradients_agree_with_finite_differences(case, goal, pessimism, request):
    plant, family, confidence = request.getfixturevalue(case)
    problem = Rollouts.prepare(
        family, confidence, plant, goal=goal, pessimism=pessimism, generator=generator(1), paths=3, draws=3, features=64
    )
    unit = torch.full((2, family.dim), 0.55, dtype=torch.float64)
    unit[1, 0] = 0.78
    *_, up, out = value_and_gradients(problem, unit)
    step = 1e-6
    for i in range(family.dim):
        e = torch.zeros(family.dim, dtype=torch.float64)
        e[i] = step
        plus, minus = problem(unit + e), problem(unit - e)
        for gradient, a, b in zip((up, out), plus, minus, strict=True):
            slope = (a - b) / (2 * step)
            assert torch.allclose(gradient[:, i], slope, rtol=2e-4, atol=2e-6), (i, gradient[:, i], slope)
    assert float(up.abs().max()) > 0 and (goal == "reward" or float(out.abs().max()) >= 0)


def test_the_constraint_has_a_gradient_near_the_border(line):
    plant, family, confidence = line
    problem = Rollouts.prepare(family, confidence, plant, goal="reward", pessimism="sampled", generator=generator(1))
    unit = family.to_unit(torch.tensor([[0.98, 3.0]]).double())
    _value, _constraint, up, out = value_and_gradients(problem, unit)
    assert float(out[0, 0]) > 0 and float(up[0, 0]) > 0  # a higher set-point: more reward, less slack


@pytest.mark.parametrize("pessimism", ["mean", "sampled"])
def test_the_constraint_exceeds_the_indicator_cost_of_its_own_paths(line, pessimism):
    plant, family, confidence = line
    problem = Rollouts.prepare(
        family, confidence, plant, goal="reward", pessimism=pessimism, generator=generator(2), paths=8, draws=3
    )
    unit = torch.rand(30, 2, dtype=torch.float64, generator=generator(3))
    policies, noise = family(family.from_unit(unit)), problem.noise.unsqueeze(1)
    worlds = [confidence.model.residual_mean]
    if pessimism == "sampled":
        functions = problem.functions
        assert functions is not None
        worlds = [lambda z, i=i: functions(z.reshape(-1, 2))[i].reshape(*z.shape[:-1], 1) for i in range(3)]
    for residual in worlds:
        states, _ = closed_loop(
            lambda x, u, r=residual: plant.known(x, u) + r(torch.cat([x, u], -1)), policies, plant.initial_state, noise
        )
        cost = plant.cost(states[..., :-1, :]).sum(-1).mean(-1) - plant.budget
        assert bool((problem.constraint(unit) >= cost - 1e-9).all())


def test_hallucinated_worlds_are_more_pessimistic_than_the_mean(line):
    plant, family, confidence = line
    unit = torch.rand(20, 2, dtype=torch.float64, generator=generator(3))
    values = {
        kind: Rollouts.prepare(family, confidence, plant, goal="reward", pessimism=kind, generator=generator(2))
        for kind in ("mean", "hallucinated")
    }
    noise = values["mean"].noise
    assert torch.equal(noise, values["hallucinated"].noise)
    mean, worst = (values[kind].constraint(unit) for kind in ("mean", "hallucinated"))
    assert float((worst > 0).double().mean()) > float((mean > 0).double().mean())


@given(st.floats(-5, 5), st.floats(0.01, 2.0))
def test_hinge_is_at_least_the_indicator(excess, width):
    value = float(hinge(torch.tensor(excess, dtype=torch.float64), width))
    assert value >= float(excess > 0) and (value == 0.0 or excess > -width)


def test_wrong_names_are_refused(line):
    plant, family, confidence = line
    with pytest.raises(ValueError, match="pessimism"):
        Rollouts.prepare(family, confidence, plant, goal="reward", pessimism="hope", generator=generator(0))
