"""Bounds by interval arithmetic: never below the truth, for every rule; what they cannot bound is refused by name."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gpsafe as gs
from gpsafe.cost.curvature import LocallyCurved, remainder_outer
from gpsafe.sets import Box
from gpsafe.systems import DerivedCost, DerivedKnown, Pendulum, derived_known
from gpsafe.systems._curvature import box, ranges
from gpsafe.systems._interval import SMOOTH, Interval, power
from gpsafe.systems._tape import NotReadableError
from gpsafe.systems._trace import read
from gpsafe.systems.base import Cost, KnownPart
from gpsafe.systems.casadi_known import casadi_known
from tests.strategies import seeds
from tests.systems import _claims as claims

UNIT = (Box(-torch.ones(2).double(), torch.ones(2).double()), Box(-torch.ones(1).double(), torch.ones(1).double()))
EVERYWHERE = np.full((1, 3), np.inf)
TORCH = {name: getattr(torch, name) for name in SMOOTH}
POWERS = (0.5, 1.5, 2.7, 5.0, 6.0, -1.0, -2.0, -0.5, 7.0)


# ------------------------------------------------------------------------------------------ functions of one variable
def excess_of_one(smooth, function, seed: int) -> float:
    """Largest excess of φ, φ′, φ″ (torch's) at points of random intervals over the ranges stated there, relative."""
    generator = np.random.default_rng(seed)
    middle = generator.normal(size=300) * 10.0 ** generator.uniform(-2, 1.5, size=300)
    half = np.abs(generator.normal(size=300)) * 10.0 ** generator.uniform(-3, 1, size=300)
    x = Interval(middle - half, middle + half)
    kept = smooth.smooth(x)
    if not kept.any():
        return -math.inf
    x = x[kept]
    share = np.concatenate([[0.0, 1.0], generator.uniform(size=120)])[:, None]
    points = torch.from_numpy(np.clip(x.low + share * (x.high - x.low), x.low, x.high)).requires_grad_()
    value, worst = function(points), -math.inf
    for order in range(3):
        range_ = smooth.over(order, x)
        found = value.detach().numpy()
        with np.errstate(invalid="ignore"):
            gap = np.maximum(range_.low - found, found - range_.high) - 1e-13  # torch's own 1 − tanh², say
            gap = gap / (1e-300 + np.abs(found))
        worst = max(worst, float(np.nan_to_num(gap, nan=-1.0).max()))
        (value,) = torch.autograd.grad(value.sum(), points, create_graph=True)
    return worst


@pytest.mark.parametrize("name", SMOOTH)
def test_ranges_of_every_function_and_of_its_derivatives(name):
    assert excess_of_one(SMOOTH[name], TORCH[name], 0) <= 1e-12


@pytest.mark.parametrize("exponent", POWERS)
def test_ranges_of_powers(exponent):
    assert excess_of_one(power(exponent), lambda x: x**exponent, 1) <= 1e-12


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tanh", {"turns": ((), (0.0,), ())}),
        ("cosh", {"turns": ((), (), ())}),
        ("sin", {"shift": 0.0}),
        ("exp", {"parts": (np.exp, np.exp, lambda x: 0.9 * np.exp(x))}),
    ],
)
def test_control_a_wrong_rule_is_caught(name, change):
    assert excess_of_one(replace(SMOOTH[name], **change), TORCH[name], 0) > 1e-6


def test_limits_at_infinity():
    whole = Interval(np.array([-np.inf]), np.array([np.inf]))
    right = Interval(np.array([3.0]), np.array([np.inf]))
    for name in ("tanh", "atan", "erf", "sin", "asinh"):
        for order in (1, 2):
            assert SMOOTH[name].over(order, whole).size[0] <= 1.4 and np.isfinite(
                SMOOTH[name].over(order, right).size[0]
            )
    for name in ("sqrt", "log", "reciprocal"):
        for order in (1, 2):
            found = SMOOTH[name].over(order, right)
            assert min(abs(found.low[0]), abs(found.high[0])) <= 1e-299  # the limit is in it


