"""Every kernel that a GP takes, with every bound that claims something: sound against extremal members, or refused by name.

A kernel family enters by `strategies.ALL_KERNELS` (every builder of `gpsafe.rkhs.kernels` must have one), a confidence bound by
`BOUNDS`, a cost bound by being a class in `gpsafe.cost` whose `sound` is True; each is then tried with each.
"""

import functools
import importlib
import inspect
import math
import pkgutil
import re
from dataclasses import replace

import gpytorch
import pytest
import torch
from gpytorch.kernels import Kernel
from strategies import ALL_KERNELS, CLOSED_KERNELS, make_kernel

import gpsafe.cost
from gpsafe.confidence import BOUNDS, ConfidenceSet, ConvexProgram, Mixture, make_bound
from gpsafe.confidence.convex_program import BallProgram
from gpsafe.confidence.functionals import functional_beta
from gpsafe.confidence.members import extremal_member
from gpsafe.cost.anchor_grid import AnchorGrid
from gpsafe.cost.enclosure import Enclosure, enclose
from gpsafe.cost.gaussian_tube import GaussianTube
from gpsafe.cost.grid import Grid
from gpsafe.cost.local_affine import Displacements, LocalAffine
from gpsafe.cost.monte_carlo import mean_lower, mean_upper
from gpsafe.cost.plan_tube import Plans, PlanTube
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.cost.scenario_tube import ScenarioTube
from gpsafe.cost.session import DPSession
from gpsafe.cost.total_variation import TotalVariation
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.policies.rollout import closed_loop
from gpsafe.rkhs import RKHSFunction, kernels
from gpsafe.safety.safe_set import policy_distance
from gpsafe.sets import Box
from gpsafe.sets.zonotope import Zonotope
from gpsafe.systems.base import IndicatorCost, sample_noise
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.task import Task
from gpsafe.tube import propagate
from gpsafe.tube.gp import GPTube

NORM, NOISE, HORIZON, START, LIMIT = 0.3, 0.02, 6, 0.6, 1.2
STATIONARY = tuple(n for n in CLOSED_KERNELS if kernels.stationary(make_kernel(n, 2)) is not None)
SMOOTH = tuple(n for n in STATIONARY if n != "matern-1/2")
KNOWN = AffineKnown(vector(0.9).reshape(1, 1), vector(0.3).reshape(1, 1), vector(0.0))
INPUTS, COST = Box(vector(-1.0), vector(1.0)), IndicatorCost(vector(1.0).reshape(1, 1), vector(LIMIT))
POLICIES = AffinePolicies(vector(0.0, 0.1, 0.2).reshape(3, 1), vector(0.0, 0.5, -0.5).reshape(3, 1, 1), INPUTS)
TASK = Task(vector(START), HORIZON, COST, 0.5, vector(NOISE))
PATHS = sample_noise(vector(NOISE), (HORIZON, 1, 1000), torch.Generator().manual_seed(5))

every_family = pytest.mark.parametrize("family", ALL_KERNELS)
informed_or_not = pytest.mark.parametrize("count", [0, 15])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs_along(count: int, seed: int = 0) -> torch.Tensor:
    """Points z = (x, u) where the policies go, (count, 2)."""
    x = START - 0.6 + 1.2 * torch.rand(count, 1, dtype=torch.float64, generator=generator(seed))
    u = POLICIES(x.unsqueeze(0))[torch.arange(count) % 3, torch.arange(count)]
    return torch.cat([x, u], dim=-1)


@functools.cache
def model_of(family: str, count: int, regularizer: float = NOISE**2) -> GP:
    """Residual x⁺ − known learned with the family's kernel, from `count` noisy values of a function of norm NORM/3."""
    kernel = make_kernel(family, 2)
    model = GP.create(kernel, regularizer, nx=1, nu=1, noise_std=NOISE, prior=KNOWN, mode="theory")
    if not count:
        return model
    z = inputs_along(count)
    f = RKHSFunction(model.kernels[0], inputs_along(4, 1), vector(1.0, -0.6, 0.8, -0.3)).scaled_to(NORM / 3)
    noise = 0.2 * NOISE * torch.randn(count, dtype=torch.float64, generator=generator(2))  # the mean stays in the ball
    return model.condition_on(z, (f(z) + noise).unsqueeze(-1))


