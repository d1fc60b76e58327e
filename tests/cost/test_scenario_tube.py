"""Scenario tubes contain every trajectory of every member of F_n, and their bound is never below the true cost."""

import itertools

import pytest
import torch
from cost_cases import alone, extremal_member, generator, make_case, trajectories
from hypothesis import given
from hypothesis import strategies as st
from strategies import dear, seeds

from gpsafe.confidence import ConfidenceSet, Constant, Mixture
from gpsafe.cost import scenario_tube
from gpsafe.cost.local_affine import Displacements, LocalAffine
from gpsafe.cost.monte_carlo import mean_lower
from gpsafe.cost.scenario_tube import ScenarioTube, charge_upper, farthest_points
from gpsafe.models import GP, LowRankGP
from gpsafe.rkhs import kernels
from gpsafe.sets import Box
from gpsafe.sets.zonotope import Zonotope
from gpsafe.systems.base import HingeCost, IndicatorCost, sample_noise

CASES = {
    "1d-prior": lambda: make_case("1d", ()),
    "1d": lambda: make_case("1d", (4, 12, 20)),
    "pendulum": lambda: make_case("pendulum", (5, 14, 22, 28)),
}


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request):
    return CASES[request.param]()


@pytest.fixture(scope="module")
def pendulum():
    return alone(CASES["pendulum"]())


def tube_of(case, **options) -> ScenarioTube:
    return ScenarioTube(**{**case.task, "samples": 40, "anchors": 8, **options})


def escapes(case, f, policies, noise, tube) -> torch.Tensor:
    """(P, N): trajectories of known + f that leave their tube (by hull or along random directions)."""
    return beyond(tube.tubes(case.confidence, policies, noise), case, trajectories(case, f, policies, noise))


def beyond(tubes, case, states) -> torch.Tensor:
    out = ~tubes.contains_hull(states)
    normals = torch.randn(16, case.system.nx, dtype=torch.float64, generator=generator(0))
    for t, part in enumerate(tubes.sets):
        reach = part.support(normals)
        past = states[..., t, :] @ normals.T > reach + 1e-8 * (1 + reach.abs())
        out |= past.any(-1) & (tubes.lost > t)
    return out


POLICIES = {"1d": (0, 20, 33, 50, 80), "pendulum": (0, 10, 18, 24, 30, 36)}


def policies_of(case):
    return case.choose(*POLICIES["1d" if case.system.nx == 1 else "pendulum"])


@dear()
@given(
    seeds(),
    st.sampled_from([None, 3]),
    st.sampled_from([4, 24]),
    st.sampled_from([1.0, -1.0]),
    st.sampled_from([1, 2, 8]),
)
def test_trajectories_of_members_stay_inside(case, seed, anchors, order, sign, pieces):
    case = alone(case)
    policies, horizon = policies_of(case), 12
    noise = sample_noise(case.system.noise_std, (horizon, 1, 8), generator(seed))
    middle = trajectories(case, lambda z: case.confidence.model.posterior(z)[0][..., 0], policies, noise)
    at = middle[seed % policies.num, 0, 1 + seed % (horizon - 1)]
    z = torch.cat([at, policies(at.expand(1, 1, -1))[seed % policies.num, 0]])
    f = extremal_member(case, z, sign)
    assert f.norm_upper <= float(case.system.rkhs_norm[0])
    assert (
        case.confidence.contains(lambda v: f(v).unsqueeze(-1), case.system.region.sample(100, generator(1))).outcome
        == "HOLDS"
    )
    tube = tube_of(case, anchors=anchors, order=order, pieces=pieces, **case.task_with(horizon=horizon))
    assert not bool(escapes(case, f, policies, noise, tube).any())


@pytest.mark.parametrize("pieces", [1, 8])
def test_the_true_plant_stays_inside(case, pieces):
    noise = sample_noise(case.system.noise_std, (case.system.horizon, 1, 60), generator(1))
    true = lambda z: case.system.residual_fn(z)[..., 0]  # noqa: E731
    assert not bool(escapes(case, true, policies_of(case), noise, tube_of(case, pieces=pieces)).any())