# ------------------------------------------------------------------------------------------ expressions
def expressions(slots: int = 3) -> st.SearchStrategy:
    """Functions of z (*b, slots) → (*b,) with their text."""
    leaf = st.one_of(
        st.integers(0, slots - 1).map(lambda i: (f"z{i}", lambda z: z[..., i])),
        st.sampled_from([-2.0, 0.3, 1.7]).map(lambda c: (f"{c}", lambda z: torch.full_like(z[..., 0], c))),
    )
    unary = st.sampled_from([*(n for n in SMOOTH), "square", "cube", "sigmoid", "negative"])
    binary = st.sampled_from(["+", "-", "*", "/"])
    own = {"cube": lambda x: x**3, "square": torch.square, "sigmoid": torch.sigmoid, "negative": torch.neg, **TORCH}
    two = {"+": torch.add, "-": torch.sub, "*": torch.mul, "/": torch.div}

    def grown(inner):
        ones = st.tuples(unary, inner).map(lambda p: (f"{p[0]}({p[1][0]})", lambda z: own[p[0]](p[1][1](z))))
        twos = st.tuples(binary, inner, inner).map(
            lambda p: (f"({p[1][0]} {p[0]} {p[2][0]})", lambda z: two[p[0]](p[1][1](z), p[2][1](z)))
        )
        return st.one_of(ones, twos)

    return st.recursive(leaf, grown, max_leaves=6)


def excess_of(function, lower: np.ndarray, upper: np.ndarray, seed: int, *, scale: float = 1.0) -> float:
    """Largest excess of value, gradient and Hessian at drawn points of a box over the ranges of the tape, relative."""
    try:
        tape = read(lambda x, u: function(torch.cat([x, u], -1)).unsqueeze(-1).expand_as(x), 2, 1)
    except NotReadableError:  # a constant outside some domain
        return -math.inf
    jet = ranges(tape, box(lower, upper, second=True))[0]
    generator = torch.Generator().manual_seed(seed)
    unit = torch.rand(40, 3, dtype=torch.float64, generator=generator)
    unit[:16] = unit[:16].round()
    finite = [torch.from_numpy(np.clip(e, -30.0, 30.0)) for e in (lower, upper)]
    z = finite[0] + unit * (finite[1] - finite[0])
    if bool(jet.bad[0]):
        return -math.inf
    assert jet.grad is not None and jet.hess is not None
    slope = torch.func.jacrev(function)
    found = [torch.func.vmap(f)(z).numpy() for f in (function, slope, torch.func.jacrev(slope))]
    worst = -math.inf
    for value, range_ in zip(found, (jet.value, jet.grad, jet.hess), strict=True):
        with np.errstate(invalid="ignore"):
            gap = np.maximum(range_.low * scale - value, value - range_.high * scale)
            size = 1e-9 * (1.0 + np.abs(found[2]).max() + np.abs(found[1]).max() + np.abs(value))
            worst = max(worst, float(np.nan_to_num(gap - size, nan=-1.0, posinf=np.inf).max()))
    return worst


@settings(max_examples=12, deadline=None)
@given(expression=expressions(), seed=seeds(), wide=st.booleans())
def test_derivatives_of_random_expressions_are_within_the_ranges(expression, seed, wide):
    generator = np.random.default_rng(seed)
    ends = np.sort(generator.normal(size=(2, 1, 3)) * 10.0 ** generator.uniform(-1, 0.7), axis=0)
    lower, upper = (-EVERYWHERE, EVERYWHERE) if wide else (ends[0], ends[1])
    assert excess_of(expression[1], lower, upper, seed) <= 0.0


def test_control_a_broken_product_rule_is_caught(monkeypatch):
    from gpsafe.systems import _curvature

    def f(z):
        return torch.sin(z[..., 0]) * torch.tanh(z[..., 1])

    assert excess_of(f, -EVERYWHERE, EVERYWHERE, 0) <= 0.0
    kept = _curvature._times
    monkeypatch.setattr(_curvature, "_times", lambda a, b, same: replace(kept(a, b, same=same), hess=a.hess + b.hess))
    assert excess_of(f, -EVERYWHERE, EVERYWHERE, 0) > 1e-3


