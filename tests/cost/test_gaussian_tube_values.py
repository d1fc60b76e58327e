"""A step of a Gaussian tube, its charge and the second-order remainder against loops: no sub-term may be dropped or halved."""

import math
from dataclasses import replace

import pytest
import torch
from cost_cases import alone, make_case
from step_cases import AFFINE, Bent, Curved, draw, learned, one_step, rounded, tensor
from torch import Tensor

from gpsafe.confidence import ConfidenceSet, ConvexProgram, Mixture, functionals
from gpsafe.cost import gaussian_tube
from gpsafe.cost.curvature import remainder_outer, wide_axes
from gpsafe.cost.gaussian_tube import ROUNDING, GaussianTube, Stage
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import kernels
from gpsafe.sets import Box
from gpsafe.sets.zonotope import Zonotope
from gpsafe.systems.base import HingeCost, IndicatorCost
from gpsafe.systems.known import AffineKnown, SineKnown
from gpsafe.systems.task import Task


class LocallyBent(Bent):
    def hessian_over(self, lower: Tensor, upper: Tensor) -> Tensor:
        return (upper - lower).amax(-1)[..., None, None, None] * self.hessian_bound + lower[..., :1, None, None].abs()


def test_the_remainder_is_half_the_curvature_times_the_squared_reach():
    center, radius = draw(1, 4, 3), draw(2, 4, 3).abs()
    for known in (Bent(*AFFINE), LocallyBent(*AFFINE)):
        found = remainder_outer(known, center, radius)
        for n in range(4):
            H = known.hessian_bound
            if isinstance(known, LocallyBent):
                H = known.hessian_over(center[n] - radius[n], center[n] + radius[n])
            exact = [
                0.5 * sum(float(H[i, j, k] * radius[n, j] * radius[n, k]) for j in range(3) for k in range(3))
                for i in range(2)
            ]
            for i in range(2):
                assert exact[i] * (1 + 5e-13) < float(found[n, i]) < exact[i] * (1 + 2e-12)


def confidence(known):
    case = alone(make_case("pendulum", (0, 4)))
    held = case.confidence
    moved = replace(held.model, prior=known)
    return type(held)(held.bound).update(moved), case


@pytest.mark.parametrize("curved", [False, True])
def test_a_step_is_its_formula(curved):
    """Near the pendulum's data, with inputs that saturate on a part of the set."""
    F, case = confidence(Bent(*AFFINE))
    affine = AffinePolicies(tensor([[0.75], [0.1]]), tensor([[[-1.0, -0.4]], [[-0.8, 0.5]]]), case.policies.input_box)
    policies, rest = (Curved(affine), 0.07) if curved else (affine, None)
    x0 = case.system.initial_state
    sigma = tensor([0.03, 0.02])
    cost = IndicatorCost(tensor([[1.0, 0.0]]), tensor([9.0]))
    bound = GaussianTube(task=Task(x0, 9, cost, 1.0, sigma), width=4.0)
    sure = Zonotope(x0 + 0.05 * draw(5, 2, 2), 0.05 * draw(6, 2, 2, 3))
    stage = Stage(policies, sure, 0.02 * draw(7, 2, 2, 2).tril(), 0.0 * draw(7, 2, 2, 2), torch.tensor([False, False]))
    found = bound.step(F, stage)

    saturated = 0
    for p in range(2):
        c = sure.center[p]
        G = torch.cat([sure.generators[p], 4.0 * stage.factor[p]], -1)
        one = AffinePolicies(affine.offset[p : p + 1], affine.gain[p : p + 1], affine.input_box)
        step = one_step(F, one, c, G, rest=rest)
        step = learned(F, step, step.z)
        saturated += int(step.kinked)
        center, linear, error = step.center, step.linear, step.error
        expected = Zonotope(center[None], linear[None, :, :3]).plus_box(error[None])
        torch.testing.assert_close(found.sure.center[p], center, rtol=1e-12, atol=1e-13)
        for n in draw(8, 5, 2):
            assert float(found.sure.support(n[None])[p, 0]) == pytest.approx(
                float(expected.support(n[None])[0, 0]), rel=1e-9
            )
        covariance = linear[:, 3:] @ linear[:, 3:].T / 16 + torch.diag(sigma**2)
        torch.testing.assert_close(found.factor[p] @ found.factor[p].T, covariance, rtol=1e-10, atol=1e-15)
        torch.testing.assert_close(found.moved[p], linear[:, 3:] / 4, rtol=1e-10, atol=1e-13)
    assert saturated > 0 and not bool(found.lost.any())