def extremal_set(case, policies, noise):
    """Members at the edge of the set, at points along the mean path."""
    middle = trajectories(case, lambda z: case.confidence.model.posterior(z)[0][..., 0], policies, noise)
    for t in (2, 4, 8):
        at = middle[0, 0, t]
        z = torch.cat([at, policies(at.expand(1, 1, -1))[0, 0]])
        for sign in (1.0, -1.0):
            yield extremal_member(case, z, sign)


def left(case, members, policies, noise, tube) -> bool:
    """Whether any member leaves its tube, which is computed once: it knows of no member."""
    tubes = tube.tubes(case.confidence, policies, noise)
    return any(bool(beyond(tubes, case, trajectories(case, f, policies, noise)).any()) for f in members)


def test_control_a_shrunk_tube_is_left(pendulum, monkeypatch):
    policies, noise = pendulum.choose(18), sample_noise(pendulum.system.noise_std, (30, 1, 12), generator(5))
    plain = LocalAffine.range_outer

    def shrunk(self, cross):
        found = plain(self, cross)
        return type(found)(found.value, found.linear, 0.3 * found.error, found.empty)

    tube, members = tube_of(pendulum), list(extremal_set(pendulum, policies, noise))
    assert not left(pendulum, members, policies, noise, tube)
    monkeypatch.setattr(LocalAffine, "range_outer", shrunk)
    assert left(pendulum, members, policies, noise, tube)


def test_control_a_set_that_is_not_covered_by_its_pieces_is_left(pendulum, monkeypatch):
    """Pieces of a quarter of the side leave most of the set out."""
    policies, noise = pendulum.choose(18), sample_noise(pendulum.system.noise_std, (30, 1, 12), generator(5))
    tube, whole = tube_of(pendulum, pieces=4), scenario_tube.cut

    def holes(tube, count, sides):
        return whole(Zonotope(tube.center, 0.25 * tube.generators), count, sides)

    members = list(extremal_set(pendulum, policies, noise))
    assert not left(pendulum, members, policies, noise, tube)
    monkeypatch.setattr(scenario_tube, "cut", holes)
    assert left(pendulum, members, policies, noise, tube)


def test_pieces_never_widen_a_charge_and_narrow_it_where_gradients_are_unknown():
    """Without data the residual's slope is all that is known of it: a hinge over the first state sees the narrower boxes."""
    case = alone(CASES["1d-prior"]())
    policies, noise = policies_of(case), sample_noise(case.system.noise_std, (6, 1, 5), generator(5))
    cost = HingeCost(torch.ones(1).double(), -5.0, 100.0)
    task = case.task_with(horizon=6, cost=cost)
    charges = [
        tube_of(case, pieces=k, limit=50.0, **task).charges(case.confidence, policies, noise) for k in (1, 2, 16)
    ]
    for coarse, fine in itertools.pairwise(charges):
        assert bool((fine <= coarse * (1 + 1e-9)).all())
    assert float((charges[2] / charges[0]).min()) < 0.99


def test_pieces_are_a_power_of_two(pendulum):
    for wrong in (0, 3, 2.0, True):
        with pytest.raises(ValueError, match="pieces"):
            tube_of(pendulum, pieces=wrong)


def test_control_a_norm_bound_that_is_too_small_is_caught(pendulum):
    """Members of the set for B leave the tube computed for B/4."""
    wrong = alone(make_case("pendulum", (5, 14, 22, 28), norm_factor=0.25))
    policies, noise = pendulum.choose(18), sample_noise(pendulum.system.noise_std, (30, 1, 12), generator(5))
    assert left(wrong, extremal_set(pendulum, policies, noise), policies, noise, tube_of(wrong))


