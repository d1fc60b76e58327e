"""Adversaries at the edge of F_n are members of it, and nothing in ball and ellipsoid goes further."""

import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import dear, seeds

from gpsafe.confidence import Constant, ConvexProgram, Mixture, members
from gpsafe.confidence.members import _Family, extremal_member, member_share, worst_member
from gpsafe.models import GP
from gpsafe.rkhs import RKHSFunction, kernels, random_function

KERNEL = kernels.rbf([0.7, 1.4], 0.5)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def learned(seed: int, noise: float, count: int = 12, scale: float = 1.0) -> GP:
    g = generator(seed)
    f = random_function(KERNEL, -torch.ones(2), torch.ones(2), norm=1.0, generator=g)
    z = 2 * torch.rand(count, 2, dtype=torch.float64, generator=g) - 1
    y = scale * f(z) + noise * torch.randn(count, dtype=torch.float64, generator=g)
    return GP.create(KERNEL, noise**2, nx=1, nu=1, noise_std=noise).condition_on(z, y.unsqueeze(-1))


def points(seed: int, count: int) -> torch.Tensor:
    return 2 * torch.rand(count, 2, dtype=torch.float64, generator=generator(seed)) - 1


def functional(seed: int, count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return points(seed, count), torch.randn(count, dtype=torch.float64, generator=generator(seed + 99))


def root(gram: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(gram)
    return (np.sqrt(values.clip(0.0)) * vectors).T


def by_cone_program(bound: Mixture, model: GP, z: torch.Tensor, weights: torch.Tensor) -> float:
    """The same maximum by cvxpy, over coefficients on the data and z (enough, by the representer theorem)."""
    assert model.inputs is not None
    centers = torch.cat([model.inputs, z])
    gram = kernels.cross(KERNEL, centers, centers).numpy() + 1e-12 * np.eye(len(centers))
    n, lam = model.num_data, float(model.regularizer[0])
    mean = np.concatenate([model.weights[:, 0].numpy(), np.zeros(len(z))])
    alpha = cp.Variable(len(centers))
    norm = root(gram)
    ellipsoid = np.vstack([gram[:n], np.sqrt(lam) * norm])
    limit = np.sqrt(lam) * float(bound.beta(model)[0])
    limits = [cp.norm(norm @ alpha) <= bound.rkhs_norm, cp.norm(ellipsoid @ (alpha - mean)) <= limit]
    problem = cp.Problem(cp.Maximize((weights.numpy() @ gram[n:]) @ alpha), limits)
    problem.solve(solver=cp.CLARABEL)
    return float(problem.value)


def test_the_share_of_a_member_weights_every_observation_by_its_own_noise():
    """max{‖f‖/B, √((f − μ)(X)ᵀ diag(w)⁻² (f − μ)(X) + λ‖f − μ‖²)/(√λ β)} for scales w, by its matrices."""
    z, scale = points(1, 6), torch.tensor([1.0, 1.25, 2.0, 1.5, 1.0, 3.0]).double()
    y = torch.randn(6, 1, dtype=torch.float64, generator=generator(2))
    model = GP.create(KERNEL, 0.04, nx=1, nu=1, noise_std=0.2).condition_on(z, y, noise_scale=scale)
    bound = Mixture(rkhs_norm=3.0, subgaussian=0.2, delta=0.1)
    f = RKHSFunction(KERNEL, points(5, 3), torch.tensor([0.5, -1.0, 0.75]).double())
    K = kernels.cross(KERNEL, z, z)
    alpha = torch.linalg.solve(K + 0.04 * torch.diag(scale.square()), y[:, 0])
    centers, both = torch.cat([f.centers, z]), torch.cat([f.weights, -alpha])
    gap = kernels.cross(KERNEL, z, centers) @ both
    form = float((gap / scale).square().sum() + 0.04 * both @ kernels.cross(KERNEL, centers, centers) @ both)
    expected = form**0.5 / (0.2 * float(bound.beta(model)[0]))
    assert expected > float(f.norm) / 3.0
    assert member_share(bound, model, f) == pytest.approx(expected, rel=1e-9)
    large = Mixture(rkhs_norm=1e-3, subgaussian=0.2, delta=0.1)
    assert member_share(large, model, f) >= float(f.norm) / 1e-3 * (1 - 1e-9)


@dear()
@given(seeds())
def test_an_extremal_member_is_in_the_ball_and_in_the_ellipsoid(seed):
    model, bound = learned(seed, 0.05), Mixture(rkhs_norm=5.0, subgaussian=0.05, delta=0.1)
    z = points(seed + 1, 50)
    f = extremal_member(bound, model, z[0], 1.0 if seed % 2 else -1.0)
    assert float(f.norm_upper) <= 5.0
    assert member_share(bound, model, f) <= 1.0
    low, high = bound.interval(model, z)
    assert bool(((low[:, 0] - 1e-9 <= f(z)) & (f(z) <= high[:, 0] + 1e-9)).all())


@dear()
@given(seeds(), st.sampled_from([0.05, 0.5]), st.sampled_from([1.2, 2.0, 6.0]))
def test_no_member_of_ball_and_ellipsoid_goes_further(seed, noise, limit):
    model, bound = learned(seed, noise), Mixture(rkhs_norm=limit, subgaussian=noise, delta=0.1)
    z, weights = functional(seed)
    f = extremal_member(bound, model, z, weights)
    assert member_share(bound, model, f) <= 1.0
    assert float(weights @ f(z)) == pytest.approx(by_cone_program(bound, model, z, weights), rel=1e-4, abs=1e-5)


def test_without_data_the_extremal_member_is_the_balls():
    model, bound = (
        GP.create(KERNEL, 0.01, nx=1, nu=1, noise_std=0.1),
        Mixture(rkhs_norm=2.0, subgaussian=0.1, delta=0.1),
    )
    f = extremal_member(bound, model, torch.zeros(2).double(), -1.0)
    assert float(f(torch.zeros(1, 2).double())) == pytest.approx(-2.0 * 0.5**0.5)
    assert member_share(bound, model, f) == pytest.approx(1.0)


def test_without_data_a_member_whose_parts_cancel_is_in_the_ball_too():
    """‖f‖ = (1 + 6e-11) B in exact arithmetic where k(z, ·) − 0.999k(z′, ·) was scaled by its norm as computed."""
    kernel = kernels.matern(1.5, [0.3, 2.0], 25.0)
    model = GP.create(kernel, 0.01, nx=1, nu=1, noise_std=0.1)
    bound = Mixture(rkhs_norm=1.0, subgaussian=0.1, delta=0.1)
    for seed in range(20):
        at = points(seed, 1)
        z, weights = torch.cat([at, at + 1e-5 * points(seed + 50, 1)]), torch.tensor([1.0, -1.0]).double()
        f = extremal_member(bound, model, z, weights)
        assert 0.99 < member_share(bound, model, f) <= 1.0


def test_the_set_of_a_convex_program_is_no_ellipsoid():
    """Members of ball and ellipsoid (of η = λ) left the program's interval by 2.0, of a width of 9, and were called members."""
    model = learned(0, 0.05, count=8).reweighted(100.0)
    assert model.targets is not None
    stated = {"rkhs_norm": 3.0, "subgaussian": 0.05, "delta": 0.1}
    program = ConvexProgram(**stated)
    with pytest.raises(ValueError, match="ellipsoid"):
        extremal_member(program, model, torch.zeros(2).double(), 1.0)
    z, weights = functional(7)
    f = extremal_member(Mixture(**stated), model, z, weights)
    mean = RKHSFunction(KERNEL, model.inputs, model.reweighted(0.01).weights[:, 0])
    for g, inside in ((f, False), (mean, True)):
        residual = g(model.inputs) - model.targets[:, 0]
        room = program.program(model, 0, model.inputs[:1]).radius_sq.sqrt()
        expected = max(g.norm_upper / 3.0, float(residual.norm() / room))
        assert member_share(program, model, g) == pytest.approx(expected, rel=1e-9) and (expected <= 1) is inside


def test_a_ball_that_does_not_meet_the_ellipsoid_is_refused():
    model = learned(3, 0.05, scale=100.0)
    with pytest.raises(ValueError, match="meets the ball of norm <= 1"):
        extremal_member(Mixture(rkhs_norm=1.0, subgaussian=0.05, delta=0.1), model, torch.zeros(2).double(), 1.0)


def test_a_bound_that_says_nothing_of_functionals_is_refused():
    bound = Constant(rkhs_norm=1.0, subgaussian=0.05, delta=0.1, value=2.0)
    with pytest.raises(ValueError, match="all linear functionals"):
        extremal_member(bound, learned(3, 0.05), torch.zeros(2).double(), 1.0)


def test_member_share_tells_what_is_outside():
    model, bound = learned(5, 0.05), Mixture(rkhs_norm=1.5, subgaussian=0.05, delta=0.1)
    f = extremal_member(bound, model, *functional(5))
    assert 0.999 < member_share(bound, model, f) <= 1.0
    assert member_share(bound, model, f.scaled_to(1.51)) > 1.0  # out of the ball
    assert member_share(bound, model, f.scaled_to(0.01)) > 1.0  # far from the data
    far = RKHSFunction(KERNEL, torch.tensor([[50.0, 0.0]]).double(), torch.tensor([1.0]).double())
    more = RKHSFunction(KERNEL, torch.cat([f.centers, far.centers]), torch.cat([f.weights, 3.0 * far.weights]))
    assert member_share(bound, model, more) > 1.0  # agrees with f wherever one looks


@pytest.mark.parametrize("seed", range(3))
def test_the_worst_member_found_is_a_member_and_worse_than_the_first(seed):
    model, bound = learned(seed, 0.1), Mixture(rkhs_norm=2.0, subgaussian=0.1, delta=0.1)
    start = extremal_member(bound, model, torch.zeros(2).double(), 1.0)

    def last_state(residual) -> torch.Tensor:
        x = torch.zeros(1, dtype=torch.float64)
        for _ in range(4):
            x = x + residual(torch.cat([x, torch.sin(3 * x)]))
        return x.sum()

    found = worst_member(bound, model, last_state, (start,))
    assert member_share(bound, model, found[0]) <= 1.0
    first, last = (float(last_state(lambda z, f=f: f(z).unsqueeze(-1))) for f in (start, found[0]))
    assert last > first + 0.01


def test_members_use_their_constraints_up_to_a_billionth_and_retreat_when_rounding_forbids(monkeypatch):
    model, bound = learned(2, 0.2), Mixture(rkhs_norm=2.0, subgaussian=0.2, delta=0.1)
    share = member_share(bound, model, extremal_member(bound, model, *functional(2)))
    assert 1 - 2e-9 < share <= 1.0
    tried: list[float] = []
    monkeypatch.setattr(members._Family, "member", lambda own, ratio, inside: tried.append(inside))
    with pytest.raises(ValueError, match="meets the ball of norm <= 2"):
        extremal_member(bound, model, *functional(2))
    assert tried == [1 - 1e-9, 1 - 1e-7, 1 - 1e-5, 1 - 1e-3]


def test_a_linear_objective_needs_one_round_and_leaves_other_outputs_alone():
    y = torch.randn(6, 2, dtype=torch.float64, generator=generator(2))
    model = GP.create(KERNEL, 0.04, nx=2, nu=0, noise_std=0.2).condition_on(points(1, 6), y)
    bound = Mixture(rkhs_norm=3.0, subgaussian=0.2, delta=0.1)
    z, weights = functional(7)
    start = tuple(extremal_member(bound, model, z, -weights, output=j) for j in range(2))
    seen: list[float] = []

    def objective(residual) -> torch.Tensor:
        value = weights @ residual(z)[:, 0]
        seen.append(value.item())
        return value

    found = worst_member(bound, model, objective, start, rounds=1)
    assert len(seen) == 2 and found[1] is start[1]
    assert seen[1] == pytest.approx(float(weights @ extremal_member(bound, model, z, weights)(z)), rel=1e-12)
    assert float(weights @ found[0](z)) == seen[1] > seen[0]


@pytest.mark.parametrize(("seed", "limit", "beta"), [(3, 6.0, 4.0), (3, 4.0, 4.0), (5, 2.9, 2.0)])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_search_sees_the_values_that_members_have(scaled, seed, limit, beta):
    """In eigenvectors of the Gram matrix, all ρ at once, against one linear system for each ρ.

    The ellipsoid alone decides, or the ball as well, or they do not meet on the line of many ρ.
    """
    g = torch.Generator().manual_seed(seed)
    z, y = torch.rand(12, 2, dtype=torch.float64, generator=g), torch.randn(12, 1, dtype=torch.float64, generator=g)
    scale = 1.0 + torch.rand(12, dtype=torch.float64, generator=g) if scaled else None
    model = GP.create(KERNEL, 0.04, nx=1, nu=1, noise_std=0.1, mode="theory").condition_on(z, y, noise_scale=scale)
    family = _Family(model, 0, z[:2] + 0.3, torch.tensor([1.0, -0.4], dtype=torch.float64), limit, beta)
    ratios = torch.logspace(-6, 6, 61, dtype=torch.float64)
    expected = torch.tensor([family.best(float(r))[0] for r in ratios], dtype=torch.float64)
    assert int(expected.isfinite().sum()) > 0
    torch.testing.assert_close(family.values()(ratios), expected, rtol=1e-8, atol=1e-8)
    assert family.best(family.search())[0] >= float(expected.max())


def test_the_share_of_a_member_is_that_of_its_output():
    """Two outputs with kernels, B, R and λ of their own: the same f is asked about each one's data."""
    pair, z = [kernels.rbf([0.5, 0.5], 1.0), kernels.rbf([1.0, 0.7], 2.0)], points(1, 6)
    y = torch.randn(6, 2, dtype=torch.float64, generator=generator(2))
    model = GP.create(pair, (0.04, 0.09), nx=2, nu=0, noise_std=0.2).condition_on(z, y)
    stated = {"rkhs_norm": (30.0, 20.0), "subgaussian": (0.2, 0.3), "delta": 0.1}
    for j in range(2):
        f = RKHSFunction(pair[j], points(5, 3), torch.tensor([0.5, -1.0, 0.75]).double())
        program = ConvexProgram(**stated)
        residual = float((f(z) - y[:, j]).norm() / program.program(model, j, z[:1]).radius_sq.sqrt())
        assert residual > f.norm_upper / stated["rkhs_norm"][j]
        assert member_share(program, model, f, output=j) == pytest.approx(residual, rel=1e-9)
        mixture = Mixture(**stated)
        K, lam = kernels.cross(pair[j], z, z), (0.04, 0.09)[j]
        alpha = torch.linalg.solve(K + lam * torch.eye(6).double(), y[:, j])
        centers, both = torch.cat([f.centers, z]), torch.cat([f.weights, -alpha])
        seen = kernels.cross(pair[j], z, centers) @ both
        form = float(seen.square().sum() + lam * both @ kernels.cross(pair[j], centers, centers) @ both)
        exact = form**0.5 / (lam**0.5 * float(mixture.beta(model)[j]))
        assert member_share(mixture, model, f, output=j) == pytest.approx(exact, rel=1e-9)


def test_what_is_no_member_at_first_is_none_at_the_end():
    """An objective that no member reaches would otherwise be said to be reached by one."""
    model, bound = learned(1, 0.1), Mixture(rkhs_norm=2.0, subgaussian=0.1, delta=0.1)
    z = torch.zeros(1, 2, dtype=torch.float64)
    member, stranger = extremal_member(bound, model, z, 1.0), RKHSFunction(KERNEL, z, torch.tensor([50.0]).double())
    assert member_share(bound, model, stranger) > 1.0
    for start in ((stranger,), (), (member, member)):
        with pytest.raises(ValueError, match=r"worst_member: expected 1 members"):
            worst_member(bound, model, lambda f: f(z).sum(), start)
    with pytest.raises(ValueError, match="with a value"):
        worst_member(bound, model, lambda f: f(z).sum() * math.nan, (member,))


@pytest.mark.parametrize(
    ("z", "sign", "output", "named"),
    [
        ([0.0, math.inf], 1.0, 0, "finite z"),
        ([0.0, 0.0, 0.0], 1.0, 0, "z of shape"),
        ([0.0, 0.0], math.nan, 0, "finite sign"),
        ([0.0, 0.0], 1.0, 1, "an output in"),
        ([0.0, 0.0], 1.0, -1, "output"),
    ],
)
def test_a_functional_that_is_none_is_named(z, sign, output, named):
    model, bound = learned(1, 0.1), Mixture(rkhs_norm=2.0, subgaussian=0.1, delta=0.1)
    with pytest.raises(ValueError, match=rf"extremal_member: expected .*{named}"):
        extremal_member(bound, model, torch.tensor(z, dtype=torch.float64), sign, output=output)