def bound_of(name: str = "mixture", **options):
    return make_bound(name, rkhs_norm=NORM, subgaussian=NOISE, delta=0.1, **options)


@functools.cache
def confidence_of(family: str, count: int) -> ConfidenceSet:
    return ConfidenceSet(bound_of()).update(model_of(family, count))


@functools.cache
def members_of(family: str, count: int) -> list[RKHSFunction]:
    """Extremal members of F_n: they touch l or h at points where the policies go."""
    found, spots = [], (vector(START, 0.1), vector(1.0, 0.5), vector(0.9, -0.3), vector(0.1, 0.4))
    for spot in spots:
        for sign in (1.0, -1.0):
            found.append(extremal_member(bound_of(), model_of(family, count), spot, sign))
    return found


def mean_of(f: RKHSFunction):
    return lambda x, u: KNOWN(x, u) + f(torch.cat([x, u], dim=-1)).unsqueeze(-1)


@functools.cache
def true_cost(family: str, count: int) -> torch.Tensor:
    """A lower limit of J_c for every member and policy, but with probability 1e-9 each, (M, P)."""
    states = [closed_loop(mean_of(f), POLICIES, vector(START), PATHS)[0] for f in members_of(family, count)]
    return mean_lower(COST(torch.stack(states)[..., :-1, :]).sum(-1), HORIZON, 1e-9)


def claim(family: str, compute, *, covered: tuple[str, ...]):
    """What `compute` claims; None if it refuses the family in words that name its kernel, which `covered` ones may not be."""
    try:
        return compute()
    except ValueError as caught:
        error = str(caught)
    assert family not in covered, error
    names = set(re.findall(r"\w*Kernel", kernels.describe(make_kernel(family, 2)))) - {"ScaleKernel"}
    assert all(name in error for name in names), f"{family}: a refusal without the kernel's name: {error}"
    return None


# ------------------------------------------------------------------------------------ registration
def test_every_kernel_builder_has_a_family():
    hints = {
        name: inspect.signature(f).return_annotation for name, f in inspect.getmembers(kernels, inspect.isfunction)
    }
    builders = {name for name, hint in hints.items() if hint in (Kernel, "Kernel") and name[0] != "_"}
    builders -= {"freeze", "trainable", "as_fitted"}
    assert all(any(family.startswith(name) for family in ALL_KERNELS) for name in builders), builders


COST_BOUNDS = {
    RobustDP: lambda: RobustDP(Grid(Box(vector(-0.8), vector(2.4)), (160,)), TASK),
    TotalVariation: lambda: TotalVariation(task=TASK, seed=3, samples=64),
    ScenarioTube: lambda: ScenarioTube(task=TASK, seed=3, samples=64, anchors=4),
    GaussianTube: lambda: GaussianTube(task=TASK),
}
COVERED = {  # families that a bound must not refuse
    RobustDP: CLOSED_KERNELS,
    TotalVariation: ALL_KERNELS,
    ScenarioTube: STATIONARY,
    GaussianTube: STATIONARY,
}


def test_every_sound_cost_bound_is_tried():
    found = set()
    for info in pkgutil.iter_modules(gpsafe.cost.__path__, "gpsafe.cost."):
        for _, value in inspect.getmembers(importlib.import_module(info.name), inspect.isclass):
            sound = getattr(value, "__dataclass_fields__", {}).get("sound")
            if sound is not None and sound.default is True:
                found.add(value)
    assert found == set(COST_BOUNDS)


# ---------------------------------------------------------------------------- confidence intervals
INTERVALS = {  # options, and a regulariser that the theorem covers
    "chowdhury-gopalan": ({"max_data": 20}, 1.1),
    "actsafe": ({"max_data": 20}, 1.1),
    "fiedler": ({}, 2.0),
    "lederer": ({"lower": (-2.0, -2.0), "upper": (3.0, 2.0)}, NOISE**2),
}