@dear()
@given(seeds(), st.sampled_from(["1d", "pendulum"]), st.floats(-3, 0))
def test_affine_ranges_contain_members_over_cross_sections(seed, name, exponent):
    case = AFFINE[name]
    g, d = generator(seed), case.system.nx + 1
    lower, upper = case.system.region.lower, case.system.region.upper
    anchors = lower + (upper - lower) * torch.rand(1, 5, d, dtype=torch.float64, generator=g)
    scale = 10.0**exponent * (upper - lower)
    offset = scale * torch.randn(1, 5, d, dtype=torch.float64, generator=g)
    rays = scale.unsqueeze(-1) * torch.randn(1, 5, d, 4, dtype=torch.float64, generator=g)
    error = scale * torch.rand(1, 5, d, dtype=torch.float64, generator=g)
    local = LocalAffine.at(case.confidence, anchors)
    cross = Displacements(offset, rays, error)
    found = local.range_outer(cross)
    xi = (2 * torch.rand(50, 1, 5, 4, dtype=torch.float64, generator=g) - 1).round(decimals=0 if seed % 2 else 3)
    off = 2 * torch.rand(50, 1, 5, d, dtype=torch.float64, generator=g) - 1
    z = anchors + offset + torch.einsum("pndm,spnm->spnd", rays, xi) + error * off
    f = extremal_member(case, anchors[0, seed % 5], 1.0 if seed % 3 else -1.0)
    predicted = found.value[..., 0] + torch.einsum("pnm,spnm->spn", found.linear[..., 0, :], xi)
    assert bool(((f(z) - predicted).abs() <= found.error[..., 0] * (1 + 1e-9) + 1e-9).all())
    assert bool((found.error <= local.cap * (1 + 1e-9)).all())
    radius = cross.radius
    moved = offset.unsqueeze(0) + torch.einsum("pndm,spnm->spnd", rays, xi) + error * off
    assert bool((moved.abs() <= radius * (1 + 1e-9)).all())
    inverse = 1.0 / (upper - lower)
    assert bool(((moved * inverse).norm(dim=-1) <= cross.scaled_norm(inverse) * (1 + 1e-9)).all())


AFFINE = {name: alone(CASES[name]()) for name in ("1d", "pendulum")}


def test_gradients_make_tubes_narrower_than_the_kernel_metric_alone(pendulum):
    noise = sample_noise(pendulum.system.noise_std, (30, 1, 20), generator(5))
    policies = pendulum.choose(18)
    sharp = tube_of(pendulum).tubes(pendulum.confidence, policies, noise).widths()
    plain = tube_of(pendulum, gradients=False).tubes(pendulum.confidence, policies, noise).widths()
    assert float(sharp[0, :, -1, 0].median()) < 0.1 * float(plain[0, :, -1, 0].median())


def test_upper_bound_dominates_the_true_cost(case):
    policies = policies_of(case)
    interval = tube_of(case, samples=60).evaluate(case.confidence, policies)
    noise = sample_noise(case.system.noise_std, (case.system.horizon, 1, 1000), generator(9))
    states = trajectories(case, lambda z: case.system.residual_fn(z)[..., 0], policies, noise)
    costs = case.system.cost(states[..., :-1, :]).sum(-1)
    ceiling = float(case.system.horizon)
    assert interval.sound_upper
    assert bool((mean_lower(costs, ceiling, 1e-4) <= interval.upper).all())
    assert bool((interval.upper <= ceiling).all())


def test_horizon_one_charges_the_initial_state_alone(pendulum):
    task = pendulum.task_with(horizon=1)
    outside = pendulum.task_with(horizon=1, initial_state=torch.tensor([1.3, 0.0], dtype=torch.float64))
    noise = torch.zeros(1, 1, 5, 2, dtype=torch.float64)
    for given_task, cost in ((task, 0.0), (outside, 1.0)):
        charges = ScenarioTube(**given_task, samples=5).charges(pendulum.confidence, pendulum.choose(3, 4), noise)
        assert torch.equal(charges, torch.full((2, 5), cost, dtype=torch.float64))