def test_what_is_affine_has_second_derivatives_zero_to_the_last_bit():
    known = derived_known(lambda x, u: x @ torch.tensor([[1.0, 0.1], [0.3, 0.9]]).double() + 0.7 * u - 3.0, **limits())
    assert float(known.hessian_bound.abs().max()) == 0.0


# ------------------------------------------------------------------------------------------ known parts
def limits() -> dict:
    return {"states": UNIT[0], "inputs": ([-1.0], [1.0])}


def test_the_bound_of_a_pendulum_is_the_one_by_hand():
    by_hand = Pendulum().prior()
    found = derived_known(lambda x, u: by_hand(x, u), **limits())
    assert isinstance(found, KnownPart) and isinstance(found, LocallyCurved)
    torch.testing.assert_close(found.hessian_bound, by_hand.hessian_bound, rtol=1e-9, atol=0)
    assert bool((found.hessian_bound >= by_hand.hessian_bound * (1 - 1e-11)).all())


def test_a_casadi_function_is_bounded_too():
    casadi = pytest.importorskip("casadi")
    x, u = casadi.SX.sym("x", 2), casadi.SX.sym("u", 1)
    step = casadi.Function("f", [x, u], [casadi.vertcat(x[0] + 0.1 * x[1], x[1] + casadi.sin(x[0]) + x[0] * u)])
    found = derived_known(casadi_known(step), **limits())
    expected = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]).double()
    torch.testing.assert_close(found.hessian_bound[1], expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("name", ["derived", "derived-saturated"])
@settings(max_examples=2)
@given(seed=seeds())
def test_bounds_over_boxes_dominate_the_remainder_there(name, seed):
    known, region, nx = claims.PRIORS[name]()
    lower, upper = claims.boxes(region, seed=seed, count=16)
    local = known.hessian_over(lower, upper)
    assert bool((local <= known.hessian_bound).all())
    generator = torch.Generator().manual_seed(seed)
    z = lower + torch.rand(60, 16, 3, dtype=torch.float64, generator=generator) * (upper - lower)
    middle = 0.5 * (lower + upper)
    step = lambda p: known(p[:nx], p[nx:])  # noqa: E731
    _, slope = torch.func.vmap(torch.func.vmap(lambda p, v: torch.func.jvp(step, (p,), (v,))))(
        middle.expand_as(z), z - middle
    )
    error = (torch.func.vmap(torch.func.vmap(step))(z) - known(middle[:, :nx], middle[:, nx:]) - slope).abs()
    assert bool((error <= remainder_outer(known, middle, 0.5 * (upper - lower)) + 1e-12).all())


def test_a_saturated_part_is_the_same_in_the_region_and_bounded_outside():
    known, region, _ = claims.PRIORS["derived-saturated"]()
    z = region.sample(200, torch.Generator().manual_seed(0))
    assert torch.equal(known(z[:, :2], z[:, 2:]), known.function(z[:, :2], z[:, 2:]))
    far = known(*(t * 1e6 for t in (z[:, :2], z[:, 2:])))
    assert float(far.abs().max()) < 5.0
    inner = known.hessian_over(region.lower, region.upper)
    assert float(inner[1, 0, 0]) == pytest.approx(0.6, rel=1e-9)  # |0.1 · 6a|, a ≤ 1
    assert float(known.hessian_bound[1, 0, 0]) > 0.6


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x, u: x**3 + u, "none for d2p_0/dz_0dz_0"),
        (lambda x, u: torch.sin(x * u), "none for d2p_0"),
        (lambda x, u: x + u.abs(), "p_0: .*kink"),
        (lambda x, u: x.clamp(-1, 1) + u, "p_0: .*kink"),
        (lambda x, u: torch.where(x > 0, x.square(), 0.0) + u, "p_0: .*kink"),
        (lambda x, u: torch.floor(x) + u, "p_0: .*kink"),
        (lambda x, u: x.sqrt() + u, "p_0: sqrt"),
        (lambda x, u: x / u, "p_0: reciprocal"),
        (lambda x, u: torch.log(2 + x) + u, "p_0: log"),
        (lambda x, u: x.float().double() + u, "conversion to torch.float32"),
        (lambda x, u: x + u.long(), "conversion to torch.int64"),
        (lambda x, u: x + torch.from_numpy(np.sin(u.detach().numpy())), "leave torch"),
        (lambda x, u: x if x.sum() > 0 else -x, "traced"),
        (lambda x, u: x + len(x) + u, "each row|depend on each other"),
        (lambda x, u: x[..., :1], "1 outputs for 2"),
        (lambda x, u: x.sort(-1).values + u, "sort"),
    ],
)
def test_what_cannot_be_bounded_is_refused_by_name(function, words):
    with pytest.raises(ValueError, match=rf"derived_known: .*({words})"):
        derived_known(function, **limits())


