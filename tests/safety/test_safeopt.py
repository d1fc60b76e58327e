"""SafeOpt's and GoSafe's sets against the papers in plain loops, and what broken constants do to them."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds

from gpsafe.confidence import Constant, Mixture
from gpsafe.models import GP
from gpsafe.rkhs import kernels
from gpsafe.rkhs.functions import random_function
from gpsafe.safety import Beliefs, Boundary, Rollouts, SafeOptRule, SafeOptSets
from gpsafe.safety.gosafe import adopt
from gpsafe.safety.safeopt import confident_safe, lipschitz_safe

POINTS = torch.linspace(-1.0, 1.0, 13).double().unsqueeze(-1)
GAP = (POINTS - POINTS.T).abs()
LENGTH, NOISE = 0.6, 0.1
H1, H2 = torch.tensor([0.0]).double(), torch.tensor([-math.inf, -0.2, 0.1]).double()


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------ the papers, number by number
class Naive:
    """One GP by its definition, with NumPy, on the points and the observations so far (index, value)."""

    def __init__(self, beta: float) -> None:
        self.beta, self.seen = beta, []

    def bounds(self, at: int, extra: tuple[int, float] | None = None) -> tuple[float, float]:
        seen = [*self.seen, *([extra] if extra is not None else [])]
        if not seen:
            return -self.beta, self.beta
        k = lambda i, j: math.exp(-0.5 * (float(POINTS[i] - POINTS[j]) / LENGTH) ** 2)  # noqa: E731
        K = np.array([[k(i, j) for j, _ in seen] for i, _ in seen]) + NOISE**2 * np.eye(len(seen))
        row = np.array([k(at, j) for j, _ in seen])
        solved = np.linalg.solve(K, np.array([[y for _, y in seen], row]).T)
        mean, sd = row @ solved[:, 0], math.sqrt(max(1.0 - row @ solved[:, 1], 0.0))
        return float(mean - self.beta * sd), float(mean + self.beta * sd)


def naive_step(kind: str, gps: list[Naive], h: list[float], L: list[float], before: dict):
    """`kind`: "sgbk" (Algorithm 1 and SafeOpt-MC), "bsk" (ICRA 2016), "released" (the program with full_sets)."""
    P, q, needed = len(POINTS), len(gps), [i for i in range(len(h)) if h[i] > -math.inf]
    low, high = {}, {}
    for a in range(P):
        for i in range(q):
            low[a, i], high[a, i] = gps[i].bounds(a)
            if kind != "released":
                low[a, i] = max(low[a, i], before["low"][a, i])
                high[a, i] = min(high[a, i], before["high"][a, i])
    d = lambda a, b: float(GAP[a, b])  # noqa: E731
    if kind == "sgbk":
        safe = {
            b for b in range(P) if all(any(low[a, i] - L[i] * d(a, b) >= h[i] for a in before["safe"]) for i in needed)
        }
    elif kind == "bsk":
        safe = {a for a in range(P) if all(low[a, i] >= h[i] for i in needed)}
    else:
        safe = {a for a in range(P) if all(low[a, i] > h[i] for i in needed)}
    best = max([low[a, 0] for a in safe], default=math.inf)
    maximisers = {a for a in safe if high[a, 0] >= best}
    expanders = set()
    for a in safe:
        out = [b for b in range(P) if b not in safe]
        if kind == "sgbk":
            grows = any(high[a, i] - L[i] * d(a, b) >= h[i] for b in out for i in needed)
        elif kind == "bsk":
            grows = any(all(gps[i].bounds(b, (a, high[a, i]))[0] >= h[i] for i in needed) for b in out)
        else:
            grows = all(any(gps[i].bounds(b, (a, high[a, i]))[0] >= h[i] for b in out) for i in needed)
        if grows:
            expanders.add(a)
    width = {a: max(high[a, i] - low[a, i] for i in range(q)) for a in expanders | maximisers}
    return {"low": low, "high": high, "safe": safe, "G": expanders, "M": maximisers, "width": width}


RULES = {
    "sgbk": lambda h, L: SafeOptRule(h, L),
    "bsk": lambda h, L: SafeOptRule(h, agree="same"),
    "released": lambda h, L: SafeOptRule.released(h),
}


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("h", [H1, H2], ids=["one function", "two constraints"])
@given(seed=seeds())
@settings(max_examples=2)
def test_sets_evolve_as_in_the_papers(kind, h, seed):
    q, steps, initial, beta = len(h), 5, [5, 6], 1.3
    truth = 0.4 + torch.stack([(2 * POINTS[:, 0] + draw(seed + i, 1)).sin() for i in range(q)], -1)
    L = draw(seed + 9, q).abs() + 0.3
    rule, models = RULES[kind](h, L), [GP.regression(kernels.rbf([LENGTH]), dim=1, noise_std=NOISE)] * q
    sets, gps = rule.start(len(POINTS), initial), [Naive(beta) for _ in range(q)]
    before = {
        "safe": set(initial),
        "low": {(a, i): h[i].item() if a in initial else -math.inf for a in range(len(POINTS)) for i in range(q)},
        "high": {(a, i): math.inf for a in range(len(POINTS)) for i in range(q)},
    }
    ask = initial[0]
    for n in range(steps):
        if n or kind == "released":  # the released program begins with a measurement
            y = truth[ask] + NOISE * draw(seed + 20 + n, q)
            models = [m.condition_on(POINTS[ask : ask + 1], v.reshape(1, 1)) for m, v in zip(models, y, strict=True)]
            for gp, value in zip(gps, y.tolist(), strict=True):
                gp.seen.append((ask, value))
        beliefs = Beliefs.of(models, [Constant(value=beta)] * q, POINTS)
        sets, before = rule.step(sets, beliefs, GAP), naive_step(kind, gps, h.tolist(), L.tolist(), before)
        for name, mine in (("safe", sets.safe), ("G", sets.expanders), ("M", sets.maximisers)):
            assert set(torch.nonzero(mine).flatten().tolist()) == before[name], (n, name)
        wanted = torch.tensor([[before["low"][a, i] for i in range(q)] for a in range(len(POINTS))])
        assert torch.allclose(sets.lower, wanted.double(), atol=1e-9)
        if not before["width"]:
            with pytest.raises(ValueError, match="a point to choose from"):
                rule.choose(sets)
            break
        ask = rule.choose(sets)
        assert before["width"][ask] >= max(before["width"].values()) - 1e-9


# ------------------------------------------------------------------ what is promised
def function(seed: int) -> torch.Tensor:
    """Of norm 1, with a value above 0."""
    generator = torch.Generator().manual_seed(seed)
    f = random_function(kernels.rbf([LENGTH]), POINTS[0], POINTS[-1], norm=1.0, generator=generator)(POINTS)
    return f if float(f.max()) > 0 else -f


def run(f: torch.Tensor, rule: SafeOptRule, beta: Constant | Mixture, steps: int = 8) -> list[SafeOptSets]:
    """Sets of every iteration; f is measured exactly, S_0 is its largest point."""
    model = GP.regression(kernels.rbf([LENGTH]), dim=1, noise_std=NOISE)
    sets = [rule.start(len(POINTS), [int(f.argmax())])]
    for _ in range(steps):
        sets.append(rule.step(sets[-1], Beliefs.of([model], [beta], POINTS), GAP))
        if not bool(sets[-1].candidates.any()):  # an interval is empty: a constant was false
            break
        ask = rule.choose(sets[-1])
        model = model.condition_on(POINTS[ask : ask + 1], f[ask].reshape(1, 1))
    return sets


def slope(f: torch.Tensor) -> torch.Tensor:
    """The least L on these points."""
    pairs = GAP > 0
    return ((f[:, None] - f).abs()[pairs] / GAP[pairs]).max().reshape(1)


BOUND = Mixture(rkhs_norm=1.0, subgaussian=NOISE, delta=0.1)


@given(seeds(), st.booleans())
@settings(max_examples=2)
def test_no_unsafe_point_is_admitted_and_sets_only_grow_under_true_constants(seed, lipschitz):
    f = function(seed)
    found = run(f, SafeOptRule(H1, slope(f) if lipschitz else None, agree="same"), BOUND)
    assert not bool((found[-1].safe & (f < 0)).any())
    assert all(bool((a.safe <= b.safe).all()) for a, b in pairwise(found))


def test_control_a_lipschitz_constant_that_is_too_small_and_a_band_that_is_too_narrow_admit_unsafe_points():
    functions = [f for f in map(function, range(6)) if float(f.min()) < -0.05]
    small = [run(f, SafeOptRule(H1, 0.05 * slope(f)), BOUND)[-1].safe & (f < 0) for f in functions]
    narrow = [run(f, SafeOptRule(H1, agree="same"), Constant(value=0.05))[-1].safe & (f < 0) for f in functions]
    assert len(functions) >= 3 and all(bool(wrong.any()) for wrong in small) and any(bool(w.any()) for w in narrow)


def test_nan_vouches_for_nobody():
    rule = SafeOptRule(H1, torch.tensor([0.1]).double())
    sets = rule.start(len(POINTS), [3])
    nothing = Beliefs(torch.full((13, 1), torch.nan).double(), torch.ones(13, 1).double(), torch.ones(1), torch.ones(1))
    after = rule.step(sets, nothing, GAP)
    assert torch.equal(after.lower, sets.lower) and torch.equal(after.upper, sets.upper)
    assert torch.equal(after.safe, rule.step(sets, nothing, GAP).safe) and 3 in torch.nonzero(after.safe).flatten()
    seen = replace(nothing, covariance=torch.eye(13).double().unsqueeze(0))
    alone = SafeOptRule.released(H1).step(sets, seen)
    assert not bool(alone.safe.any() | alone.expanders.any() | alone.maximisers.any())


SAFE_OPT_RULES = {
    "lipschitz": SafeOptRule(H1, torch.tensor([0.1]).double()),
    "own": SafeOptRule(H1),
    "released": SafeOptRule.released(H1, lipschitz=torch.tensor([0.1]).double()),
    "released, own": SafeOptRule.released(H1),
}


@pytest.mark.parametrize("rule", SAFE_OPT_RULES.values(), ids=list(SAFE_OPT_RULES))
@pytest.mark.parametrize(
    ("name", "poison"), [*(("mean", v) for v in (math.inf, 1.7e308)), *(("half", v) for v in (-math.inf, -1e9))]
)
def test_beliefs_that_are_no_numbers_admit_nobody(rule, name, poison):
    """Not the point itself, and none for which it would vouch."""
    low = torch.full((13, 1), -0.5).double()
    seen = Beliefs(low, 0.1 * torch.ones(13, 1).double(), torch.ones(1), torch.ones(1), torch.eye(13).double()[None])
    sets = rule.start(13, [3])
    clean = rule.step(sets, seen, GAP)
    for at in (3, 7):
        struck = getattr(seen, name).clone()
        struck[at] = poison
        after = rule.step(sets, replace(seen, **{name: struck}), GAP)
        assert not bool((after.safe & ~clean.safe).any())
        again = rule.step(after, replace(seen, **{name: struck}), GAP)
        assert not bool((again.safe & ~clean.safe).any())


def test_a_distance_that_is_none_and_a_threshold_that_is_none_admit_nobody():
    rule = SAFE_OPT_RULES["lipschitz"]
    sets = rule.start(13, [3])
    seen = Beliefs(*(torch.full((13, 1), v).double() for v in (0.0, 1.0)), torch.ones(1), torch.ones(1))
    clean = rule.step(sets, seen, GAP).safe
    for poison in (math.nan, math.inf, -math.inf, -1.7e308, -1.0):
        gap = GAP.clone()
        gap[3, 7] = poison
        assert not bool((rule.step(sets, seen, gap).safe & ~clean).any())
    lower, nothing = torch.full((13, 1), -1.0).double(), torch.tensor([math.nan]).double()
    with pytest.raises(ValueError, match="numbers or -inf"):
        confident_safe(lower, nothing)
    with pytest.raises(ValueError, match="numbers or -inf"):
        lipschitz_safe(sets.safe, lower, GAP, torch.ones(1).double(), nothing)
    with pytest.raises(ValueError, match="lipschitz >= 0"):
        lipschitz_safe(sets.safe, lower, GAP, -torch.ones(1).double(), H1)
    with pytest.raises(ValueError, match="numbers or -inf"):
        Boundary.of(sets, nothing, Rollouts.empty(1), lipschitz=1.0, jump=0.1)
    for policy, threshold in ((3, nothing), (-1, H1), (True, H1)):
        with pytest.raises(ValueError, match="adopt"):
            adopt(sets, policy, threshold)


def test_what_makes_no_sense_is_refused():
    wrong: list[dict[str, Any]] = [
        {"threshold": [[0.0]]},
        {"threshold": [-math.inf]},
        {"threshold": [0.0], "agree": "all"},
    ]
    wrong += [{"threshold": [0.0], "lipschitz": [-1.0]}, {"threshold": [0.0], "lipschitz": [1.0, 2.0]}]
    for bad in wrong:
        with pytest.raises(ValueError, match="SafeOptRule"):
            SafeOptRule(**bad)
    rule = SafeOptRule(H1, H1)
    with pytest.raises(ValueError, match="distance"):
        rule.step(
            rule.start(13, [0]), Beliefs.of([GP.regression(kernels.rbf([1.0]), dim=1, noise_std=1.0)], [BOUND], POINTS)
        )
    model = GP.regression(kernels.rbf([1.0]), dim=1, noise_std=1.0)
    for models, bounds in (([], []), ([model], []), ([], [BOUND]), ([model], [BOUND, BOUND])):
        with pytest.raises(ValueError, match="as many bounds as models, at least one"):
            Beliefs.of(models, bounds, POINTS)
    with pytest.raises(ValueError, match="non-empty S_0"):
        rule.start(13, [])


def test_a_model_with_a_known_part_is_no_model_of_the_function():
    """Its intervals are of f − known: the known part was left out of both, so that what is 1 lower was called safe."""
    model = GP.create(
        kernels.rbf([LENGTH]), NOISE**2, nx=1, nu=0, noise_std=NOISE, prior=lambda x, u: torch.full_like(x, -1.0)
    )
    with pytest.raises(ValueError, match="without a known part"):
        Beliefs.of([model], [BOUND], POINTS)
    zero = replace(model, prior=lambda x, u: torch.zeros_like(x))
    assert torch.equal(Beliefs.of([zero], [BOUND], POINTS).mean, torch.zeros(13, 1).double())


def test_an_infinite_bound_of_any_constraint_vouches_for_nobody():
    """Nor does that of one function speak for another."""
    lower = torch.full((13, 3), 0.5).double()
    for i, struck in enumerate((H2[0], H2[1], H2[2])):
        lower[:, i], seen = math.inf, torch.zeros(13, dtype=torch.bool).index_fill(0, torch.tensor([3]), True)
        found = lipschitz_safe(seen, lower, GAP, torch.ones(3).double(), H2)
        assert bool(found.any()) == (float(struck) == -math.inf) and float(lower[3, i]) == math.inf
        lower[:, i] = 0.5


def test_widths_of_different_functions_are_compared_in_their_units():
    """max_i w_i/scaling_i: 5 is wide beside 2, and 5/10 is not."""
    threshold, width = torch.tensor([-math.inf, 0.0]).double(), torch.tensor([[1.0, 5.0], [2.0, 1.0]]).double()
    everybody = torch.ones(2, dtype=torch.bool)
    sets = SafeOptSets(torch.zeros(2, 2).double(), width, everybody, everybody, everybody)
    assert SafeOptRule(threshold).choose(sets) == 0
    assert SafeOptRule(threshold, scaling=torch.tensor([1.0, 10.0])).choose(sets) == 1


# ------------------------------------------------------------------ GoSafe
@given(seeds())
@settings(max_examples=3)
def test_the_boundary_condition_is_that_of_the_paper(seed):
    rule = SafeOptRule(H2)
    sets = rule.start(4, [0])
    lower = draw(seed, 4, 3)
    sets = SafeOptSets(lower, lower + 1, *(getattr(sets, k) for k in ("safe", "expanders", "maximisers")))
    passed = Rollouts.empty(2).add(0, draw(seed + 1, 3, 2)).add(2, draw(seed + 2, 2, 2))
    boundary = Boundary.of(sets, H2, passed, lipschitz=0.7, jump=0.1)
    for x in draw(seed + 3, 5, 2):
        best, backup = -math.inf, -1
        for a, x_a in zip(passed.policies.tolist(), passed.states, strict=True):
            value = min(lower[a, i].item() - H2[i].item() for i in (1, 2)) - 0.7 * (float((x - x_a).norm()) + 0.1)
            if value > best:
                best, backup = value, a
        slack, found = boundary.slack_at(x.unsqueeze(0))
        assert float(slack) == pytest.approx(best) and int(found) == backup
    adopted = adopt(sets, 3, H2)
    assert bool(adopted.safe[3]) and torch.equal(adopted.lower[3], torch.maximum(lower[3], H2))
    empty = Boundary.of(sets, H2, Rollouts.empty(2), lipschitz=1.0, jump=0.0)
    assert float(empty.slack_at(torch.zeros(1, 2).double())[0]) == -math.inf


# ------------------------------------------------------------------ invariances
def posterior(seed: int) -> tuple[list[GP], list[Constant]]:
    models = [GP.regression(kernels.rbf([LENGTH]), dim=1, noise_std=NOISE) for _ in range(3)]
    where = torch.tensor([5, 6, 8])
    return [m.condition_on(POINTS[where], 0.5 + 0.5 * draw(seed + i, 3, 1)) for i, m in enumerate(models)], [
        Constant(value=1.0)
    ] * 3


@given(seeds(), st.sampled_from(sorted(RULES)))
@settings(max_examples=6)
def test_the_order_of_policies_does_not_matter(seed, kind):
    (models, bounds), order = posterior(seed), torch.randperm(13, generator=torch.Generator().manual_seed(seed))
    rule, place = RULES[kind](H2, torch.ones(3).double()), order.argsort()
    one = rule.step(rule.start(13, [5, 6]), Beliefs.of(models, bounds, POINTS), GAP)
    moved = Beliefs.of(models, bounds, POINTS[order])
    two = rule.step(rule.start(13, place[[5, 6]]), moved, GAP[order][:, order])
    for name in ("safe", "expanders", "maximisers"):
        assert torch.equal(getattr(one, name)[order], getattr(two, name))


@given(seeds(), st.floats(1.0, 5.0))
@settings(max_examples=6)
def test_a_larger_slope_a_larger_beta_and_a_higher_threshold_never_admit_more(seed, factor):
    models, bounds = posterior(seed)

    def safe(slope: float | None, beta: float = 1.0, up: float = 0.0) -> torch.Tensor:
        rule = SafeOptRule(H2 + up, None if slope is None else torch.full((3,), slope).double())
        return rule.step(
            rule.start(13, [5, 6]), Beliefs.of(models, [Constant(value=beta)] * len(bounds), POINTS), GAP
        ).safe

    wide, own = safe(0.5), safe(None)
    assert bool((safe(0.5 * factor) <= wide).all()) and bool((safe(0.5, factor) <= wide).all())
    assert bool((safe(None, factor) <= own).all()) and bool((safe(None, up=factor - 1) <= own).all())