def test_screening_and_chunks_change_nothing_but_hopeless_policies(pendulum):
    policies = pendulum.choose(0, 5, 12, 18, 40, 44)
    whole = tube_of(pendulum, samples=80).evaluate(pendulum.confidence, policies).upper
    parts = tube_of(pendulum, samples=80, chunk=100).evaluate(pendulum.confidence, policies).upper
    assert torch.allclose(whole, parts, atol=1e-8, rtol=0)
    screened = tube_of(pendulum, samples=80, give_up=4.0, pilot=20).evaluate(pendulum.confidence, policies).upper
    kept = screened < 30
    assert torch.allclose(screened[kept], whole[kept], atol=1e-8, rtol=0)
    assert bool(kept[:3].all())
    assert not bool(kept[-1])
    nothing = tube_of(pendulum, samples=80, give_up=1e-9, pilot=20).evaluate(
        pendulum.confidence, pendulum.choose(44, 43)
    )
    assert bool((nothing.upper == 30).all())
    assert bool(nothing.vacuous.all())


def test_charges_of_a_path_may_depend_on_the_others_and_the_limit_allows_it(pendulum):
    """Anchors are chosen from all paths: the same path is charged differently in different company, never too little."""
    cost = HingeCost(torch.tensor([1.0, 0.0]), 0.2, 2.0)
    task = pendulum.task_with(cost=cost)
    noise = sample_noise(pendulum.system.noise_std, (30, 1, 30), generator(2))
    tube, policies = ScenarioTube(**task, samples=30, anchors=4), pendulum.choose(18)
    few, many = (tube.charges(pendulum.confidence, policies, noise[:, :, :n])[:, :10] for n in (10, 30))
    assert not torch.equal(few, many)
    states = trajectories(pendulum, lambda z: pendulum.system.residual_fn(z)[..., 0], policies, noise[:, :, :10])
    true = cost(states[..., :-1, :]).sum(-1)
    assert bool((true <= torch.minimum(few, many)).all())


def test_lost_tubes_are_charged_in_full(pendulum):
    noise = sample_noise(pendulum.system.noise_std, (30, 1, 6), generator(2))
    tiny = tube_of(pendulum, limit=1e-3)
    charges = tiny.charges(pendulum.confidence, pendulum.choose(0), noise)
    tubes = tiny.tubes(pendulum.confidence, pendulum.choose(0), noise)
    assert bool((tubes.lost < 5).all())
    assert torch.equal(charges, (30.0 - tubes.lost).double())
    assert bool(torch.isinf(tubes.widths()[:, :, -1]).all())


def test_an_empty_confidence_set_is_never_a_certificate():
    """With a false norm bound and data that contradict it, every path meets an empty F_n and is charged."""
    case = make_case("1d", (30,), norm_factor=0.02)
    case = type(case)(case.system, case.policies, case.confidence.update(make_case("1d", (30,)).confidence.model))
    points = case.confidence.model.inputs
    if case.confidence.falsified(points) is None:
        pytest.skip("the data do not contradict the assumption")
    interval = tube_of(case).evaluate(case.confidence, case.choose(30))
    assert float(interval.upper) > 15.0


def test_low_rank_models_give_tubes_that_contain_the_same_plant(pendulum):
    model = pendulum.confidence.model
    low_rank = ConfidenceSet(pendulum.confidence.bound).update(LowRankGP.create(model, 60))
    noise = sample_noise(pendulum.system.noise_std, (30, 1, 10), generator(3))
    case = type(pendulum)(pendulum.system, pendulum.policies, low_rank)
    true = lambda z: pendulum.system.residual_fn(z)[..., 0]  # noqa: E731
    assert not bool(escapes(case, true, pendulum.choose(18), noise, tube_of(case)).any())