def test_a_trace_that_is_not_the_function_is_found():
    """A function that looks at something else than its arguments."""
    calls = []

    def moody(x, u):
        calls.append(0)
        return x * (1.0 if len(calls) < 2 else 2.0) + u

    with pytest.raises(ValueError, match="its own trace"):
        derived_known(moody, **limits())


def test_domains_that_the_function_keeps_itself_in_are_fine():
    known = derived_known(lambda x, u: torch.log(2 + torch.sin(x)) + 1 / (3 + torch.tanh(u)), **limits())
    assert bool(known.hessian_bound.isfinite().all())


def test_a_sound_learner_takes_a_plain_function_as_known_part():
    def euler(x, u):
        return torch.stack([x[..., 0] + 0.1 * x[..., 1], x[..., 1] + 0.1 * (-torch.sin(x[..., 0]) + u[..., 0])], -1)

    plant = gs.plant(
        lambda x, u: euler(x, u), x0=[0.0, 0.0], states=([-1, -1], [1, 1]), inputs=([-1], [1]), horizon=4,
        noise_std=1e-3, safe=([-0.8, -math.inf], [0.8, math.inf]),
    )  # fmt: skip
    kernel = gs.kernels.rbf([1.0], 0.01, dims=[0])
    learner = gs.sound_learner(plant, euler, [kernel], [1.0], outputs=(1,))
    assert isinstance(learner.model.gp.prior, DerivedKnown)
    with pytest.raises(ValueError, match=r"derived_known: .*saturated=True.*none for"):
        gs.sound_learner(plant, lambda x, u: euler(x, u) + x**3, [kernel], [1.0], outputs=(1,))


# ------------------------------------------------------------------------------------------ costs
COSTS = {
    "hinge": lambda x: (x[..., 0].abs() - 0.5).clamp(0.0, 1.0),
    "indicator": lambda x: ((x[..., 0] > 0.4) | (x[..., 1] < -0.8)).double(),
    "disc": lambda x: (x.square().sum(-1) < 0.25).double(),
    "smooth": lambda x: torch.sigmoid(4 * (x[..., 0] * x[..., 1] - 0.3)),
    "norm": lambda x: torch.linalg.vector_norm(x, dim=-1) / 3,
    "largest": lambda x: x.amax(-1).relu(),
    "log": lambda x: torch.log(0.5 + x[..., 0]),
}


@pytest.mark.parametrize("name", COSTS)
@settings(max_examples=2)
@given(seed=seeds())
def test_costs_over_boxes_enclose_the_cost(name, seed):
    cost = DerivedCost(COSTS[name], nx=2)
    assert isinstance(cost, Cost)
    lower, upper = claims.boxes(UNIT[0], seed=seed)
    assert claims.enclosure_gap(cost, lower, upper, seed=seed) <= 0.0
    points = cost.upper(lower, lower) - cost.lower(lower, lower)
    decided = ~COSTS[name](lower).isnan()
    assert float(points[decided].max()) <= 1e-9  # tight at points


