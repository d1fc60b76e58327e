"""Exploring in latent space: returns against a loop, penalties where the optimum is known, a planner on an exact model."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from gpsafe.linalg import vector
from gpsafe.models.rssm import RSSMSettings, State
from gpsafe.planning import ICEM, icem
from gpsafe.planning.latent import (
    LATENT_EXPLORERS,
    PRESETS,
    ActorCritic,
    Barrier,
    Dream,
    Episodes,
    LatentAgent,
    LatentExplorer,
    LatentPlanner,
    Multiplier,
    Schedule,
    Seen,
    Sight,
    World,
    cartpole_sight,
    dream,
    empty_scene,
    lambda_returns,
    pendulum_sight,
    point_goal_sight,
)
from gpsafe.sets import Box
from gpsafe.systems import SparseCartPole, SparsePendulum
from gpsafe.systems.point_goal import PointGoal

SMALL = RSSMSettings(
    (8, 8, 3), nu=2, deterministic=6, stochastic=3, hidden=7, embedding=5, members=3, depth=0, dtype="float64"
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------------------------------------------- returns
@given(seeds(), st.integers(1, 7), st.floats(0.5, 1.0), st.floats(0.0, 1.0))
def test_returns_are_the_weighted_sums_of_n_step_returns(seed, horizon, discount, mixing):
    """R_t = (1 − λ) Σ_n λ^{n−1} G_n + λ^{N−1} G_N with G_n = Σ_{i<n} γ^i r_{t+1+i} + γ^n v(s_{t+n})."""
    drawn = torch.randn(2, horizon, 3, dtype=torch.float64, generator=generator(seed))
    found = lambda_returns(drawn[0], drawn[1], discount=discount, mixing=mixing)
    for t in range(horizon):
        left = horizon - t
        ahead = [
            sum(discount**i * drawn[0, t + i] for i in range(n)) + discount**n * drawn[1, t + n - 1]
            for n in range(1, left + 1)
        ]
        weights = [(1 - mixing) * mixing ** (n - 1) for n in range(1, left)] + [mixing ** (left - 1)]
        assert torch.allclose(
            found[t], sum((w * g for w, g in zip(weights, ahead, strict=True)), torch.zeros(3).double()), atol=1e-10
        )


# --------------------------------------------------------------------------------------------------------- penalties
def followed(penalty: Barrier | Multiplier, start: list[float], steps: int) -> tuple[torch.Tensor, list[float]]:
    """min ‖x − (2, 1)‖² s.t. x₁ + x₂ ≤ 1, whose optimum is (1, 0) with multiplier 2."""
    x = vector(*start).requires_grad_(True)
    slacks = []
    for _ in range(steps):
        penalty.step([x], (x - vector(2.0, 1.0)).square().sum(), x.sum() - 1.0)
        slacks.append(float(1.0 - x.detach().sum()))
    return x.detach(), slacks


def test_the_augmented_lagrangian_finds_the_optimum_and_its_multiplier():
    penalty = Multiplier(rate=0.05, multiplier=0.0, penalty=0.02, growth=0.01, cap=0.05)
    x, _ = followed(penalty, [-1.0, -1.0], 400)
    assert torch.allclose(x, vector(1.0, 0.0), atol=0.01)
    assert penalty.multiplier == pytest.approx(2.0, abs=0.01) and penalty.penalty == 0.05


def test_a_barrier_that_takes_its_step_stays_inside_and_with_adam_behind_it_does_not():
    taken = Barrier(smoothness=(2.0, 0.0), eta=0.05, cooling=1e-2)
    x, slacks = followed(taken, [-1.0, -1.0], 150)
    assert min(slacks) > 0 and torch.allclose(x, vector(1.0, 0.0), atol=0.05)
    assert all(later >= 0.5 * now - 1e-12 for now, later in zip([3.0, *slacks], slacks, strict=False))
    _, published = followed(Barrier(rate=0.3, smoothness=(2.0, 0.0), eta=0.05, cooling=1e-2), [-1.0, -1.0], 60)
    assert min(published) < 0


def test_outside_the_barrier_only_the_cost_is_descended():
    penalty = Barrier(recovery=0.5)
    x, slacks = followed(penalty, [2.0, 2.0], 1)
    assert torch.allclose(x, vector(1.5, 1.5)) and slacks[0] > -3.0 and math.isnan(penalty.lengths[0])


# ------------------------------------------------------------------------------------------- a planner on an exact model
def exact(members: int = 1, drift: float = 0.0) -> World:
    """s⁺ = s + a + drift·m in member m, reward s and reading s: all of it linear and without noise to speak of."""
    settings = RSSMSettings(
        (1,), nu=1, deterministic=1, stochastic=1, hidden=0, embedding=1, members=members, depth=0, cell="linear",
        least_std=1e-9, dtype="float64",
    )  # fmt: skip
    sight = Sight(lambda x: x, lambda o: o, lambda reading: reading[..., 0].clamp(0.0, 1.0), readings=1)
    world = World(settings, sight, generator())
    with torch.no_grad():
        for p in world.parameters():
            p.zero_()
        world.rssm.cell.into.weight[:, :, 0] = 1.0  # type: ignore[union-attr,index]
        world.rssm.cell.into.bias[:, 0, 0] = drift * torch.arange(members).double()  # type: ignore[union-attr,index]
        world.rssm.prior.layers[0].weight[:, 0, 0] = 1.0  # type: ignore[index,union-attr]
        world.rssm.prior.layers[0].bias[:, 0, 1] = -60.0  # type: ignore[index,union-attr]
        world.head.layers[0].weight[0, 1, 0] = world.head.layers[0].weight[0, 1, 2] = 1.0  # type: ignore[index,union-attr]
    return world


ORIGIN = State(torch.zeros(1, 1).double(), torch.zeros(1, 1).double())


def test_the_planner_finds_the_known_optimum_of_an_exact_model_with_and_without_a_budget():
    """max Σ s_t over |a| ≤ 0.2, six steps: 0.2 (1 + … + 6) = 4.2 if free; with Σ clamp(s_t, 0, 1) ≤ 1.5 · 6/12 it is 0.75."""
    box, settings = Box(vector(-0.2), vector(0.2)), ICEM(samples=300, elites=20, iterations=8, horizon=6, exponent=1.0)
    values = {}
    for name in ("greedy", "safe-greedy"):
        planner = LatentPlanner(LATENT_EXPLORERS[name], box, budget=1.5, horizon=12, optimiser=settings)
        plan = icem(planner.score(exact(), ORIGIN, 0.0, generator()), box, settings=settings, generator=generator())
        values[name] = float(plan.actions.cumsum(0).sum())
    assert values["greedy"] == pytest.approx(4.2, abs=0.05)
    assert 0.6 < values["safe-greedy"] <= 0.75 + 1e-6


def test_what_was_spent_is_not_spent_again():
    planner = LatentPlanner(LATENT_EXPLORERS["actsafe"], Box(vector(-1.0), vector(1.0)), budget=1.5, horizon=24)
    assert [planner.allowance(spent) for spent in (0.0, 0.5, 1.0, 1.5, 3.0)] == [0.75, 0.75, 0.5, 0.0, 0.0]


def test_members_that_are_one_model_do_not_disagree_and_a_drifting_one_is_the_worst():
    actions = torch.full((4, 5, 1), 0.1, dtype=torch.float64)
    same, apart = (dream(exact(3, drift), ORIGIN, actions, generator()) for drift in (0.0, 0.05))
    assert float(same.doubt.abs().max()) < 1e-3 < float(apart.doubt.min())
    assert torch.allclose(same.cost, torch.tensor(1.5).double(), atol=1e-5)
    assert torch.equal(apart.upper(LatentExplorer("x", pessimism="worst")), apart.cost[2])


@given(seeds(), st.integers(1, 6), st.floats(0.0, 10.0), st.floats(0.0, 10.0))
def test_pessimism_grows_with_members_with_alpha_and_with_what_is_not_allowed(seed, members, alpha, allowance):
    drawn = torch.rand(2, members + 1, 5, dtype=torch.float64, generator=generator(seed))
    more = Dream(drawn[0], drawn[1], drawn[0, 0])
    less = Dream(drawn[0, :members], drawn[1, :members], drawn[0, 0])
    worst, bonus = (LatentExplorer("x", intrinsic=1.0, pessimism=p, alpha=alpha) for p in ("worst", "bonus"))  # type: ignore[arg-type]
    assert bool((more.upper(worst) >= less.upper(worst)).all())
    assert bool((more.upper(worst) >= more.upper(replace(worst, pessimism="mean"))).all())
    assert bool((more.upper(replace(bonus, alpha=alpha + 1)) >= more.upper(bonus)).all())
    for now, then in ((less, more), (more, more)):
        before = now.worth(worst, allowance=allowance, price=7.0)
        assert bool((before >= then.worth(worst, allowance=0.5 * allowance, price=7.0)).all())
    free = more.worth(replace(worst, pessimism="none"), allowance=0.0, price=7.0)
    assert bool((free >= more.worth(worst, allowance=allowance, price=7.0)).all())


# -------------------------------------------------------------------------------------------------------- pictures
@given(seeds())
def test_the_place_is_read_from_the_picture_and_the_smooth_cost_is_the_plants_away_from_edges(seed):
    plant = PointGoal()
    sight = point_goal_sight(plant, width=0.01)
    x = 2.6 * torch.rand(20, 2, dtype=torch.float64, generator=generator(seed)) - 1.3
    assert float((sight.read(sight.see(x)) - x).abs().max()) < 0.06  # a pixel is 0.2
    assert sight.cost is not None
    gap = torch.linalg.vector_norm(x.unsqueeze(1) - plant.hazards, dim=-1).amin(-1) - plant.hazard_radius
    sure = gap.abs() > 0.08
    assert float((sight.cost(x) - plant.cost(x))[sure].abs().max() if bool(sure.any()) else 0.0) < 1e-3
    assert empty_scene(plant, 8).shape == (8, 8, 3) and point_goal_sight(plant, known_cost=False).cost is None


# -------------------------------------------------------------------------------------------------------- episodes
def few(count: int, reward: float = 0.0) -> Seen:
    zeros = torch.zeros(count, 4)
    return Seen(
        torch.zeros(count, 4, 8, 8, 3), torch.zeros(count, 4, 2), zeros + reward, zeros, torch.zeros(count, 4, 2)
    )


def test_episodes_with_a_reward_are_preferred_and_members_weigh_them_apart():
    kept = Episodes(3, preference=9.0)
    with pytest.raises(ValueError, match="at least one"):
        kept.sample(1, generator())
    kept.add(few(9), generator(1))
    kept.add(few(1, reward=1.0), generator(2))
    drawn, weights = kept.sample(4000, generator(3))
    share = float((drawn.reward[:, 0] > 0).double().mean())
    assert share == pytest.approx(0.5, abs=0.05) and len(kept) == 10
    assert weights.shape == (3, 4000) and not torch.equal(weights[0], weights[1])
    with pytest.raises(ValueError, match="reward"):
        Seen(torch.zeros(1, 4, 1), torch.zeros(1, 4, 2), torch.zeros(1, 3), torch.zeros(1, 4), torch.zeros(1, 4, 0))


# ---------------------------------------------------------------------------------------------------------- learner
PLANT = PointGoal(horizon=4)
TINY = Schedule(episodes=2, updates=2, batch=2)


def learner(behaviour: str, seed: int = 0) -> LatentAgent:
    few_steps = ICEM(samples=8, elites=2, iterations=2, horizon=3)

    def actor(world: World, g: torch.Generator) -> ActorCritic:
        settings = replace(PRESETS[behaviour], updates=2, starts=4, horizon=3, hidden=8)
        return ActorCritic(settings, world, PLANT.input_box, budget=PLANT.budget, horizon=PLANT.horizon, generator=g)

    planner = LatentPlanner(
        LATENT_EXPLORERS.get(behaviour, LATENT_EXPLORERS["greedy"]), PLANT.input_box, 1.5, 4, optimiser=few_steps
    )
    sight = point_goal_sight(PLANT, size=8)
    return LatentAgent(
        PLANT, sight, SMALL, planner if behaviour in LATENT_EXPLORERS else actor, schedule=TINY, seed=seed
    )


QUICK = (
    "uniform",
    "actsafe",
    "lambda",
    "actsafe-corrected",
)  # one of every kind; the others are slow, for they say no more


@pytest.mark.parametrize(
    "behaviour", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in (*LATENT_EXPLORERS, *PRESETS)]
)
def test_every_explorer_learns_and_is_determined_by_its_seed(behaviour):
    flown, one = [], learner(behaviour)
    for agent in (learner(behaviour), one):
        agent.learn(2, lambda _, last: flown.append(last))
    assert [row["phase"] for row in one.rows] == ["uniform", "explore"]
    assert not any(row["guaranteed"] for row in one.rows) and "heuristic" in repr(one)
    assert all(math.isfinite(row["loss"]) for row in one.rows)
    assert torch.equal(flown[1].states, flown[3].states) and not torch.equal(flown[0].states, flown[1].states)
    assert bool(PLANT.input_box.contains(flown[1].seen.actions.double()).all())
    u = one.predict(flown[1].seen.images[0, 0], episode_start=True)
    assert u.shape == (2,) and bool(PLANT.input_box.contains(u))


def test_a_world_of_which_nothing_is_read_learns_from_pictures_and_costs_alone():
    plant = SparseCartPole(horizon=3, budget=1.0)
    explorer = LatentPlanner(LATENT_EXPLORERS["actsafe"], plant.input_box, 1.0, 3, optimiser=ICEM(4, 2, 1, 3))
    settings = replace(SMALL, nu=1, depth=2, dtype="float32")
    sight = cartpole_sight(plant, size=8, known_cost=False)
    one = LatentAgent(plant, sight, settings, explorer, schedule=replace(TINY, updates=1)).learn(2)
    assert one.rows[-1]["read_error"] == 0.0 and math.isfinite(one.rows[-1]["loss"])


def test_ask_twice_is_one_policy_and_tell_needs_no_ask():
    one, other = learner("actsafe"), learner("actsafe")
    assert one.ask() is one.ask()
    flown = one.rollout(one.ask())
    one.tell(flown)
    other.tell(flown)
    assert other.rows[0]["phase"] == "told" and other.rows[0]["loss"] == one.rows[0]["loss"]
    assert one.rows[0]["violations"] == int(PLANT.cost(flown.states[:, :-1]).sum())


def test_training_a_policy_changes_it_and_leaves_the_world_as_it_is():
    one = learner("lambda")
    one.learn(1)
    before = [p.clone() for p in one.world.parameters()]
    critic = one.behaviour
    assert isinstance(critic, ActorCritic)
    old = [p.clone() for p in critic.actor.parameters()]
    start = State(torch.zeros(3, 6).double(), torch.zeros(3, 3).double())
    critic.improve(one.world, start, generator())
    assert all(torch.equal(p, q) for p, q in zip(before, one.world.parameters(), strict=True))
    assert all(p.requires_grad for p in one.world.parameters())
    assert not all(torch.equal(p, q) for p, q in zip(old, critic.actor.parameters(), strict=True))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="pessimism"):
        LatentExplorer("x", pessimism="sound")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="budget"):
        LatentPlanner(LATENT_EXPLORERS["greedy"], PLANT.input_box, -1.0, 4)
    with pytest.raises(ValueError, match="every"):
        LatentPlanner(
            LATENT_EXPLORERS["greedy"], PLANT.input_box, 1.0, 4, optimiser=ICEM(samples=4, elites=2, horizon=2)
        )
    with pytest.raises(ValueError, match="updates"):
        Schedule(updates=-1)
    with pytest.raises(ValueError, match="rate"):
        Multiplier(rate=0.0)
    with pytest.raises(ValueError, match="flown"):
        learner("actsafe").tell(few(1))  # type: ignore[arg-type]


@given(seeds())
def test_speed_and_place_are_read_from_pictures_of_swing_ups(seed):
    """sin θ, cos θ and ω of the rod from two pictures; the place of the cart from colours kept as bytes."""
    rod, cart = SparsePendulum(), SparseCartPole()
    sight = pendulum_sight(rod)
    x = rod.state_box.sample(4, generator(seed))
    told = sight.read_kept(sight.kept(sight.see(x)))
    wanted = torch.stack([x[:, 0].sin(), x[:, 0].cos(), x[:, 1] / rod.safe_speed], -1)
    assert float((told - wanted).abs().amax(0)[:2].max()) < 0.03 and float((told - wanted)[:, 2].abs().max()) < 0.15
    assert sight.cost is not None
    assert torch.equal(sight.cost(wanted) > 0.5, rod.cost(x) > 0)
    seen = cartpole_sight(cart, size=64)
    y = cart.state_box.sample(3, generator(seed)) * vector(0.8, 1.0, 1.0, 1.0)
    images = seen.kept(seen.see(y))
    assert images.dtype == torch.uint8 and images.shape == (3, 64, 64, 3)
    assert float((seen.read_kept(images)[:, 0] - y[:, 0] / cart.track).abs().max()) < 0.03
    assert seen.cost is not None and torch.equal(seen.cost(y[:, :1] / cart.track) > 0.5, cart.cost(y) > 0)
    unread = cartpole_sight(cart, known_cost=False)
    assert unread.cost is None and unread.read_kept(images).shape == (3, 0)