@given(seeds(), st.integers(1, 3))
def test_charges_are_the_supremum_of_the_cost_over_the_set(seed, dim):
    g = generator(seed)
    body = Zonotope(
        torch.randn(4, dim, dtype=torch.float64, generator=g),
        0.3 * torch.randn(4, dim, 5, dtype=torch.float64, generator=g),
    )
    normals = torch.randn(2, dim, dtype=torch.float64, generator=g)
    offsets = torch.randn(2, dtype=torch.float64, generator=g)
    points = body.sample(300, g)
    for cost in (IndicatorCost(normals, offsets), HingeCost(normals, offsets, 0.7)):
        charged, hull = charge_upper(cost, body), cost.upper(body.center - body.radius, body.center + body.radius)
        assert bool((charged >= cost(points).amax(0) - 1e-12).all())
        assert bool((charged <= hull + 1e-8).all())


@given(seeds(), st.integers(1, 9), st.integers(1, 12))
def test_every_point_has_its_nearest_anchor(seed, points, count):
    z = torch.randn(3, points, 2, dtype=torch.float64, generator=generator(seed))
    index, nearest = farthest_points(z, count)
    assert index.shape == (3, min(points, count))
    for p in range(3):
        distance = torch.cdist(z[p], z[p, index[p]])
        assert torch.allclose(distance.gather(1, nearest[p][:, None]), distance.amin(-1, keepdim=True), atol=1e-7)


def test_what_has_no_theorem_is_refused(pendulum):
    system = pendulum.system
    rough = GP.create(system.kernels, 1e-4, nx=2, nu=1, noise_std=system.noise_std, outputs=(1,), prior=lambda x, u: x)
    bound = pendulum.confidence.bound
    with pytest.raises(ValueError, match="hessian_bound"):
        tube_of(pendulum).evaluate(ConfidenceSet(bound).update(rough), pendulum.choose(0))
    linear = GP.create(
        kernels.linear(0.1), 1e-4, nx=2, nu=1, noise_std=system.noise_std, outputs=(1,), prior=system.known
    )
    with pytest.raises(ValueError, match="stationary"):
        tube_of(pendulum).evaluate(ConfidenceSet(bound).update(linear), pendulum.choose(0))
    free = ConfidenceSet(Constant(value=3.0)).update(pendulum.confidence.model)
    with pytest.raises(ValueError, match="finite RKHS norm"):
        tube_of(pendulum).evaluate(free, pendulum.choose(0))
    with pytest.raises(ValueError, match="ScenarioTube"):
        tube_of(make_case("1d", ())).evaluate(pendulum.confidence, pendulum.choose(0))


@pytest.mark.parametrize(
    "change", [{"samples": 1}, {"anchors": 0}, {"order": 0}, {"limit": 0.0}, {"pilot": 1}, {"delta": 1.0}]
)
def test_bad_options_are_refused(pendulum, change):
    with pytest.raises(ValueError, match="ScenarioTube"):
        tube_of(pendulum, **change)


def test_unsound_confidence_makes_the_bound_unsound(pendulum):
    bound = Mixture(rkhs_norm=21.6, subgaussian=0.01, delta=0.1, unchecked=True)
    confidence = ConfidenceSet(bound).update(pendulum.confidence.model)
    assert not tube_of(pendulum).evaluate(confidence, pendulum.choose(0)).sound_upper


def test_control_box_policies_without_slopes_would_not_do(pendulum):
    """A policy whose slopes are reported too small leaves its tube."""
    policies, noise = pendulum.choose(24), sample_noise(pendulum.system.noise_std, (30, 1, 12), generator(5))
    tubes = tube_of(pendulum).tubes(pendulum.confidence, policies, noise)
    wrong = type(policies)(
        policies.offset, 0.0 * policies.gain, Box(policies.input_box.lower, policies.input_box.upper)
    )
    states = trajectories(pendulum, lambda z: pendulum.system.residual_fn(z)[..., 0], wrong, noise)
    assert not bool(tubes.contains_hull(states).any())