def program_member(bound: ConvexProgram, model: GP, z: torch.Tensor, sign: float) -> RKHSFunction:
    """f = μ ± s k_n(z, ·) with the largest s for which ‖f(X) − y‖ ≤ R_n and ‖f‖ ≤ B: at the edge of the program's set."""
    kernel, radius_sq = model.kernels[0], float(bound.program(model, 0, z.reshape(1, -1)).radius_sq)
    centers, n = torch.cat([model.inputs, z.reshape(1, -1)]), model.num_data
    gram = kernels.cross(kernel, centers, centers)
    section = torch.linalg.solve(gram[:n, :n] + model.regularizer * torch.eye(n), gram[:n, n])
    start, along = torch.cat([model.weights[:, 0], vector(0.0)]), torch.cat([-section, vector(1.0)])
    values, slopes = gram[:n] @ start - model.targets[:, 0], gram[:n] @ along
    most = []
    for a, b, c in (
        (slopes @ slopes, sign * slopes @ values, values @ values - radius_sq),
        (along @ gram @ along, sign * along @ gram @ start, start @ gram @ start - NORM**2),
    ):
        assert float(c) <= 0.0
        most.append(float((-b + (b * b - a * c).sqrt()) / a))
    weights = start + sign * (1 - 1e-6) * min(most) * along
    weights = weights * min(
        1.0, (1 - 1e-9) * NORM / RKHSFunction(kernel, centers, weights).norm_upper
    )  # of singular K: rounded
    f = RKHSFunction(kernel, centers, weights)
    assert float((f(model.inputs) - model.targets[:, 0]).square().sum()) <= radius_sq and f.norm_upper <= NORM
    return f


FOREIGN = {
    "rational quadratic": (gpytorch.kernels.RQKernel, True),
    "constant": (gpytorch.kernels.ConstantKernel, True),
    "square": (lambda: gpytorch.kernels.PolynomialKernel(power=2), True),
    "a sum of these": (lambda: gpytorch.kernels.RQKernel() + gpytorch.kernels.ConstantKernel(), True),
    "17th power": (lambda: gpytorch.kernels.PolynomialKernel(power=17), False),
    "cosine": (lambda: gpytorch.kernels.CosineKernel(active_dims=[0]), False),
    "spectral mixture": (lambda: gpytorch.kernels.SpectralMixtureKernel(num_mixtures=2, ard_num_dims=2), False),
    "a multiple": (lambda: gpytorch.kernels.ScaleKernel(gpytorch.kernels.CosineKernel(active_dims=[0])), False),
    "a product": (lambda: gpytorch.kernels.RQKernel() * gpytorch.kernels.CosineKernel(active_dims=[0]), False),
}


@pytest.mark.parametrize("name", sorted(FOREIGN))
@pytest.mark.parametrize("bound", sorted(n for n in BOUNDS if BOUNDS[n].sound))
def test_kernels_whose_rounding_is_not_known_are_refused(bound, name):
    make, known = FOREIGN[name]
    options, regularizer = INTERVALS.get(bound, ({}, NOISE**2))
    model = GP.create(kernels.freeze(make()), regularizer, nx=1, nu=1, noise_std=NOISE, mode="theory")
    assert kernels.rounding_known(model.kernels[0]) == known
    told = bound_of(bound, **options).refusal(model)
    if known:
        assert told is None or BOUNDS[bound] is not Mixture
    else:
        assert told is not None and (BOUNDS[bound] is not Mixture or "known up to rounding" in told)