def test_a_stage_charges_the_tails_of_its_half_spaces(monkeypatch):
    cost = IndicatorCost(tensor([[1.0, 0.0], [-0.6, 2.0]]), tensor([0.4, 0.9]))
    center = tensor([[0.1, -0.2], [0.39, 0.0], [0.5, 0.0], [0.1, -0.2]])
    rays, factor = 0.02 * draw(1, 4, 2, 3), 0.3 * draw(2, 4, 2, 2)
    factor[1:3] = 0.0  # without noise: 1 or 0
    stage = Stage(
        None,
        Zonotope(center, rays * tensor([1.0, 0.0, 0.0, 1.0])[:, None, None]),
        factor,
        factor,
        torch.tensor([False, False, False, True]),
    )
    tails, raised = [], []
    for n, o in zip(cost.directions, cost.offsets, strict=True):
        gap = float(o - n @ center[0] - (n @ rays[0]).abs().sum())
        less = gap - 1e-9 * float(n.abs() @ (center[0].abs() + rays[0].abs().sum(-1)))
        noise = float((n @ factor[0]).norm()) + 1e-9 * float(n.abs() @ factor[0].norm(dim=-1))
        raised.append(0.5 * math.erfc(less / noise / math.sqrt(2)) * (1 + 1e-9))
        tails.append(0.5 * math.erfc(gap / float((n @ factor[0]).norm()) / math.sqrt(2)))
    found = stage.exceed(cost)
    assert sum(tails) < float(found[0]) < sum(tails) * (1 + 1e-6) and 0.01 < sum(tails) < 0.9
    assert float(found[0]) == pytest.approx(sum(raised), rel=1e-12, abs=0)
    assert found[1:].tolist() == [0.0, 1.0, 1.0]
    bound = GaussianTube(task=Task(tensor([0.0, 0.0]), 5, cost, 1.0, tensor([0.1, 0.1])), width=3.0)
    outside = 2 * 2 * 0.5 * math.erfc(3 / math.sqrt(2))
    assert outside < bound.failure < outside * (1 + 1e-8)
    for t in range(4):
        expected = min(1.0, float(found[0]) + max(0, t - 1) * bound.failure)
        assert float(bound.charge(stage, t)[0]) == pytest.approx(expected, rel=1e-14)
        assert float(bound.charge(stage, t)[2]) == 1.0
    dear = HingeCost(cost.directions, cost.offsets, 2.5)  # costs at most C where it costs anything
    priced = GaussianTube(task=Task(tensor([0.0, 0.0]), 5, dear, 1.0, tensor([0.1, 0.1])), width=3.0)
    torch.testing.assert_close(priced.charge(stage, 3), 2.5 * bound.charge(stage, 3), rtol=1e-14, atol=0)
    edge = Stage(None, Zonotope.point(tensor([[0.4 - 1e-10, -9.0]])), factor[:1] * 0, factor[:1], torch.tensor([False]))
    assert float(edge.exceed(cost)[0]) == 1.0 and ROUNDING == 1e-9  # within rounding of the edge: beyond it
    monkeypatch.setattr(gaussian_tube, "ROUNDING", 0.0)  # a point on the edge, without noise, has not left
    edge = Stage(None, Zonotope.point(tensor([[0.4, -9.0]])), factor[:1] * 0, factor[:1], torch.tensor([False]))
    assert float(edge.exceed(cost)[0]) == 0.0


