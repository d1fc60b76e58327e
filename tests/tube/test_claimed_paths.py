"""A claimed nominal path: the tube is the one that is computed step by step, whatever is claimed."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from strategies import seeds
from xmpsc_cases import ensemble_pendulum

from gpsafe.certify import Proposal, judge
from gpsafe.models import Ensemble
from gpsafe.systems import Drone, SafeCartPole, SimplePendulum, TwoLinkArm
from gpsafe.tube import EnsembleTube, constant_gain, core, propagate

PLANTS = {"pendulum": SimplePendulum, "cart-pole": SafeCartPole, "arm": TwoLinkArm, "drone": Drone}
T = 4


def drawn(name: str, seed: int, *batch: int) -> tuple[EnsembleTube, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A paper-mode tube of untrained networks on a plant's known part, a state near its start, a plan, a gain."""
    plant, g = PLANTS[name](), torch.Generator().manual_seed(seed)
    model = Ensemble.create(plant.nx, plant.nu, generator=g, members=3, hidden=(6, 6), prior=plant.prior())
    x0 = plant.initial_state + 0.1 * torch.randn(*batch, plant.nx, dtype=torch.float64, generator=g)
    plan = 1.2 * torch.rand(*batch, T, plant.nu, dtype=torch.float64, generator=g) - 0.6
    return EnsembleTube.paper(model), x0, plan, constant_gain(0.1, plant.nx, plant.nu)


def parts(tube: core.Tube) -> tuple[torch.Tensor, ...]:
    return tube.center, tube.factor, tube.inputs, tube.reference, tube.gain


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("name", sorted(PLANTS))
@given(seed=seeds())
def test_a_right_claim_gives_the_tube_that_is_followed(name, batch, seed):
    model, x0, plan, gain = drawn(name, seed, *batch)
    with torch.no_grad():
        expected = propagate(model, x0, plan, gain)
        g = torch.Generator().manual_seed(seed)
        error = 1e-14 * torch.rand(expected.center.shape, dtype=torch.float64, generator=g)
        found = propagate(model, x0, plan, gain, expected.center + error)
    # The first-order correction takes the claim's error, of some 1e-14, out of the centres; Jacobians are those at the claim.
    # What stays is rounding: of the pendulum's four steps at π up to 4.6e-15 in 1500 seeds.
    torch.testing.assert_close(found.center, expected.center, rtol=1e-15, atol=6e-15)
    for ours, theirs in zip(parts(found), parts(expected), strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=5e-12)


@pytest.mark.parametrize("wrong", [1e-11, -3e-4, 0.1, math.inf, math.nan])
@pytest.mark.parametrize("place", [(0, 0, 0), (1, 2, 1), (2, T, 0)])
def test_a_wrong_claim_has_no_effect(wrong, place):
    model, x0, plan, gain = drawn("pendulum", 3)
    with torch.no_grad():
        expected = propagate(model, x0, plan, gain)
        claim = expected.center.clone()
        claim[place] += wrong
        found = propagate(model, x0, plan, gain, claim)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(parts(found), parts(expected), strict=True))


def test_a_claim_is_not_followed_step_by_step(monkeypatch):
    model, x0, plan, gain = drawn("arm", 0)
    with torch.no_grad():
        claim = propagate(model, x0, plan, gain).center

        def followed(*_):
            raise AssertionError("followed")

        monkeypatch.setattr(core, "_followed", followed)
        propagate(model, x0, plan, gain, claim)
        with pytest.raises(AssertionError, match="followed"):
            propagate(model, x0, plan, gain, claim + 1e-9)
        with pytest.raises(AssertionError, match="followed"):  # sound tubes have nominal inputs of their own
            propagate(EnsembleTube.sound(model.ensemble, steps=T, delta=0.1), x0, plan, gain, claim)


def test_a_claim_of_another_shape_is_refused():
    model, x0, plan, gain = drawn("pendulum", 0)
    with pytest.raises(ValueError, match="path of shape"):
        propagate(model, x0, plan, gain, torch.zeros(3, T, 2, dtype=torch.float64))


class Odd:
    """What answers as a tensor of the right shape might."""

    dtype, shape = torch.float64, (3, 5, 2)


CLAIMS = [None, "near", 3.0, Odd(), torch.zeros(3, 5), torch.zeros(3, 5, 2), torch.zeros(5, 2).double()]
CLAIMS += [torch.full((3, 5, 2), math.nan).double(), torch.zeros(3, 5, 2).double()]


@pytest.mark.parametrize("claim", CLAIMS)
def test_the_judge_says_of_a_plan_what_it_says_without_a_claim(claim):
    problem = ensemble_pendulum()
    x0, plan = torch.tensor([math.pi, 0.0]).double(), torch.zeros(4, 1).double()
    plain = judge(problem, x0, plan[0], plan)
    found = judge(problem, x0, plan[0], Proposal(plan, "", 0, 0.0, "by hand", 0.0, path=claim))
    assert plain.certified and found.verdict == plain.verdict
    assert torch.equal(found.margins.rows, plain.margins.rows)


def test_the_searches_claim_is_its_own_plans_path():
    mpc = pytest.importorskip("gpsafe.planning.mpc.fast")
    problem = ensemble_pendulum()
    x0, learned = torch.tensor([math.pi, 0.3]).double(), torch.tensor([0.4]).double()
    proposal = mpc.CondensedSQP().propose(problem, x0, learned)
    with torch.no_grad():
        torch.testing.assert_close(proposal.path, problem.tube(x0, proposal.inputs).center, rtol=1e-13, atol=1e-13)
    fast, slow = (judge(problem, x0, learned, p) for p in (proposal, replace(proposal, path=None)))
    assert fast.certified and slow.certified
    torch.testing.assert_close(fast.margins.rows, slow.margins.rows, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wrong", [1e-3, math.inf, math.nan, 1.7e308])
def test_no_plan_of_a_batch_notices_another_s_claim(wrong):
    """One wrong claim had all the others followed step by step, too: other bits."""
    model, x0, plan, gain = drawn("arm", 4, 3)
    others = [0, 2]
    with torch.no_grad():
        alone = propagate(model, x0, plan, gain)
        error = 1e-14 * torch.rand(alone.center.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        claim = alone.center + error
        right = propagate(model, x0, plan, gain, claim)
        claim[1] = wrong
        found = propagate(model, x0, plan, gain, claim)
    for ours, theirs, plain in zip(parts(found)[:4], parts(right)[:4], parts(alone)[:4], strict=True):
        assert torch.equal(ours[others], theirs[others]) and torch.equal(ours[1], plain[1])
