"""What must not matter: the order of data, policies, members and rows, and the units of states, inputs and outputs. What must
grow or shrink with δ, B, R, d and the disturbance a tube counts.

Units by powers of two leave every bit, so that verdicts on the edge are compared as well; others leave numbers to rounding.
"""

from dataclasses import replace

import pytest
import torch
from contracts.test_cost_bounds import BOUNDS
from cost_cases import make_case
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import CLOSED_KERNELS, make_kernel, seeds
from tube_cases import Stated, stated
from xmpsc_cases import gp_pendulum, plan

from gpsafe.certify import CertificationProblem, judge
from gpsafe.confidence import ConfidenceBound, ConfidenceSet, Mixture
from gpsafe.cost import GaussianTube, Grid, PlanTube, RobustDP, ScenarioTube
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.planning.tracking import Tracking
from gpsafe.policies import AffinePolicies, set_point_policies
from gpsafe.rkhs import kernels
from gpsafe.safety.safe_set import PolicyGap, SafePolicySet
from gpsafe.safety.shield import Shield
from gpsafe.sets import Box, Ellipsoid, Polytope
from gpsafe.systems.base import IndicatorCost
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.task import Task
from gpsafe.tube import GPTube, KnownTube, KollerTube, LinearTube

UNITS = st.sampled_from([2.0**-20, 1.0, 2.0**20])
FAR = [2.0**-30, 2.0**30]
DECIMAL = st.sampled_from([1e-6, 1e6])


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def order(seed: int, count: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def close(a: torch.Tensor, b: torch.Tensor, rtol: float = 1e-9) -> None:
    """Equal up to rounding, relative to the largest entry."""
    torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * float(b.abs().max()))


# --------------------------------------------------------------------------------------------------- order of data
def posterior(kernel, z: torch.Tensor, y: torch.Tensor, *, lam: float = 0.05) -> GP:
    return GP.create(kernel, lam, nx=2, nu=0, noise_std=[0.2, 0.2], outputs=(0,)).condition_on(z, y)


def mixture(norm: float = 1.5, noise: float = 0.2, delta: float = 0.1) -> Mixture:
    return Mixture(rkhs_norm=norm, subgaussian=noise, delta=delta)


def band(model: GP, z: torch.Tensor, bound: ConfidenceBound | None = None) -> torch.Tensor:
    return torch.stack(ConfidenceSet(mixture() if bound is None else bound).update(model).bounds(z))


@given(seeds(), st.sampled_from(CLOSED_KERNELS), st.integers(1, 12))
@settings(max_examples=8)
def test_the_order_of_rows_given_at_once_leaves_posterior_and_band(seed, name, count):
    z, y, query, kernel = draw(seed, count, 2), draw(seed + 1, count, 1), draw(seed + 2, 5, 2), make_kernel(name, 2)
    at = order(seed, count)
    one, other = posterior(kernel, z, y), posterior(kernel, z[at], y[at])
    close(one.posterior(query)[0], other.posterior(query)[0])
    close(one.posterior(query)[1], other.posterior(query)[1], rtol=1e-7)
    close(mixture().beta(one), mixture().beta(other))
    close(band(one, query), band(other, query), rtol=1e-7)


# ------------------------------------------------------------------------------------------- order of policies
@pytest.fixture(scope="module")
def case():
    return make_case("1d", (4, 20))


SLOW = ("gaussian-tube", "scenario-tube", "total-variation")
PERMUTED = ("robust-dp", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW))


@pytest.mark.parametrize("name", PERMUTED)
def test_the_order_of_policies_leaves_each_its_bound(name, case):
    chosen, at = [2, 30, 50, 70], [3, 1, 0, 2]
    one = BOUNDS[name](case.task).evaluate(case.confidence, case.choose(*chosen)).upper
    other = BOUNDS[name](case.task).evaluate(case.confidence, case.choose(*(chosen[i] for i in at))).upper
    close(other, one[at], rtol=1e-12)


