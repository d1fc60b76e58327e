"""Every cost bound: shapes, order, determinism, soundness flags, refusals, independence of the batch."""

import pytest
import torch
from cost_cases import make_case

from gpsafe.cost.base import CostBound
from gpsafe.cost.gaussian_tube import GaussianTube
from gpsafe.cost.grid import Grid
from gpsafe.cost.hallucinated import Hallucinated
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.cost.sampled import Sampled
from gpsafe.cost.scenario_tube import ScenarioTube
from gpsafe.cost.total_variation import TotalVariation

MONTE_CARLO = {
    "sampled": lambda task: Sampled(**task, samples=16, draws=3, features=32),
    "sampled-particles": lambda task: Sampled(**task, samples=16, draws=3, mode="particles"),
    "hallucinated": lambda task: Hallucinated(**task, samples=16, search_paths=4, steps=2),
    "total-variation": lambda task: TotalVariation(**task, samples=16),
    "scenario-tube": lambda task: ScenarioTube(**task, samples=16, anchors=4),
}


def robust(task) -> RobustDP:
    grid = Grid(make_case("1d", ()).system.state_box, (201,))
    return RobustDP(grid, task["task"])


def gaussian(task) -> GaussianTube:
    return GaussianTube(task=task["task"])


BOUNDS = {**MONTE_CARLO, "robust-dp": robust, "gaussian-tube": gaussian}
SOUND = {"total-variation", "scenario-tube", "robust-dp", "gaussian-tube"}


@pytest.fixture(scope="module")
def case():
    return make_case("1d", (4, 20))


@pytest.fixture(params=sorted(BOUNDS))
def named(request, case):
    return request.param, BOUNDS[request.param](case.task)


def test_interval_has_the_shape_order_and_flags_of_its_claim(named, case):
    name, bound = named
    assert isinstance(bound, CostBound)
    interval = bound.evaluate(case.confidence, case.choose(2, 30, 50, 70))
    assert interval.lower.shape == interval.upper.shape == interval.vacuous.shape == (4,)
    assert bool((interval.lower >= 0).all())
    assert bool((interval.lower <= interval.upper).all())
    assert bool((interval.upper <= 20.0).all())
    assert bool((interval.vacuous == (interval.upper >= 20.0 * (1 - 1e-9))).all())
    assert interval.sound_upper == bound.sound == (name in SOUND)
    assert interval.method == bound.name
    assert any("rkhs_norm" in belief for belief in interval.assumptions)
    if name in MONTE_CARLO:
        assert 0 < interval.delta < 0.01  # δ/(n(n+1)) at stage n = 3
        assert interval.delta == pytest.approx(0.01 / 12)
    else:
        assert interval.delta == 0.0


def test_same_seed_same_stage_same_numbers(named, case):
    _, bound = named
    first, second = (bound.evaluate(case.confidence, case.choose(2, 50)) for _ in range(2))
    assert torch.equal(first.lower, second.lower)
    assert torch.equal(first.upper, second.upper)


@pytest.mark.parametrize("name", sorted(MONTE_CARLO))
def test_noise_is_fresh_at_every_stage_and_for_every_seed(name, case):
    bound = MONTE_CARLO[name](case.task)
    other = MONTE_CARLO[name]({**case.task, "seed": 12})
    later = case.confidence.update(case.confidence.model)
    draws = [bound.noise(case.confidence, 1), other.noise(case.confidence, 1), bound.noise(later, 1)]
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert bound.stage_delta(later) == pytest.approx(0.01 / 20)


@pytest.mark.parametrize("name", sorted(MONTE_CARLO))
def test_more_calls_at_one_stage_share_delta(name, case):
    whole, shared = (MONTE_CARLO[name]({**case.task, "calls": calls}) for calls in (1, 5))
    assert shared.stage_delta(case.confidence) == pytest.approx(whole.stage_delta(case.confidence) / 5)


def test_an_unsound_confidence_set_never_gives_a_sound_interval(named, case):
    from gpsafe.confidence import ConfidenceSet, Mixture

    _, bound = named
    wrong = Mixture(rkhs_norm=4.5, subgaussian=0.01, delta=0.1, unchecked=True)
    confidence = ConfidenceSet(wrong).update(case.confidence.model)
    assert not bound.evaluate(confidence, case.choose(2)).sound_upper


@pytest.mark.parametrize("name", sorted(MONTE_CARLO))
@pytest.mark.parametrize(
    "change",
    [
        {"samples": 1},
        {"delta": 0.0},
        {"delta": 1.5},
        {"seed": -1},
        {"calls": 0},
        {"task": None},
    ],
)
def test_bad_settings_are_refused(name, change, case):
    cls = type(MONTE_CARLO[name](case.task))
    with pytest.raises(ValueError, match=cls.__name__):
        cls(**{**case.task, **change})


@pytest.mark.parametrize("name", sorted(MONTE_CARLO))
def test_a_model_of_another_dimension_is_refused(name, case):
    pendulum = make_case("pendulum", ())
    with pytest.raises(ValueError, match="initial state of dimension 2"):
        MONTE_CARLO[name](case.task).evaluate(pendulum.confidence, pendulum.choose(0))