def test_deviations_that_cancel_in_float64_alone_are_not_taken_for_none():
    """3·fl(1/3) − 1 is −2⁻⁵⁴, but 0 as computed: 3x₁ exceeds x₂ with probability one half."""
    nothing, factor = torch.zeros(1, 2).double(), tensor([[[1 / 3, 0.0], [1.0, 0.0]]])
    stage = Stage(None, Zonotope.point(nothing), factor, factor, torch.tensor([False]))
    assert float(stage.exceed(IndicatorCost(tensor([[3.0, -1.0]]), tensor([0.0])))) >= 0.5


def test_wide_tubes_are_given_up_and_parked():
    F, case = confidence(Bent(*AFFINE))
    x0, sigma = case.system.initial_state, tensor([0.03, 0.02])
    cost = IndicatorCost(tensor([[1.0, 0.0]]), tensor([9.0]))
    policies = case.policies.select(torch.tensor([0, 0, 0]))
    point = Stage(
        policies,
        Zonotope.point(x0.expand(3, 2)),
        torch.zeros(3, 2, 2).double(),
        torch.zeros(3, 2, 2).double(),
        torch.tensor([False, True, False]),
    )
    free = GaussianTube(task=Task(x0, 9, cost, 1.0, sigma))
    after = free.step(F, point)
    assert after.lost.tolist() == [False, True, False]
    assert torch.equal(after.sure.center[1], x0) and not bool(after.sure.generators[1].any())
    torch.testing.assert_close(after.factor[1] @ after.factor[1].T, 2 * torch.diag(sigma**2))
    width = float(after.sure.radius[0].max())
    assert free.step(F, after).lost.tolist() == [False, True, False]
    tight = replace(free, limit=0.9 * max(width, float(sigma.max())))
    assert bool(tight.step(F, point).lost.all())
    assert not bool(replace(free, limit=1.1 * max(width, float(sigma.max()))).step(F, point).lost[0])
    far = replace(point, factor=-20.0 * torch.ones(3, 2, 2).double())  # rays of noise count by their size
    assert bool(replace(free, limit=10.0, width=1e-3).step(F, far).lost.all())
    assert not bool(replace(free, limit=40.0, width=1e-3).step(F, far).lost[0])


def test_the_bound_sums_its_charges_and_rounds_up():
    F, case = confidence(Bent(*AFFINE))
    x0, sigma = case.system.initial_state, case.system.noise_std
    gain = tensor([-0.4, -0.2]).expand(3, 1, 2)
    policies = AffinePolicies(tensor([[0.0], [0.15], [0.3]]), gain, case.policies.input_box)
    cost = IndicatorCost(tensor([[0.0, 1.0]]), x0[1:] + 0.1)
    bound = GaussianTube(task=Task(x0, 4, cost, 1.0, sigma), width=4.0)
    stages = list(bound.stages(F, policies))
    charges = torch.stack([bound.charge(stage, t) for t, stage in enumerate(stages)])
    total, found = charges.sum(0), bound.upper(F, policies)
    assert len(stages) == 4 and 1e-3 < float(total.min()) < 0.99 * float(total.max())
    below = total < 3.99
    assert bool((found[below] > total[below] * (1 + 5e-13)).all()) and bool((found <= 4.0).all())
    torch.testing.assert_close(found, total.clamp_max(4.0), rtol=1e-11, atol=0)
    limit = float(total.sort().values[:2].mean())
    cut = replace(bound, give_up=limit).upper(F, policies)
    torch.testing.assert_close(cut, torch.where(total <= limit, found, 4.0), rtol=1e-9, atol=0)
    assert replace(bound, give_up=limit).evaluate(F, policies).vacuous.tolist() == (total > limit).tolist()
    own = policies.select(total.argmin().reshape(1))
    spent = torch.zeros(1).double()
    for t, stage in enumerate(bound.stages(F, own)):
        spent = spent + bound.charge(stage, t)
    assert float(replace(bound, give_up=float(spent)).upper(F, own)) < 4.0  # what costs just as much is followed
    assert float(replace(bound, give_up=float(spent) * (1 - 1e-15)).upper(F, own)) == 4.0
    always = replace(bound, task=Task(x0, 4, IndicatorCost(tensor([[0.0, 1.0]]), x0[1:] - 9.0), 1.0, sigma))
    assert always.upper(F, policies).tolist() == [4.0] * 3  # T·C and no more