@given(seeds(), st.booleans())
def test_the_order_of_policies_leaves_the_members_of_the_safe_set(seed, gap):
    num, at = 8, order(seed, 8)
    uppers, push = draw(seed, 2, num).abs(), draw(seed + 1, num, num).abs()
    push = push + push.T
    push.fill_diagonal_(0.0)

    def members(at: torch.Tensor) -> set[int]:
        safe = SafePolicySet.initial(num, [int((at == 0).nonzero())], budget=0.5)
        table = push[at][:, at]
        for episode, upper in enumerate(uppers, 1):
            distance = PolicyGap(table, 3, 1.0) if gap else table
            safe = safe.expand(upper[at], episode=episode, bound="b", distance=distance)
        return set(at[safe.members].tolist())

    assert members(torch.arange(num)) == members(at)


# ----------------------------------------------------------------------- order of members and rows; sizes of rows
def simplex(seed: int, dim: int, *, size: float) -> Polytope:
    """A bounded polytope about 0 with 2·dim + 3 rows of different sizes."""
    H = torch.cat([torch.eye(dim).double(), -torch.eye(dim).double(), draw(seed, 3, dim)])
    return Polytope(H, size * (1 + draw(seed + 1, len(H)).abs()))


def problem_of(seed: int, *, share: float = 0.01, size: float = 1.0) -> CertificationProblem:
    model = stated(seed, members=3, share=share)
    sets = (
        simplex(seed + 2, 2, size=4 * size),
        simplex(seed + 3, 2, size=2 * size),
        simplex(seed + 4, 2, size=3 * size),
    )
    return CertificationProblem(model, *sets, 0.1 * draw(seed + 5, 2, 2), 3)


def judged(problem: CertificationProblem, seed: int):
    return judge(problem, 0.3 * draw(seed + 6, 2), draw(seed + 7, 2), 0.3 * draw(seed + 8, 3, 2))


def shuffled(one: Polytope, seed: int, sizes: float = 1.0) -> Polytope:
    at = order(seed, one.rows)
    scale = torch.where(draw(seed, one.rows) > 0, sizes, 1.0)
    return Polytope(scale.unsqueeze(-1) * one.H[at], scale * one.h[at])


@given(seeds(), UNITS)
@settings(max_examples=8)
def test_the_order_and_the_size_of_rows_leave_the_verdict(seed, size):
    problem = problem_of(seed)
    other = replace(
        problem, **{name: shuffled(getattr(problem, name), seed, size) for name in ("states", "inputs", "terminal")}
    )
    assert judged(problem, seed).outcome is judged(other, seed).outcome


@given(seeds())
@settings(max_examples=8)
def test_the_order_of_members_leaves_the_verdict_and_moves_their_tubes(seed):
    problem, at = problem_of(seed), order(seed, 3)
    model = problem.model
    assert isinstance(model, Stated)
    moved = Stated(model.A[at], model.B[at], model.c[at], model.variance[at], model.share)
    one, other = judged(problem, seed), judged(replace(problem, model=moved), seed)
    assert one.outcome is other.outcome
    if one.tube is not None and other.tube is not None:
        close(other.tube.center, one.tube.center[at], rtol=1e-12)
        close(other.tube.factor @ other.tube.factor.mT, (one.tube.factor @ one.tube.factor.mT)[at], rtol=1e-10)