@pytest.mark.parametrize("name", sorted(n for n in BOUNDS if BOUNDS[n].sound))
@every_family
def test_members_lie_in_the_interval_of_every_confidence_bound(name, family):
    options, regularizer = INTERVALS.get(name, ({}, NOISE**2))
    bound, probes = bound_of(name, **options), inputs_along(20, 7)
    for count in (0, 15):
        model = model_of(family, count, regularizer)
        found = claim(
            family,
            lambda: bound.interval(model, probes),  # noqa: B023
            covered=ALL_KERNELS if BOUNDS[name].frequentist else ("rbf", "rbf-isotropic"),
        )
        if found is None:
            continue
        low, high = (side[:, 0] for side in found)
        if not BOUNDS[name].frequentist:  # Bayesian: draws from the posterior, whatever the data
            mean, covariance = model.posterior(probes)[0][:, 0], model.covariance(probes)[0]
            root = torch.linalg.cholesky(covariance + 1e-12 * torch.eye(20))
            values = [mean + root @ torch.randn(20, dtype=torch.float64, generator=generator(s)) for s in range(5)]
        elif functional_beta(bound, model) is None:  # not below the mixture: its members belong
            values = [f(probes) for f in members_of(family, count)] if regularizer == NOISE**2 else []
            assert values
        elif isinstance(bound, BallProgram) and count:
            values = [program_member(bound, model, z, s)(probes) for z in probes[:3] for s in (1.0, -1.0)]
        else:
            values = [extremal_member(bound, model, z, s)(probes) for z in probes[:3] for s in (1.0, -1.0)]
        assert all(bool(((low <= v + 1e-12) & (v <= high + 1e-12)).all()) for v in values)


# ------------------------------------------------------------------------------------- cost bounds
@pytest.mark.parametrize("bound", COST_BOUNDS, ids=lambda b: b.__name__)
@informed_or_not
@every_family
def test_a_cost_bound_is_above_the_cost_of_every_member_or_refuses_the_kernel(bound, family, count):
    confidence = confidence_of(family, count)
    found = claim(family, lambda: COST_BOUNDS[bound]().evaluate(confidence, POLICIES), covered=COVERED[bound])
    if found is not None:
        assert found.sound_upper
        assert bool((found.upper >= true_cost(family, count)).all())


def test_the_case_has_teeth():
    """Members exceed the limit under some policies only, and bounds certify something."""
    worst = true_cost("rbf", 0).amax(0)
    assert float(worst.max()) > 1.0 > 0.1 > float(true_cost("linear", 15).amax(0).min())
    for bound in COST_BOUNDS:
        upper = COST_BOUNDS[bound]().evaluate(confidence_of("rbf", 15), POLICIES).upper
        assert float(upper.min()) < HORIZON - 0.2, bound


# -------------------------------------------------------------------- one step: cells, anchors, plans
def boxes_hold(enclosure: Enclosure, x: torch.Tensor, families: list[RKHSFunction]) -> bool:
    """Whether the enclosure's boxes contain f(x, π(x)) at points x (K, N, 1) of the cells."""
    low, high = enclosure.boxes()
    parts = [part.expand(POLICIES.num, *part.shape) for part in x]
    means = [mean_of(f)(part, POLICIES(part)) for f in families for part in parts]
    return all(bool(((low <= m) & (m <= high)).all()) for m in means)