def test_only_half_space_costs_have_tails():
    class Plain:
        ceiling = 1.0

        def __call__(self, x):
            return x[..., 0].clamp(0.0, 1.0)

        def upper(self, lower, upper):
            return upper[..., 0].clamp(0.0, 1.0)

        def lower(self, lower, upper):
            return lower[..., 0].clamp(0.0, 1.0)

    with pytest.raises(ValueError, match="GaussianTube: expected a half-space cost"):
        GaussianTube(task=Task(tensor([0.0, 0.0]), 4, Plain(), 1.0, tensor([0.1, 0.1])))


def test_a_session_explores_along_the_centres_and_looks_at_its_data():
    F, case = confidence(Bent(*AFFINE))
    cost = IndicatorCost(tensor([[1.0, 0.0]]), tensor([9.0]))
    bound = GaussianTube(task=Task(case.system.initial_state, 4, cost, 1.0, case.system.noise_std))
    policies = case.policies.select(torch.tensor([0, 4, 18]))
    session = bound.session(F, policies)
    index = torch.tensor([2, 0])
    exact = torch.zeros(2).double()
    for stage in bound.stages(F, policies.select(index)):
        x = stage.sure.center.unsqueeze(1)
        z = torch.cat([x, stage.policies(x)], -1)[:, 0]
        exact += F.model.posterior(z)[1].norm(dim=-1) * ~stage.lost
    torch.testing.assert_close(session.exploration(index), exact)
    short = replace(bound, limit=1e-6)  # given up after the first step: what comes later does not count
    x = case.system.initial_state.expand(2, 1, 2)
    z = torch.cat([x, policies.select(index)(x)], -1)
    first = F.model.posterior(z[:, 0])[1].norm(dim=-1)
    torch.testing.assert_close(short.session(F, policies).exploration(index), first)
    assert bool((first < 0.9 * exact).all())
    assert session.falsified() is None and session.task is bound.task
    empty = type(F)(F.bound).update(make_case("pendulum", ()).confidence.model)
    assert bound.session(empty, policies).falsified() is None


def test_the_error_of_a_step_is_rounded_outwards():
    F, case = confidence(Bent(*AFFINE))
    x0, policies = case.system.initial_state, case.policies.select(torch.tensor([4]))
    bound = GaussianTube(
        task=Task(x0, 4, IndicatorCost(tensor([[1.0, 0.0]]), tensor([9.0])), 1.0, case.system.noise_std)
    )
    none = torch.zeros(1, 2, 2).double()
    found = bound.step(F, Stage(policies, Zonotope.point(x0[None]), none, none, torch.tensor([False])))
    step = one_step(F, policies, x0, torch.zeros(2, 1).double())
    step = learned(F, step, step.z)
    torch.testing.assert_close(found.sure.radius[0] - step.error, rounded(F, step), rtol=0.01, atol=0)


def test_a_tube_whose_noise_alone_is_too_wide_is_lost():
    F, case = confidence(Bent(*AFFINE))
    x0, cost = case.system.initial_state, IndicatorCost(tensor([[1.0, 0.0]]), tensor([9.0]))
    none = torch.zeros(1, 2, 2).double()
    point = Stage(case.policies.select(torch.tensor([0])), Zonotope.point(x0[None]), none, none, torch.tensor([False]))
    for limit, lost in ((2.0, True), (6.0, False)):
        bound = GaussianTube(task=Task(x0, 9, cost, 1.0, tensor([5.0, 0.02])), limit=limit)
        after = bound.step(F, point)
        assert after.lost.tolist() == [lost] and float(after.sure.radius.max()) < 2.0


