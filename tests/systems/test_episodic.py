"""Every episodic plant: starts, ends, bounded noise, laws within their limits, and what is counted about them."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given
from strategies import dear, seeds

from gpsafe.systems import (
    Drone,
    Episodic,
    SafeCartPole,
    SimplePendulum,
    TwoLinkArm,
    riccati,
    safe_fraction,
    warm_up_data,
)
from gpsafe.verdict import clopper_pearson

PLANTS = {"pendulum": SimplePendulum, "cart-pole": SafeCartPole, "arm": TwoLinkArm, "drone": Drone}
every_plant = pytest.mark.parametrize("name", PLANTS)
SAFE_BACKUP = {"pendulum": 1.0, "cart-pole": 1.0, "arm": 1.0, "drone": 1.0}  # of the published starts


@cache
def build(name: str) -> Episodic:
    return PLANTS[name]()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@every_plant
def test_contract(name):
    plant = build(name)
    assert isinstance(plant, Episodic)
    starts = plant.initial(500, seeded())
    assert starts.shape == (500, plant.nx) and starts.dtype == torch.float64
    assert bool(plant.initial_box.contains(starts).all()) and not bool(plant.terminated(starts).any())
    assert torch.equal(starts, plant.initial(500, seeded())) and not torch.equal(starts, plant.initial(500, seeded(1)))
    free = [i for i in range(plant.nx) if i not in plant.limited]
    assert bool((plant.state_box.upper[free] == 1e5).all()) and bool(
        (plant.state_box.upper[list(plant.limited)] < 1e4).all()
    )


@every_plant
@dear()
@given(seed=seeds())
def test_a_batch_is_a_loop_and_only_the_limits_end_an_episode(name, seed):
    plant = build(name)
    x = plant.initial(6, seeded(seed)) + 0.2 * torch.randn(6, plant.nx, dtype=torch.float64, generator=seeded(seed))
    u = plant.input_box.sample(6, seeded(seed))
    for function in (plant.mean, plant.reward):
        loop = torch.stack([function(a, b) for a, b in zip(x, u, strict=True)])
        torch.testing.assert_close(function(x.reshape(3, 2, -1), u.reshape(3, 2, -1)).reshape(loop.shape), loop)
    assert torch.equal(plant.terminated(x), plant.cost(x) > 0)
    limits = plant.state_box
    out = [(x[:, i] > limits.upper[i]) | (x[:, i] < limits.lower[i]) for i in plant.limited]
    assert torch.equal(plant.terminated(x), torch.stack(out).any(0))
    assert bool(plant.terminated(torch.full((plant.nx,), math.nan).double()))


@every_plant
@given(seed=seeds())
def test_laws_stay_within_the_limits_of_the_input_from_anywhere(name, seed):
    plant = build(name)
    x = 3 * torch.randn(40, plant.nx, dtype=torch.float64, generator=seeded(seed))
    for u in (plant.backup(x), plant.warm_up(x, seeded(seed))):
        assert u.shape == (40, plant.nu) and bool(plant.input_box.contains(u).all())
    torch.testing.assert_close(plant.backup(x.reshape(5, 8, -1)).reshape(40, -1), plant.backup(x))


@every_plant
def test_noise_is_bounded_and_the_callers_arrays_are_left_alone(name):
    plant = build(name)
    x = plant.initial_state.expand(2000, -1)
    u = torch.zeros(2000, plant.nu, dtype=torch.float64)
    gap = plant.advance(x, u, seeded(2)) - plant.mean(x, u)
    torch.testing.assert_close(gap.std(0), plant.noise_std, rtol=0.06, atol=1e-9)
    bound = (plant.nu * 3.0) ** 0.5 * plant.noise_std * (1 + 1e-2) + 1e-9
    assert bool((gap.abs() <= bound).all())
    assert float(u.abs().max()) == 0.0
    seen = (plant.observe(x, seeded(3)) - x).abs().amax(0)
    half = {"pendulum": torch.tensor([0.0288, 0.08]), "drone": torch.full((12,), 0.005)}.get(
        name, torch.zeros(plant.nx)
    )
    torch.testing.assert_close(seen, half.double(), rtol=0.02, atol=0)


@pytest.mark.parametrize("name", ["pendulum", "cart-pole", "arm"])
def test_a_prior_of_full_scale_is_the_plant(name):
    plant = build(name)
    x, u = plant.initial(50, seeded()), plant.input_box.sample(50, seeded())
    torch.testing.assert_close(plant.prior(scale=1.0)(x, u), plant.mean(x, u), rtol=1e-12, atol=1e-12)
    assert float((plant.prior()(x, u) - plant.mean(x, u)).abs().max()) > 0.01


def test_the_prior_of_the_drone_is_near_the_plant_near_hover():
    """At rates and angles as small as in warm-up; the published prior took set-points of rates for accelerations."""
    plant = build("drone")
    data = warm_up_data(replace(plant, observation_noise=0.0), 500, seed=0)
    known, gap = plant.prior(scale=1.0), {}
    for share in (1.0, 0.8):
        gap[share] = plant.prior(scale=share)(data.states, data.inputs) - plant.mean(data.states, data.inputs)
    assert float(gap[1.0][:, 3:5].abs().max()) < 0.01 and float(gap[1.0][:, 6:9].abs().max()) < 0.04
    assert float(gap[0.8][:, 8].abs().max()) > 2 * float(gap[1.0][:, 8].abs().max())
    as_published = data.states[:, 9:] + plant.dt * plant.rate * data.inputs[:, 1:]
    moved = plant.mean(data.states, data.inputs)[:, 9:]
    mended = known(data.states, data.inputs)[:, 9:]
    assert float((mended - moved).square().mean()) < 0.1 * float((as_published - moved).square().mean())


# -------------------------------------------------------------------------------------------------- the arm's eight numbers
@given(seed=seeds())
def test_the_arms_state_says_angles_rates_and_goal_and_steps_stay_consistent(seed):
    plant = build("arm")
    parts = [torch.randn(7, 2, dtype=torch.float64, generator=seeded(seed + i)) for i in range(3)]
    x = plant.of(*parts)
    for got, given_part in zip(plant.state(x), parts, strict=True):
        torch.testing.assert_close(got, given_part, rtol=1e-12, atol=1e-12)
    after = plant.mean(x, plant.input_box.sample(7, seeded(seed)))
    torch.testing.assert_close(plant.of(*plant.state(after)), after, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(plant.state(after)[2], parts[2], rtol=1e-12, atol=1e-12)


@given(seed=seeds())
def test_inverse_kinematics_reaches_what_can_be_reached_in_every_quadrant(seed):
    plant = build("arm")
    place = 0.42 * (2 * torch.rand(50, 2, dtype=torch.float64, generator=seeded(seed)) - 1)
    elbow = torch.randn(50, dtype=torch.float64, generator=seeded(seed + 1))
    angles = plant.angles_at(place, elbow)
    torch.testing.assert_close(plant.end(angles), place, rtol=1e-9, atol=1e-9)
    assert bool((torch.sign(angles[:, 1]) == torch.sign(elbow)).all())
    far = plant.end(plant.angles_at(torch.tensor([[0.6, 0.8]]).double(), elbow[:1]))
    torch.testing.assert_close(far, torch.tensor([[0.36, 0.48]]).double())


def test_the_arm_draws_back_from_the_wall():
    plant = build("arm")
    theta = torch.tensor([[0.3, 1.3], [-2.0, -1.3], [2.9, 1.3]]).double()
    x = plant.of(theta, torch.zeros(3, 2).double(), torch.zeros(3, 2).double())
    assert float(x[:, :2].norm(dim=-1).min()) > 0.45
    for _ in range(plant.horizon):
        x = plant.mean(x, plant.backup(x))
        assert not bool(plant.terminated(x).any())
    assert float(x[:, :2].norm(dim=-1).max()) < 0.11 and float(x[:, 6:].abs().max()) < 0.01


# -------------------------------------------------------------------------------------------------------- what is counted
@every_plant
def test_backup_laws_keep_the_limits_from_the_published_starts(name):
    plant = build(name)
    found = safe_fraction(plant, plant.backup, plant.initial(100, seeded(1)), plant.horizon, seeded(2))
    assert found.fraction == SAFE_BACKUP[name] and found.trials == 100
    assert (found.lower, found.upper) == clopper_pearson(found.safe, 100, 0.99)


@pytest.mark.parametrize(("name", "least"), [("cart-pole", 0.3), ("drone", 0.2)])
def test_control_without_a_law_or_with_noise_for_one_the_limits_are_left(name, least):
    plant = build(name)

    def law(x):
        return plant.input_box.sample(x.shape[0], seeded(int(1e6 * float(x.abs().sum())) % 2**31))

    found = safe_fraction(plant, law, plant.initial(60, seeded(1)), plant.horizon, seeded(2))
    assert found.fraction < 1 - least


def test_the_riccati_law_of_the_cartpole_keeps_more_states_than_the_published_gain():
    plant, g = build("cart-pole"), seeded(3)
    upper = torch.tensor([2.4, 1.0, math.radians(12.0), 1.0]).double()
    starts = (2 * torch.rand(600, 4, dtype=torch.float64, generator=g) - 1) * upper
    ours = safe_fraction(plant, plant.backup, starts, 100, seeded(4))
    published = safe_fraction(plant, plant.published_backup, starts, 100, seeded(4))
    assert ours.lower > 0.8 > 0.6 > published.upper


def test_starts_outside_and_states_that_are_no_numbers_are_not_safe():
    plant = build("cart-pole")
    starts = torch.tensor([[0.0, 0, 0, 0], [3.0, 0, 0, 0], [math.nan, 0, 0, 0]]).double()
    assert safe_fraction(plant, plant.backup, starts, 1, seeded()).safe == 1


@pytest.mark.parametrize("name", ["pendulum", "cart-pole"])
def test_riccati_gains_are_optimal_and_stabilise(name):
    """No gain near K has a lower cost Σ yᵀQy + uᵀRu from the starts, for the linearised plant, simulated."""
    plant = build(name)
    rest, still, K = plant.initial_state, torch.zeros(1).double(), plant.backup_gain
    a, b = torch.func.jacfwd(plant.mean, argnums=(0, 1))(rest, still)
    assert float(torch.linalg.eigvals(a - b @ K).abs().max()) < 1
    weights = torch.where(plant.state_box.radius < 1e4, plant.state_box.radius, 1.0) ** -2
    effort = torch.tensor([0.1 if name == "pendulum" else 30.0], dtype=torch.float64)
    torch.testing.assert_close(riccati(plant.mean, rest, still, weights, effort), K)

    def cost(gain):
        y, total = torch.eye(plant.nx, dtype=torch.float64), 0.0
        for _ in range(2000):
            u = -y @ gain.T
            total += float((y.square() @ weights).sum() + (u.square() @ effort).sum())
            y = y @ a.T + u @ b.T
        return total

    best = cost(K)
    assert all(cost(K * (1 + e)) >= best for e in (-0.05, 0.05))


@pytest.mark.parametrize("grad", [torch.inference_mode, torch.no_grad], ids=["inference", "no_grad"])
@every_plant
def test_plants_can_be_made_and_stepped_without_gradients(name, grad):
    with grad():
        plant = PLANTS[name]()
        x = plant.initial(3, seeded())
        stepped = plant.advance(x, plant.backup(x), seeded())
    assert torch.equal(stepped, build(name).advance(x, build(name).backup(x), seeded()))


@every_plant
def test_warm_up_data_are_the_plants_own_transitions_in_order(name):
    exact = {"observation_noise": 0.0} if name in ("pendulum", "drone") else {}
    plant = replace(build(name), input_noise=0.0, horizon=40, **exact)
    data = warm_up_data(plant, 100, seed=5)
    assert data.states.shape == data.next_states.shape == (100, plant.nx) and data.inputs.shape == (100, plant.nu)
    torch.testing.assert_close(data.next_states, plant.mean(data.states, data.inputs), rtol=1e-12, atol=1e-12)
    assert torch.equal(data.left, plant.terminated(data.next_states)) and data.violations == int(data.left.sum())
    follows = ~data.first[1:]
    assert torch.equal(data.states[1:][follows], data.next_states[:-1][follows])
    assert bool(data.first[torch.arange(0, 100, 40)].all()) and bool(data.first[1:][data.left[:-1]].all())
    assert bool(plant.initial_box.contains(data.starts).all()) and len(data.transitions) == 100
    again = warm_up_data(plant, 100, seed=5)
    assert torch.equal(again.states, data.states) and not torch.equal(
        warm_up_data(plant, 100, seed=6).states, data.states
    )


def test_violations_of_the_warm_up_are_counted_and_the_episode_starts_anew():
    plant = SafeCartPole(input_noise=0.0, initial_state=torch.zeros(4).double())
    wild = replace(plant, force=60.0)  # one wild input in five now tips the pole over
    data = warm_up_data(wild, 1000, seed=0)
    assert data.violations > 5 and int(data.first.sum()) == 10 + data.violations - int(data.left[99::100].sum())


def test_warm_up_data_of_the_full_size_count_their_violations():
    assert {name: warm_up_data(build(name), 8000, seed=0).violations for name in ("pendulum", "cart-pole")} == {
        "pendulum": 0,
        "cart-pole": 1,
    }


def test_bad_parameters_are_named():
    for make, word in (
        (lambda: TwoLinkArm(lengths=(0.3, -0.3)), "lengths"),
        (lambda: TwoLinkArm(centers=(0.011, 2.0)), "determinant"),
        (lambda: TwoLinkArm(friction=torch.zeros(3, 3)), "friction"),
        (lambda: Drone(mass=0.0), "mass"),
        (lambda: Drone(substeps=0), "substeps"),
        (lambda: warm_up_data(SimplePendulum(), 0, 0), "transitions"),
        (lambda: safe_fraction(SafeCartPole(), lambda x: x[..., :1], torch.zeros(2, 3), 5, seeded()), "starts"),
        (lambda: safe_fraction(SafeCartPole(), lambda x: x[..., :1], torch.zeros(2, 4), 0, seeded()), "steps"),
    ):
        with pytest.raises(ValueError, match=word):
            make()


def test_a_warm_ups_episodes_are_its_rows():
    data = warm_up_data(SimplePendulum(), 230, 3)
    episodes = data.episodes
    assert len(episodes) == int(data.first.sum()) == 3 and sum(len(u) for _, u in episodes) == 230
    assert torch.equal(torch.cat([u for _, u in episodes]), data.inputs)
    assert torch.equal(torch.cat([x[:-1] for x, _ in episodes]), data.states)
    assert torch.equal(torch.cat([x[1:] for x, _ in episodes]), data.next_states)