# ------------------------------------------------------------------------------------------------------------- units
@given(seeds(), UNITS, UNITS)
@settings(max_examples=6)
def test_units_of_states_and_inputs_leave_every_bit_of_a_certificates_margins(seed, state, force):
    """x = state·y, u = force·v: the plant, its disturbance, the gain and the rows in the new units."""
    g, steps = seed % 3, 3
    A, B, half = draw(seed, 2, 2), draw(seed + 1, 2, 1), 0.05 * draw(seed + 2, 2).abs()
    K, X, U, F = (
        0.2 * draw(seed + 3, 1, 2),
        simplex(seed + 4, 2, size=3),
        simplex(seed + 5, 1, size=2),
        simplex(seed + g, 2, size=2),
    )
    x0, u = 0.3 * draw(seed + 7, 2), 0.3 * draw(seed + 8, steps, 1)

    def certificate(s: float, f: float):
        model = LinearTube(AffineKnown(A, B * (f / s), torch.zeros(2).double()), half / s)
        sets = (Polytope(X.H * s, X.h), Polytope(U.H * f, U.h), Polytope(F.H * s, F.h))
        problem = CertificationProblem(model, *sets, K * (s / f), steps)
        return judge(problem, x0 / s, u[0] / f, u / f)

    one, other = certificate(1.0, 1.0), certificate(state, force)
    assert one.outcome is other.outcome
    assert one.margins is not None and other.margins is not None
    for name in ("state", "input", "terminal"):
        assert torch.equal(getattr(one.margins, name), getattr(other.margins, name)), name


@given(seeds(), st.sampled_from(["rbf", "matern-3/2", "matern-5/2"]), DECIMAL, DECIMAL)
@settings(max_examples=6)
def test_units_of_inputs_and_outputs_leave_the_band(seed, name, of_z, of_y):
    """k(z/a, z'/a)·c², λc² and Rc; B stays, because ‖c f‖ in c²k is ‖f‖ in k."""
    count, lam, noise = 8, 0.05, 0.2
    z, y, query, scales = draw(seed, count, 2), draw(seed + 1, count, 1), draw(seed + 2, 6, 2), [0.7, 1.1]

    def in_units(a: float, c: float) -> torch.Tensor:
        lengths = [a * s for s in scales]
        kernel = (
            kernels.rbf(lengths, c**2) if name == "rbf" else kernels.matern(1.5 if "3" in name else 2.5, lengths, c**2)
        )
        model = GP.create(kernel, lam * c**2, nx=2, nu=0, noise_std=[c * noise] * 2, outputs=(0,)).condition_on(
            a * z, c * y
        )
        return band(model, a * query, mixture(noise=c * noise)) / c

    close(in_units(of_z, of_y), in_units(1.0, 1.0), rtol=1e-7)


def controlled(s: float, f: float) -> tuple[ConfidenceSet, AffinePolicies, Task]:
    """x⁺ = x + u/4 + f(x, u) + w for x = s·y, u = f·v: plant, kernel, policies, cost and noise in the new units."""
    z, y = 0.6 * draw(0, 6, 2), 0.02 * draw(1, 6, 1)
    known = AffineKnown(vector(1.0).reshape(1, 1), vector(0.25 * f / s).reshape(1, 1), vector(0.0))
    model = GP.create(
        kernels.rbf([1.0 / s, 2.0 / f], 0.01 / s**2), (0.05 / s) ** 2, nx=1, nu=1, noise_std=0.05 / s, prior=known
    ).condition_on(z / vector(s, f), y / s)
    cost = IndicatorCost(vector(1.0).reshape(1, 1), vector(1.0 / s))
    task = Task(vector(0.5 / s), 4, cost, 0.6, vector(0.05 / s))
    inputs = Box(vector(-1.0 / f), vector(1.0 / f))
    policies = set_point_policies(
        vector(0.7, 0.95).reshape(2, 1) / s, vector(3.0 * s / f).reshape(1, 1), torch.zeros(2, 1).double(), inputs
    )
    return ConfidenceSet(Mixture(rkhs_norm=1.0, subgaussian=0.05 / s, delta=0.1)).update(model), policies, task


TUBES = {
    "robust": lambda task, s: RobustDP(Grid(Box(vector(-0.4 / s), vector(1.6 / s)), (64,)), task),
    "scenario": lambda task, s: ScenarioTube(task=task, seed=3, samples=40, pilot=8, limit=100.0 / s),
    "scenario, in pieces": lambda task, s: ScenarioTube(
        task=task, seed=3, samples=40, pilot=8, limit=100.0 / s, pieces=4, anchors=2
    ),
    "gaussian": lambda task, s: GaussianTube(task=task, limit=100.0 / s),
}