def test_axes_may_widen_that_are_learned_or_bent_or_feel_the_input():
    """Of four states the third bends, the fourth is moved by u, the second is learned, and the first is none of these."""
    B = tensor([[0.0], [0.0], [0.0], [0.5]])
    amplitudes, frequencies = tensor([[0.0, 0.0, 0.3, 0.0]]), tensor([[1.0, 0.0, 0.0, 0.0, 0.0]])
    known = SineKnown(torch.eye(4).double(), B, torch.zeros(4).double(), amplitudes, frequencies, tensor([0.2]))
    assert (
        wide_axes(known, (1,)) == (1, 2, 3) and wide_axes(known, ()) == (2, 3) and wide_axes(known, (0,)) == (0, 2, 3)
    )

    class Plain:
        """x₁ + x₂ and x₂ + u, differentiated."""

        hessian_bound = torch.zeros(2, 3, 3, dtype=torch.float64)

        def __call__(self, x, u):
            return torch.stack([x[..., 0] + x[..., 1], x[..., 1] + u[..., 0]], -1)

    assert wide_axes(Plain(), ()) == (1,)


def test_a_prior_of_unknown_curvature_is_refused():
    F, case = confidence(lambda x, u: x)
    bound = GaussianTube(
        task=Task(
            case.system.initial_state, 3, IndicatorCost(tensor([[1.0, 0.0]]), tensor([9.0])), 1.0, case.system.noise_std
        )
    )
    with pytest.raises(ValueError, match="GaussianTube: expected a known part with hessian_bound"):
        bound.upper(F, case.policies.select(torch.tensor([0])))


def test_deviations_of_several_outputs_are_taken_together():
    family = [kernels.rbf([0.7, 1.0, 2.0], 0.05), kernels.rbf([1.5, 1.0, 1.0], 0.01)]
    known = AffineKnown(0.9 * torch.eye(2).double(), tensor([[0.1], [0.2]]), torch.zeros(2).double())
    model = GP.create(family, 0.01, nx=2, nu=1, noise_std=0.1, prior=known)
    model = model.condition_on(draw(1, 4, 3), 0.1 * draw(2, 4, 2))
    F = ConfidenceSet(Mixture(rkhs_norm=0.5, subgaussian=0.1, delta=0.1)).update(model)
    policies = AffinePolicies(0.1 * draw(3, 2, 1), 0.1 * draw(4, 2, 1, 2), Box(-torch.ones(1), torch.ones(1)))
    bound = GaussianTube(
        task=Task(tensor([0.1, 0.2]), 3, IndicatorCost(tensor([[1.0, 0.0]]), tensor([9.0])), 1.0, tensor([0.1, 0.1]))
    )
    total = torch.zeros(2).double()
    for stage in bound.stages(F, policies):
        x = stage.sure.center
        u = torch.cat([policies.select(torch.tensor([p]))(x[p][None, None])[0] for p in range(2)])
        total += model.posterior(torch.cat([x, u], -1))[1].square().sum(-1).sqrt()
    torch.testing.assert_close(bound.session(F, policies).exploration(torch.tensor([0, 1])), total, rtol=1e-9, atol=0)


def test_a_step_takes_the_narrowest_of_the_bands_of_a_program(monkeypatch):
    F, case = confidence(Bent(*AFFINE))
    cost = IndicatorCost(tensor([[1.0, 0.0]]), tensor([9.0]))
    bound = GaussianTube(task=Task(case.system.initial_state, 9, cost, 1.0, case.system.noise_std))
    program = ConvexProgram(rkhs_norm=5.0, subgaussian=F.bound.subgaussian, delta=0.1, method="table")
    F, policies = ConfidenceSet(program).update(F.model), case.policies.select(torch.tensor([0, 4, 18]))

    def widths() -> Tensor:
        return torch.stack([stage.sure.radius for stage in bound.stages(F, policies)][2:6])

    several = widths()
    monkeypatch.setattr(functionals, "MULTIPLIERS", ())
    one = widths()
    assert bool((several <= one * (1 + 1e-9)).all()) and float((several / one).min()) < 0.99