def test_a_derived_cost_goes_through_a_plant_and_refuses_what_cannot_be_traced():
    plant = gs.plant(
        lambda x, u: 0.9 * x + u, x0=[0.0, 0.0], states=UNIT[0], inputs=UNIT[1], horizon=3,
        cost=DerivedCost(COSTS["hinge"], nx=2),
    )  # fmt: skip
    assert float(plant.cost.upper(UNIT[0].lower, UNIT[0].upper)) == pytest.approx(0.5)
    assert float(plant.cost(torch.full((2,), math.nan).double())) == 1.0
    assert float(plant.cost.upper(torch.full((2,), math.nan).double(), UNIT[0].upper)) == 1.0
    with pytest.raises(ValueError, match=r"DerivedCost: .*leave torch"):
        DerivedCost(lambda x: torch.from_numpy(x.numpy()[..., 0]), nx=2)
    with pytest.raises(ValueError, match="ceiling"):
        DerivedCost(COSTS["hinge"], nx=2, ceiling=0.0)


def test_a_derived_hinge_is_the_hinge_by_hand():
    x = torch.linspace(-1, 1, 21, dtype=torch.float64)
    low, high = torch.stack([x - 0.05, x - 0.05], -1), torch.stack([x + 0.05, x + 0.05], -1)
    by_hand = gs.HingeCost(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double(), torch.tensor([0.5, 0.5]).double())
    derived = DerivedCost(COSTS["hinge"], nx=2)
    torch.testing.assert_close(derived.upper(low, high), by_hand.upper(low, high), rtol=0, atol=1e-12)


def span(function, lower, upper, ceiling=1.0):
    """inf and sup of a cost as derived over one box of one state."""
    cost = DerivedCost(function, 1, ceiling)
    return [float(f(torch.tensor([lower]).double(), torch.tensor([upper]).double())) for f in (cost.lower, cost.upper)]


@pytest.mark.parametrize(
    "walls",
    [
        lambda x: (x > 1) | (x < -1),
        lambda x: torch.logical_or(x > 1, x < -1),
        lambda x: ~((x <= 1) & (x >= -1)),
        lambda x: torch.logical_not(torch.logical_and(x <= 1, x >= -1)),
        lambda x: (x > 1) ^ (x < -1),
        lambda x: torch.stack([x > 1, x < -1], -1).any(-1),
        lambda x: ~torch.stack([x <= 1, x >= -1], -1).all(-1),
    ],
    ids=["or", "logical_or", "not and", "logical not and", "xor", "any", "all"],
)
def test_connectives_that_are_decided_on_a_box_are_decided_exactly(walls):
    def function(x):
        return torch.where(walls(x[..., 0]), 1.0, 0.0)

    assert span(function, 1.5, 2.0) == [1.0, 1.0]
    assert span(function, -0.5, 2.0) == [0.0, 1.0]
    assert span(function, -0.5, 0.5) == [0.0, 0.0]


@pytest.mark.parametrize(
    "nothing", [torch.log, torch.sqrt, torch.rsqrt, lambda v: v**1.5, lambda v: torch.log(v).cos() + v]
)
def test_nothing_times_what_has_no_value_has_none(nothing):
    """A weight of 0 on a term that leaves its domain: NaN in torch, which costs the ceiling."""

    def function(x):
        return 0.1 + 0.0 * nothing(x[..., 0] + 1e4)

    cost = DerivedCost(function, 1)
    assert float(cost(torch.tensor([-2e4]).double())) == 1.0
    assert span(function, -2e4, -2e4)[1] == 1.0
    assert span(function, -1.0, 1.0)[1] == pytest.approx(0.1)


def test_constants_are_folded_where_that_rounds_and_no_more():
    """1e160² overflows, and 1/∞ would be 0: far from 1e160/hypot(1, 1e160)."""
    big = torch.tensor(1e160, dtype=torch.float64)
    low, high = span(lambda x: 1e160 / torch.hypot(torch.ones_like(x[..., 0]), big) + 0 * x[..., 0], 0.0, 1.0, 3.0)
    assert low <= 1.0 <= high


@pytest.mark.parametrize("exponent", [0.5, 1.5, 2.5, -0.5])
def test_derivatives_of_powers_beyond_where_they_are_evaluated(exponent):
    x = Interval(np.array([1.0, 1e151]), np.array([1e180, 1e180]))
    first = power(exponent).over(1, x)
    for end in (1e151, 1e180):
        true = exponent * end ** (exponent - 1)
        assert bool(((first.low <= true) & (true <= first.high)).all())
