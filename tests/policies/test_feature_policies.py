"""Feature policies: closed-loop changes over boxes are enclosed, whatever the features."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from cost_cases import make_case
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from gpsafe.cost.enclosure import closed_loop_range
from gpsafe.cost.scenario_tube import ScenarioTube
from gpsafe.policies import AffinePolicies, feedback
from gpsafe.policies.features import Feature, FeaturePolicies, pendulum_coefficients, pendulum_features
from gpsafe.policies.rollout import closed_loop
from gpsafe.safety.safe_set import policy_distance
from gpsafe.sets import Box
from gpsafe.systems.base import sample_noise
from gpsafe.systems.reference import reference_pendulum, reference_pendulum_policies

KINDS = ("1", "x", "x^2", "x^3", "sin", "cos", "tanh")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(g: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=g)


def uniform(g: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=g)


@st.composite
def features(draw, nx: int = 2):
    kinds = draw(st.tuples(*[st.sampled_from(KINDS)] * nx))
    scales = draw(st.tuples(*[st.sampled_from([0.3, 1.0, -2.0])] * nx))
    return Feature(kinds, scales)


@given(features(), seeds(), st.integers(-4, 0))
def test_taylor_remainder_encloses_every_change_of_a_feature(feature, seed, decade):
    g = generator(seed)
    c, r = 2 * normal(g, 30, 2), 10.0**decade * uniform(g, 30, 2)
    x = c + r * (2 * uniform(g, 50, 30, 2) - 1)
    error = feature.value(x) - feature.value(c) - (feature.gradient(c) * (x - c)).sum(-1)
    bound = feature.remainder(c - r, c + r)
    assert bool((error.abs() <= bound + 1e-13 * (1 + feature.value(c).abs())).all())


@given(features(), seeds())
def test_gradient_is_that_of_the_value(feature, seed):
    x = normal(generator(seed), 20, 2).requires_grad_(True)
    (slope,) = torch.autograd.grad(feature.value(x).sum(), x, allow_unused=True, materialize_grads=True)
    assert torch.allclose(feature.gradient(x.detach()), slope, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_curvature_in_one_dimension_is_nearly_attained(kind):
    """Where b″ is largest the remainder over a small box is within 10 % of the truth: no slack is hidden in the bound."""
    x = torch.linspace(-2.5, 2.5, 4001, dtype=torch.float64).unsqueeze(-1)
    r, feature = 0.01, Feature((kind,))
    bound = feature.remainder(x - r, x + r)
    ends = torch.stack([feature.value(x + s) - feature.value(x) - feature.gradient(x)[..., 0] * s for s in (-r, r)])
    worst = ends.abs().amax(0)
    assert bool((worst <= bound + 1e-13).all())
    if kind in ("1", "x"):
        assert float(bound.max()) == 0.0
    else:
        assert float(worst.max()) >= 0.9 * float(bound.max())


def draw_policies(seed: int, nu: int) -> tuple[FeaturePolicies, torch.Tensor, torch.Tensor, torch.Generator]:
    g = generator(seed)
    chosen = torch.randperm(len(KINDS) ** 2, generator=g)[:5].tolist()
    table = list(itertools.product(KINDS, KINDS))
    limit = 0.2 + uniform(g, nu)
    policies = FeaturePolicies(normal(g, 3, nu, 5), tuple(Feature(table[i]) for i in chosen), Box(-limit, 2 * limit))
    x = 1.5 * normal(g, 1, 20, 2)
    radius = 10.0 ** torch.randint(-6, 1, (1, 20, 1), generator=g).double() * uniform(g, 1, 20, 2)
    return policies, x, radius, g


def excess(policies, x, radius, slope, g) -> float:
    """How far input changes leave s (gain d + e), s ∈ [low, high], |e| ≤ remainder."""
    worst = -math.inf
    for _ in range(40):
        move = radius * (2 * uniform(g, *x.shape) - 1)
        change = policies(x + move) - policies(x)
        raw = torch.einsum("pnux,pnx->pnu", slope.gain, move)
        ends = torch.stack(
            [s * (raw + e) for s in (slope.low, slope.high) for e in (-slope.remainder, slope.remainder)]
        )
        out = torch.maximum(ends.amin(0) - change, change - ends.amax(0))
        worst = max(worst, float(out.max()))
    return worst


@given(seeds(), st.integers(1, 2))
def test_feedback_encloses_input_changes(seed, nu):
    policies, x, radius, g = draw_policies(seed, nu)
    slope = feedback(policies, x - radius, x + radius)
    assert bool(((slope.low >= 0) & (slope.low <= slope.high) & (slope.high <= 1)).all())
    assert bool((slope.remainder >= 0).all())
    assert excess(policies, x, radius, slope, g) <= 1e-11


def test_control_feedback_without_its_remainder_is_no_enclosure():
    policies, x, radius, g = draw_policies(3, 1)
    radius = torch.full_like(x, 0.3)
    slope = feedback(policies, x - radius, x + radius)
    bare = type(slope)(slope.gain, slope.low, slope.high, torch.zeros_like(slope.remainder))
    assert excess(policies, x, radius, slope, g) <= 1e-11
    assert excess(policies, x, radius, bare, g) > 1e-3


def test_affine_features_give_the_affine_enclosure():
    affine, _ = reference_pendulum_policies()
    affine = affine.select(torch.tensor([2, 20, 40]))
    theta = torch.cat([affine.offset.unsqueeze(-1), affine.gain], dim=-1)
    same = FeaturePolicies(theta, tuple(map(Feature, (("1", "1"), ("x", "1"), ("1", "x")))), affine.input_box)
    g = generator(0)
    centers, radius = normal(g, 50, 2), 0.05 * uniform(g, 50, 2)
    known = reference_pendulum().known
    for a, b in zip(
        closed_loop_range(known, affine, centers, radius),
        closed_loop_range(known, same, centers, radius),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-11, rtol=0)


@pytest.fixture(scope="module")
def system():
    return reference_pendulum()


@given(seed=seeds())
def test_closed_loop_range_contains_every_next_mean(system, seed):
    g = generator(seed)
    policies = FeaturePolicies(normal(g, 4, 1, 6), pendulum_features(), system.input_box)
    centers, radius = 1.5 * normal(g, 40, 2), 0.1 * uniform(g, 40, 2)
    middle, reach, u_reach = closed_loop_range(system.known, policies, centers, radius)
    for _ in range(10):
        x = (centers + radius * (2 * uniform(g, 4, 40, 2) - 1)).contiguous()
        u = policies(x)
        assert bool(((system.known(x, u) - middle).abs() <= reach).all())
        assert bool(((u - policies(centers.unsqueeze(0))).abs() <= u_reach + 1e-12).all())


def test_pendulum_coefficients_are_the_formula():
    g = generator(1)
    a, k, d, s, p, e = (normal(g, 7) for _ in range(6))
    box = Box(torch.tensor([-99.0]), torch.tensor([99.0]))
    theta = pendulum_coefficients(push=a, spring=k, damping=d, gravity=s, pump=p, level=e, frequency_sq=8.9)
    x = normal(g, 1, 11, 2)
    angle, speed = x[0].unbind(-1)
    energy = 0.5 * speed**2 + 8.9 * (1 - angle.cos())
    terms = (v.unsqueeze(-1) for v in (a, k, d, s, p, e))
    a, k, d, s, p, e = terms
    want = a - k * angle - d * speed + s * angle.sin() + p * (e - energy) * speed
    assert torch.allclose(FeaturePolicies(theta, pendulum_features(), box)(x)[..., 0], want, atol=1e-11)


@given(seeds())
def test_input_change_dominates_differences_everywhere(seed):
    g = generator(seed)
    bounded = (Feature(("1", "1")), Feature(("sin", "1")), Feature(("1", "tanh"), (1.0, 2.0)))
    policies = FeaturePolicies(0.3 * normal(g, 5, 1, 3), bounded, Box(torch.tensor([-1.0]), torch.tensor([1.0])))
    u = policies(5 * normal(g, 1, 200, 2))
    gap = (u.unsqueeze(0) - u.unsqueeze(1)).abs().amax(2)
    change = policies.input_change()
    assert bool((gap <= change + 1e-12).all()) and float(change.diagonal(dim1=0, dim2=1).abs().max()) == 0.0


def test_lipschitz_rule_of_features_equals_that_of_affine_policies():
    """Bounded features: a difference of offsets gives the same D; of gains, the vacuous one."""
    system = reference_pendulum()
    options: dict[str, Any] = {"rkhs_norm": system.rkhs_norm, "outputs": system.outputs, "noise_std": system.noise_std}
    options |= {"horizon": 30, "ceiling": 1.0}
    offset = torch.tensor([[0.0], [1e-6], [1e-5], [1e-3]], dtype=torch.float64)
    gain = torch.tensor([-2.0, -0.5], dtype=torch.float64).expand(4, 1, 2)
    affine = AffinePolicies(offset, gain, system.input_box)
    columns = torch.cat([offset.unsqueeze(-1), gain], -1)
    same = FeaturePolicies(columns, tuple(map(Feature, (("1", "1"), ("x", "1"), ("1", "x")))), system.input_box)
    a, b = (policy_distance(p, system.known, system.kernels, **options) for p in (affine, same))
    assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)
    assert 0 < float(b[0, 1]) < float(b[0, 2]) < 1 < float(b[0, 3])
    other = FeaturePolicies(columns + torch.tensor([0.0, 1e-9, 0.0]), same.features, system.input_box)
    assert float(policy_distance(same, system.known, system.kernels, others=other, **options).min()) == 29.0


def test_classes_of_other_input_boxes_are_not_compared():
    """Equal coefficients, clipped at 0.1 and at 2: their inputs differ by up to 1.9, and D was 0."""
    theta = torch.full((1, 1, 1), 5.0, dtype=torch.float64)
    narrow, wide = (FeaturePolicies(theta, (Feature(("sin", "1")),), Box([-b], [b])) for b in (0.1, 2.0))
    x = torch.tensor([[[math.pi / 2, 0.0]]], dtype=torch.float64)
    assert float((narrow(x) - wide(x)).abs()) == pytest.approx(1.9)
    with pytest.raises(ValueError, match="policies with the same input box"):
        narrow.input_change(wide)
    assert float(narrow.input_change(replace(narrow))) == 0.0


def test_a_difference_in_a_power_has_no_better_bound_than_the_input_box():
    theta = torch.tensor([[[0.1, 0.2]], [[0.1, 0.2 + 1e-9]]], dtype=torch.float64)
    policies = FeaturePolicies(theta, (Feature(("1", "1")), Feature(("1", "x"))), Box(-torch.ones(1), torch.ones(1)))
    assert policies.input_change()[0, 1, 0] == 2.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: Feature(("x", "log")),
        lambda: Feature(()),
        lambda: Feature(("x",), (math.inf,)),
        lambda: FeaturePolicies(torch.zeros(2, 1, 3), pendulum_features(), Box(-torch.ones(1), torch.ones(1))),
        lambda: FeaturePolicies(
            torch.full((2, 1, 6), math.nan), pendulum_features(), Box(-torch.ones(1), torch.ones(1))
        ),
        lambda: FeaturePolicies(
            torch.zeros(1, 1, 2), (Feature(("x",)), Feature(("x", "x"))), Box(-torch.ones(1), torch.ones(1))
        ),
    ],
)
def test_bad_features_are_refused(make):
    with pytest.raises(ValueError, match="Feature"):
        make()


def test_affine_classes_still_answer_feedback():
    policies, _ = reference_pendulum_policies()
    slope = feedback(policies.select(torch.arange(2)), torch.zeros(1, 3, 2).double(), torch.ones(1, 3, 2).double())
    assert isinstance(policies, AffinePolicies)
    assert slope.gain.shape == (2, 1, 1, 2) and float(slope.remainder.abs().max()) == 0.0


def test_scenario_tubes_contain_the_true_paths_of_feature_policies():
    """Tubes take `feedback`, so any policy class will do."""
    case = make_case("pendulum", (0, 8))
    theta = pendulum_coefficients(
        push=torch.tensor([0.2, 0.1]), spring=0.3, damping=0.2, gravity=0.4, pump=0.2, level=3.0, frequency_sq=8.9
    )
    policies = FeaturePolicies(theta, pendulum_features(), case.system.input_box)
    options: dict[str, Any] = case.task_with(horizon=8) | {"samples": 8}
    task = ScenarioTube(**options)
    noise = sample_noise(case.system.noise_std, (8, 1, 8), generator(3))
    states, _ = closed_loop(case.system.mean, policies, case.system.initial_state, noise)
    tubes = task.tubes(case.confidence, policies, noise)
    assert int(tubes.lost.min()) == 8 and bool(tubes.contains_hull(states).all())