@pytest.mark.parametrize("force", FAR)
@pytest.mark.parametrize("state", FAR)
@pytest.mark.parametrize("name", TUBES)
def test_units_of_the_plant_leave_a_policys_bound(name, state, force):
    def upper(s: float, f: float) -> torch.Tensor:
        used, policies, task = controlled(s, f)
        return TUBES[name](task, s).evaluate(used, policies).upper

    close(upper(state, force), upper(1.0, 1.0), rtol=1e-12)


@pytest.mark.parametrize("force", FAR)
@pytest.mark.parametrize("state", FAR)
def test_units_of_the_plant_leave_plans_and_what_refutes_them(state, force):
    """In states of 10⁻⁹ the slack of 10⁻⁹ refused every plan, and no measurement was beyond its set."""

    def told(s: float, f: float) -> tuple[torch.Tensor, list[bool]]:
        used, policies, task = controlled(s, f)
        box, radius = policies.input_box, vector(0.05 / s)
        judge = PlanTube(fallbacks=policies, task=task, noise_radius=radius, input_box=box, limit=100.0 / s)
        effort = Tracking(brakes=policies, authority=0.8, state_weight=vector(s**2), input_weight=vector(f**2))
        shield = Shield.start(judge, used, vector(0.1 / s), tracking=effort)
        assert isinstance(shield, Shield)
        pushes = vector(1.0, 0.3, -1.0).reshape(3, 1, 1) / f
        refuted = [shield.arrived(vector(0.1 / s) * (1 + miss)).falsified is not None for miss in (1e-13, 1e-5)]
        decision, after = shield.decide(vector(0.1 / s), pushes)
        assert after.expected is not None
        center, edge = after.expected.center[0], after.expected.radius[0]
        refuted += [after.arrived(center + share * edge).falsified is not None for share in (-0.999999, 1.000001)]
        return torch.cat([vector(shield.margin, decision.margin) * s, decision.u * f, center * s, edge * s]), refuted

    (one, refuted), (other, as_well) = told(1.0, 1.0), told(state, force)
    assert refuted == as_well == [False, True, False, True]
    close(other, one, rtol=1e-12)


PLAN_TUBES = {
    "process": lambda used, f: GPTube(used, 3, 0.1),
    "process, summed noise": lambda used, f: GPTube(used, 3, 0.1, noise="sums"),
    "Lipschitz constants": lambda used, f: KollerTube(used, 3, 0.1),
    "known": lambda used, f: KnownTube(used.model.prior, vector(0.1 / f)),
}


@pytest.mark.parametrize("force", FAR)
@pytest.mark.parametrize("state", FAR)
@pytest.mark.parametrize("name", PLAN_TUBES)
def test_units_of_the_plant_leave_the_margins_of_plan_tubes(name, state, force):
    """In states of 10⁻⁹ a tube was widened by 10⁻¹² of one in every step, a thousandth of the state.

    Lipschitz constants take states and inputs for lengths of one space. β is rounded up by a share of ln λ.
    """
    force = state if name == "Lipschitz constants" else force

    def certificate(s: float, f: float):
        used = controlled(s, f)[0]
        ends = vector(1.0, -1.0).reshape(2, 1)
        X, U = Polytope(ends * s, vector(1.0, 1.0)), Polytope(ends * f, vector(1.0, 1.0))
        problem = CertificationProblem(PLAN_TUBES[name](used, f), X, U, X, vector(-0.5 * s / f).reshape(1, 1), 3)
        plan = vector(0.1, -0.2, 0.3).reshape(3, 1) / f
        return judge(problem, vector(0.1 / s), plan[0], plan)

    one, other = certificate(1.0, 1.0), certificate(state, force)
    assert one.outcome is other.outcome
    assert one.margins is not None and other.margins is not None
    for part in ("state", "input", "terminal"):
        close(getattr(other.margins, part), getattr(one.margins, part), rtol=1e-12)


