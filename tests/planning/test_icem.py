"""iCEM: proposals stay in the box, the best score never falls, the same generator gives the same plan."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from gpsafe.planning import ICEM, PUBLISHED, colored_noise, icem
from gpsafe.sets import Box

SMALL = ICEM(samples=40, elites=6, iterations=4, horizon=7)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def box(nu: int, seed: int) -> Box:
    lower = 2 * torch.rand(nu, dtype=torch.float64, generator=generator(seed)) - 2
    return Box(lower, lower + 0.1 + 3 * torch.rand(nu, dtype=torch.float64, generator=generator(seed + 1)))


@given(
    seeds(),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.25, 2.0]),
    st.sampled_from([1.0, 1.5]),
    st.sampled_from([0.0, 0.3]),
)
def test_proposals_stay_in_the_box_and_the_best_score_never_falls(seed, nu, exponent, decay, keep):
    inputs = box(nu, seed)
    settings = ICEM(40, 6, 4, 7, exponent=exponent, decay=decay, keep=keep)
    target = torch.randn(7, nu, dtype=torch.float64, generator=generator(seed))
    seen = []

    def score(actions):
        seen.append(actions)
        return -(actions - target).square().sum((-1, -2))

    plan = icem(score, inputs, settings=settings, generator=generator(seed))
    again = icem(score, inputs, settings=settings, generator=generator(seed + 1), warm_start=plan)
    for actions in [*seen, plan.actions, plan.elites, plan.mean, again.actions]:
        assert bool(inputs.contains(actions).all())
    assert bool((plan.best.diff() >= 0).all())
    assert plan.value == plan.best[-1] == max(float(score(s).max()) for s in seen[: settings.iterations])
    assert bool((plan.elite_values.diff() <= 0).all())
    assert torch.equal(score(plan.actions[None]), plan.value[None])


@given(seeds())
def test_the_same_generator_gives_the_same_plan_bit_for_bit(seed):
    def score(actions):
        return actions.sin().sum((-1, -2))

    plans = [icem(score, box(2, seed), settings=SMALL, generator=generator(seed)) for _ in range(2)]
    assert torch.equal(plans[0].actions, plans[1].actions)
    assert torch.equal(plans[0].elites, plans[1].elites)
    other = icem(score, box(2, seed), settings=SMALL, generator=generator(seed + 1))
    assert not torch.equal(plans[0].actions, other.actions)


@given(seeds())
def test_it_finds_the_optimum_of_a_concave_score_far_better_than_random_search(seed):
    inputs = Box(-torch.ones(2).double(), torch.ones(2).double())
    target = 1.2 * torch.rand(2, dtype=torch.float64, generator=generator(seed)) - 0.6  # a constant sequence

    def score(actions):
        return -(actions - target).square().mean((-1, -2))

    plan = icem(score, inputs, settings=ICEM(100, 10, 8, 10, smoothing=0.1), generator=generator(seed))
    random = inputs.sample(8 * 100 * 10, generator(seed)).reshape(800, 10, 2)
    assert float(plan.value) > 0.25 * float(score(random).max())
    assert float(plan.value) > -0.05


def test_elites_of_the_last_plan_compete_again():
    """A score that likes only what it liked before: without the shifted elites nothing of it would be found."""
    inputs = Box(-torch.ones(1).double(), torch.ones(1).double())
    first = icem(lambda a: -(a - 0.9).square().sum((-1, -2)), inputs, settings=SMALL, generator=generator(0))
    sharp = first.shifted().elites[0]

    def score(actions):
        return -((actions - sharp).abs().sum((-1, -2)) > 0).double()

    assert icem(score, inputs, settings=SMALL, generator=generator(1), warm_start=first).value == 0
    assert icem(score, inputs, settings=SMALL, generator=generator(1)).value == -1  # control: a cold start misses it


def test_nan_scores_never_win():
    inputs = Box(-torch.ones(1).double(), torch.ones(1).double())

    def score(actions):
        value = actions.mean((-1, -2))
        return torch.where(value > 0, math.nan, value)

    plan = icem(score, inputs, settings=SMALL, generator=generator(0))
    assert float(plan.value) <= 0 and float(plan.actions.mean()) <= 0


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize("exponent", [0.0, 0.2, 2.0])
def test_coloured_noise_has_unit_variance_at_every_step(steps, exponent):
    noise = colored_noise(exponent, (40_000, steps), generator(0))
    assert noise.var(0).sub(1).abs().max() < 6 * math.sqrt(2 / 40_000)  # six standard errors of a variance


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_coloured_noise_has_a_power_law_spectrum(exponent):
    steps = 64
    power = torch.fft.rfft(colored_noise(exponent, (20_000, steps), generator(0))).abs().square().mean(0)[1:-1]
    frequency = torch.fft.rfftfreq(steps, dtype=torch.float64)[1:-1]
    x, y = frequency.log(), power.log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    assert abs(float(slope) + exponent) < 0.02


def test_control_white_noise_is_not_mistaken_for_red():
    red, white = (colored_noise(e, (5_000, 32), generator(0)).diff().square().mean() for e in (2.0, 0.0))
    assert float(white) > 5 * float(red)


def test_published_presets():
    assert PUBLISHED["figure"] == ICEM(500, 50, 5, 20, exponent=2.0, smoothing=0.2, init_std=0.5, keep=0.3)
    assert (PUBLISHED["cartpole"].samples, PUBLISHED["cartpole"].horizon) == (1000, 30)


@pytest.mark.parametrize(
    "change",
    [
        {"samples": 0},
        {"elites": 501},
        {"init_std": 0.0},
        {"smoothing": 1.0},
        {"keep": 1.5},
        {"decay": 0.5},
        {"exponent": -1.0},
    ],
)
def test_bad_settings_are_refused(change):
    with pytest.raises(ValueError, match="expected"):
        ICEM(**change)


def test_a_score_of_the_wrong_shape_is_refused():
    inputs = Box(-torch.ones(1).double(), torch.ones(1).double())
    with pytest.raises(ValueError, match="score of shape"):
        icem(lambda a: a.mean(-1), inputs, settings=SMALL, generator=generator(0))