def cells(count: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Centres and radii (N, 1) of cells of growing width, and their lower ends, middles and upper ends (3, N, 1)."""
    centers = torch.linspace(-0.3, 2.0, count, dtype=torch.float64).unsqueeze(-1)
    radius = torch.logspace(-8, -0.7, count, dtype=torch.float64).unsqueeze(-1)
    return centers, radius, torch.stack([centers - radius, centers, centers + radius])


def at_the_cap(family: str, x: torch.Tensor) -> list[RKHSFunction]:
    """±B k(z, ·)/√k(z, z), which attain B√k at z = (x, π(x)) for the states x (N, 1)."""
    kernel = make_kernel(family, 2)
    points = torch.cat([x.expand(3, *x.shape), POLICIES(x.unsqueeze(0))], dim=-1).reshape(-1, 2)
    points = points[kernels.diagonal(kernel, points) > 1e-12]
    return [RKHSFunction(kernel, z.unsqueeze(0), vector(s)).scaled_to(NORM) for z in points[::5] for s in (1.0, -1.0)]


@every_family
def test_boxes_over_cells_contain_every_member(family):
    centers, radius, x = cells()
    for count, members in ((0, at_the_cap(family, x[2])), (15, members_of(family, 15))):
        confidence = confidence_of(family, count)
        found = claim(family, lambda: enclose(centers, radius, confidence, POLICIES), covered=CLOSED_KERNELS)  # noqa: B023
        if found is not None:
            assert boxes_hold(found.refine(confidence), x, members)


@pytest.mark.parametrize("family", ["linear", "additive"])
def test_control_the_cap_of_one_cell_and_one_policy_is_caught(family):
    centers, radius, x = cells()
    found = enclose(centers, radius, confidence_of(family, 0), POLICIES)
    wrong = replace(found, cap=found.cap[:1, :1].expand_as(found.cap))
    assert not boxes_hold(wrong, x, at_the_cap(family, x[2]))


@every_family
def test_exploration_is_bounded_or_refuses_the_kernel(family):
    confidence, dp = confidence_of(family, 15), COST_BOUNDS[RobustDP]()
    bounded = tuple(n for n in CLOSED_KERNELS if math.isfinite(kernels.variance_everywhere(make_kernel(n, 2))))
    index = torch.arange(POLICIES.num)
    value = claim(family, lambda: DPSession.start(dp, confidence, POLICIES).exploration(index), covered=bounded)
    if value is None:
        return
    for f in members_of(family, 15):
        states, inputs = closed_loop(mean_of(f), POLICIES, vector(START), PATHS)
        std = confidence.model.posterior(torch.cat([states[..., :-1, :], inputs], dim=-1))[1].norm(dim=-1).sum(-1)
        assert bool((value >= std.mean(-1) - 5 * std.std(-1) / PATHS.shape[2] ** 0.5).all())


def displacements(seed: int, scale: float) -> tuple[Displacements, torch.Tensor]:
    """Sets of z − a of one size, (4,), and 40 points of each, (4, 40, 2)."""
    g = generator(seed)
    offset, error = (scale * torch.rand(4, 2, dtype=torch.float64, generator=g) for _ in range(2))
    rays = scale * torch.randn(4, 2, 3, dtype=torch.float64, generator=g)
    xi = 2 * torch.rand(4, 40, 3, dtype=torch.float64, generator=g) - 1
    noise = 2 * torch.rand(4, 40, 2, dtype=torch.float64, generator=g) - 1
    return Displacements(offset, rays, error), (xi, offset.unsqueeze(1) + xi @ rays.mT + noise * error.unsqueeze(1))


@informed_or_not
@every_family
def test_affine_ranges_contain_every_member_and_stay_within_the_ball(family, count):
    confidence, anchors = confidence_of(family, count), inputs_along(4, 3)
    local = claim(family, lambda: LocalAffine.at(confidence, anchors), covered=STATIONARY)
    if local is None:
        return
    for scale in (1e-6, 1e-2, 0.2, 1.0, 5.0):
        cross, (xi, moves) = displacements(1, scale)
        found = local.range_outer(cross)
        for f in (*members_of(family, count)[:4], *(at_the_cap(family, anchors[:, :1]) if count == 0 else ())):
            rest = f(anchors.unsqueeze(1) + moves) - found.value - (xi @ found.linear.mT).squeeze(-1)
            assert bool((rest.abs() <= found.error + 1e-12).all())


@every_family
def test_plans_keep_their_margin_under_every_member_or_the_kernel_is_refused(family):
    confidence, noise = confidence_of(family, 15), vector(3 * NOISE)
    options = {"fallbacks": POLICIES, "task": TASK, "noise_radius": noise, "input_box": INPUTS}
    grid = AnchorGrid.create(Box(vector(-0.5, -1.0), vector(1.5, 1.0)), vector(0.25, 0.25))
    plans = Plans.of_fallbacks(torch.arange(3), 1, 1)
    for anchors in (None, grid):
        judge = PlanTube(**options, anchors=anchors)
        found = claim(
            family,
            lambda: judge.refine(confidence).verify(  # noqa: B023
                Zonotope.point(vector(START).expand(3, 1)), plans, HORIZON
            ),
            covered=STATIONARY,
        )
        if found is None:
            continue
        steps = int(found.steps.min())
        for f in members_of(family, 15):
            for sign in (1.0, -1.0):
                push = (sign * noise).expand(steps, 1, 1, 1)
                states, _ = closed_loop(mean_of(f), POLICIES, vector(START), push)
                assert bool((LIMIT - states[..., 0].amax((1, 2)) >= found.margin - 1e-9).all())


@every_family
def test_ellipsoidal_tubes_contain_every_member_or_the_kernel_is_refused(family):
    gain, plan = vector(-0.5).reshape(1, 1), vector(0.2, 0.1, 0.0, 0.1).reshape(4, 1)
    tube = claim(
        family,
        lambda: propagate(GPTube(confidence_of(family, 15), 4, 0.1), vector(START), plan, gain),
        covered=STATIONARY,
    )
    if tube is None:
        return
    radius = tube.factor[0, :, 0, 0].abs()
    for f in members_of(family, 15):
        x = vector(START)
        for k in range(4):
            x = mean_of(f)(x, plan[k] + gain[0] * (x - tube.reference[k]))  # noise 0 is in every noise ellipsoid
            assert float((x - tube.center[0, k + 1]).abs()) <= float(radius[k + 1]) * (1 + 1e-9)


@every_family
def test_policy_distance_is_above_the_difference_of_costs_or_the_kernel_is_refused(family):
    noise = {"noise_std": vector(NOISE), "horizon": HORIZON, "ceiling": 1.0}
    distance = claim(
        family,
        lambda: policy_distance(
            POLICIES, KNOWN, [make_kernel(family, 2)], rkhs_norm=vector(NORM), outputs=(0,), **noise
        ),
        covered=CLOSED_KERNELS,
    )
    if distance is None:
        return
    for f in at_the_cap(family, vector(START).reshape(1, 1)):
        states, _ = closed_loop(mean_of(f), POLICIES, vector(START), PATHS)
        costs = COST(states[..., :-1, :]).sum(-1)
        low, high = mean_lower(costs, HORIZON, 1e-9), mean_upper(costs, HORIZON, 1e-9)
        assert bool((distance >= low.unsqueeze(-1) - high).all())


# --------------------------------------------------------------------------- several outputs at once
@pytest.mark.parametrize("pair", [("rbf", "matern-1/2"), ("rbf-restricted", "linear"), ("additive", "matern-3/2")])
def test_different_kernels_per_output_are_bounded_each_by_its_own(pair):
    """x ∈ R², two residuals of norms B_1 ≠ B_2: boxes of a coarse program contain the members of both balls."""
    given, norms = [make_kernel(name, 3) for name in pair], (0.2, 0.5)
    known = AffineKnown(0.9 * torch.eye(2, dtype=torch.float64), vector(0.1, 0.3).reshape(2, 1), vector(0.0, 0.0))
    model = GP.create(given, NOISE**2, nx=2, nu=1, noise_std=NOISE, prior=known, mode="theory")
    confidence = ConfidenceSet(Mixture(rkhs_norm=norms, subgaussian=NOISE, delta=0.1)).update(model)
    policies = AffinePolicies(vector(0.0, 0.2).reshape(2, 1), vector(0.5, 0.0, 0.0, -0.5).reshape(2, 1, 2), INPUTS)
    centers = Box(vector(-2.0, -2.0), vector(2.0, 2.0)).sample(20, generator(0))
    radius = 0.1 * torch.rand(20, 2, dtype=torch.float64, generator=generator(1))
    low, high = enclose(centers, radius, confidence, policies).refine(confidence).boxes()
    x = (centers + radius).expand(2, -1, -1)
    u = policies(x)
    z = torch.cat([x, u], dim=-1)
    for sign in (1.0, -1.0):
        for j, kernel in enumerate(model.kernels):
            for spot in z.reshape(-1, 3)[::7]:
                f = RKHSFunction(kernel, spot.unsqueeze(0), vector(sign)).scaled_to(norms[j])
                value = known(x, u)[..., j] + f(z)
                assert bool(((low[..., j] <= value) & (value <= high[..., j])).all())