@pytest.mark.parametrize("power", [-600, -530, -480, 480, 530])
def test_states_whose_squares_float64_cannot_hold_are_refused_or_judged_as_in_units_of_1(power):
    """At 10⁻¹⁶⁰ the disturbance underflowed to none, and two of thirty plans that leave their limits were certified."""

    def outcome(seed: int, s: float):
        half = 0.05 * draw(seed + 2, 2).abs() * s
        model = LinearTube(AffineKnown(draw(seed, 2, 2), s * draw(seed + 1, 2, 1), torch.zeros(2).double()), half)
        X, U, F = (simplex(seed + i, dim, size=size) for i, dim, size in ((4, 2, 3), (5, 1, 2), (seed % 3, 2, 2)))
        X, F, plan = Polytope(X.H / s, X.h), Polytope(F.H / s, F.h), 0.3 * draw(seed + 8, 3, 1)
        problem = CertificationProblem(model, X, U, F, 0.2 * draw(seed + 3, 1, 2) / s, 3)
        return judge(problem, 0.3 * s * draw(seed + 7, 2), plan[0], plan).outcome

    for seed in range(30):
        if abs(power) > 500:
            with pytest.raises(ValueError, match="LinearTube: expected half_axes of 0 or from 1e-150"):
                outcome(seed, 2.0**power)
        else:
            assert outcome(seed, 2.0**power) is outcome(seed, 1.0)


@given(seeds(), st.integers(1, 3), UNITS)
def test_units_leave_containment_of_ellipsoids(seed, dim, size):
    one = Ellipsoid(draw(seed, dim), draw(seed + 1, dim, dim))
    H, h = draw(seed + 2, 4, dim), 2 * draw(seed + 3, 4).abs()
    found = one.inside_halfspaces(H, h)
    other = Ellipsoid(size * one.center, size * one.factor).inside_halfspaces(H / size, h)
    assert torch.equal(found.margin, other.margin)


@pytest.mark.parametrize("unit", [2.0**10, 2.0**20, 2.0**26])
def test_units_of_a_state_and_an_input_leave_the_remainder_of_a_process(unit):
    """Value and gradient of very different sizes: for 1e8 beside 1e-8 a quarter of the joint band was left, at 1e10 it was 3e-5
    of itself too narrow, and 1e-10 is what rounding was granted."""
    z, y = 2 * draw(7, 40, 2), draw(8, 40, 1)
    x, u, factor = draw(9, 30, 1, 1), draw(10, 30, 1, 1), 0.1 * draw(11, 30, 1, 1, 1).abs()

    def remainder(s: float) -> torch.Tensor:
        units = vector(s, 1.0 / s)
        known = AffineKnown(torch.zeros(1, 1).double(), torch.zeros(1, 1).double(), torch.zeros(1).double())
        model = GP.create(
            kernels.rbf((vector(0.7, 1.1) * units).tolist()), 1e-4, nx=1, nu=1, noise_std=0.1, prior=known
        )
        used = ConfidenceSet(Mixture(rkhs_norm=1.0, subgaussian=0.1, delta=0.1)).update(
            model.condition_on(z * units, y)
        )
        gain = torch.full((1, 1), -0.5 / s**2, dtype=torch.float64)
        return GPTube(used, 3, 0.1).remainder(x * s, u / s, factor * s, gain)

    close(remainder(unit), remainder(1.0), rtol=1e-9)


# ---------------------------------------------------------------------------------------------------------- monotone
@given(seeds(), st.sampled_from(["norm", "noise", "delta"]), st.floats(1.0, 20.0))
@settings(max_examples=8)
def test_sets_of_functions_grow_with_norm_noise_and_certainty(seed, name, factor):
    model = posterior(make_kernel("rbf", 2), draw(seed, 6, 2), draw(seed + 1, 6, 1))
    usual = {"norm": 1.5, "noise": 0.2, "delta": 0.1}
    low, high = band(model, draw(seed + 2, 8, 2), mixture(**usual))
    wider = {**usual, name: usual[name] / factor if name == "delta" else usual[name] * factor}
    lower, higher = band(model, draw(seed + 2, 8, 2), mixture(**wider))
    assert bool((lower <= low).all() and (higher >= high).all())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "factor"), [("rkhs_norm", 1.3), ("subgaussian", 1.3), ("delta", 0.01)])
def test_bounds_of_cost_grow_with_norm_noise_and_certainty(name, factor, case):
    bound = case.confidence.bound
    changed = tuple(factor * b for b in bound.rkhs_norm) if name == "rkhs_norm" else factor * getattr(bound, name)
    wider = ConfidenceSet(replace(bound, **{name: changed}))
    for generation in case.confidence.generations:
        wider = wider.update(generation)
    for which in ("robust-dp", "gaussian-tube"):
        policies = case.choose(2, 30, 50, 70)
        upper = BOUNDS[which](case.task).evaluate(case.confidence, policies).upper
        larger = BOUNDS[which](case.task).evaluate(wider, policies).upper
        assert bool((larger >= upper * (1 - 1e-9)).all()), which


@given(seeds(), st.floats(0.0, 2.0), st.floats(0.0, 2.0))
def test_safe_sets_grow_with_the_budget(seed, first, second):
    low, high = sorted((first, second))
    uppers, push = draw(seed, 2, 7).abs(), draw(seed + 1, 7, 7).abs()

    def members(budget: float) -> set[int]:
        safe = SafePolicySet.initial(7, [0], budget=budget)
        for episode, upper in enumerate(uppers, 1):
            safe = safe.expand(upper, episode=episode, bound="b", distance=PolicyGap(push + push.T, 3, 1.0))
        return set(safe.witnesses)

    assert members(low) <= members(high)


@given(seeds(), st.floats(1.0, 10.0))
@settings(max_examples=8)
def test_a_plan_certified_under_more_disturbance_is_certified_under_less(seed, factor):
    """All disturbances by one factor, no remainder: every tube grows by it."""
    problem = problem_of(seed, share=0.0)
    model = problem.model
    assert isinstance(model, Stated)
    more = replace(problem, model=replace(model, variance=factor**2 * model.variance))
    quiet, loud = judged(problem, seed), judged(more, seed)
    assert quiet.certified or not loud.certified
    if quiet.tube is not None and loud.tube is not None:
        close(loud.tube.factor @ loud.tube.factor.mT, factor**2 * (quiet.tube.factor @ quiet.tube.factor.mT))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "factor"), [("rkhs_norm", 1.5), ("subgaussian", 1.5), ("delta", 0.1)])
def test_margins_of_gp_tubes_fall_with_norm_noise_and_certainty(name, factor):
    problem = gp_pendulum(steps=2, count=10)
    model = problem.model
    assert isinstance(model, GPTube)
    bound = model.confidence.bound
    changed = tuple(factor * b for b in bound.rkhs_norm) if name == "rkhs_norm" else factor * getattr(bound, name)
    wider = ConfidenceSet(replace(bound, **{name: changed})).update(model.confidence.model)
    less = replace(problem, model=GPTube(wider, 2, model.delta))
    for inputs in (plan(0.0, 0.0), plan(0.4, -0.4)):
        one, other = (judge(p, vector(0.1, 0.2), inputs[0], inputs) for p in (problem, less))
        assert one.margins is not None and other.margins is not None
        assert bool((other.margins.state <= one.margins.state + 1e-12).all())
        assert bool((other.margins.terminal <= one.margins.terminal + 1e-12).all())
