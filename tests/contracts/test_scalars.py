"""Numbers, masks and indices that a certificate depends on mean what is written, or are refused in the project's words.

A Boolean is no number, a list no scalar, NaN no tolerance, and a whole number that happens to be a float no index.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gpytorch
import numpy as np
import pytest
import torch
from cost_cases import make_case

from gpsafe.confidence import ConfidenceSet, Mixture, info_gain
from gpsafe.cost import (
    CostToGo,
    GaussianTube,
    Grid,
    Hallucinated,
    PlanTube,
    RobustDP,
    Sampled,
    ScenarioTube,
    drift,
    monte_carlo,
)
from gpsafe.cost.enclosure import Enclosure
from gpsafe.cost.pruned import PrunedSession
from gpsafe.cost.scenario_tube import Tubes
from gpsafe.linalg import vector
from gpsafe.models import GP, Ensemble, from_gpytorch
from gpsafe.models.sparse_gp import SparseGP
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import kernels
from gpsafe.safety import BudgetFilter, SafeParameters, SafePolicySet, noise_radius, policy_distance, reachable
from gpsafe.safety.safe_set import PolicyGap, through
from gpsafe.sets import Box, Ellipsoid, Polytope, Zonotope
from gpsafe.systems import AffineKnown
from gpsafe.systems.base import IndicatorCost
from gpsafe.systems.task import Task
from gpsafe.tube import EnsembleTube, LinearTube, SampledTube, chi_square_radius, sampled_level
from gpsafe.tube.core import propagate

EYE = torch.eye(2).double()
BALL, SQUARE = Ellipsoid(vector(0.0, 0.0), EYE), Polytope.of_box(Box(vector(0.0, 0.0), vector(1.0, 1.0)))
ORIGIN, FAR = torch.zeros(1, 2).double(), torch.full((1, 2), 5.0).double()
KERNEL = kernels.rbf([1.0, 1.0])
MODEL = GP.create(KERNEL, 0.01, nx=1, nu=1, noise_std=0.1)
SET = ConfidenceSet(Mixture(rkhs_norm=1.0, subgaussian=0.1, delta=0.1)).update(MODEL)
POLICIES = AffinePolicies(
    torch.tensor([[0.0], [0.5]]).double(), torch.zeros(2, 1, 1).double(), Box(vector(-1.0), vector(1.0))
)
KNOWN = AffineKnown(EYE[:1, :1], EYE[:1, :1], vector(0.0))
ENSEMBLE = Ensemble.create(nx=1, nu=1, members=2, generator=torch.Generator().manual_seed(0))
PLANT = AffineKnown(0.5 * EYE[:1, :1], EYE[:1, :1], vector(0.0))
TUBE = propagate(LinearTube(PLANT, vector(0.1)), vector(0.0), torch.zeros(3, 1).double(), torch.zeros(1, 1).double())
TASK = Task.of(make_case("1d", (0,)).system)


def distance(**changes: Any) -> torch.Tensor:
    given = {
        "rkhs_norm": vector(1.0), "outputs": (0,), "noise_std": vector(0.1), "horizon": 5, "ceiling": 1.0, **changes
    }  # fmt: skip
    return policy_distance(POLICIES, KNOWN, (KERNEL,), **given)


TOLERANCES: dict[str, Callable[[Any], object]] = {
    "Ellipsoid.contains": lambda v: BALL.contains(FAR, tol=v),
    "Ellipsoid.gauge": lambda v: BALL.gauge(FAR, tol=v),
    "Ellipsoid.inside": lambda v: BALL.inside(BALL, tol=v),
    "Polytope.contains": lambda v: SQUARE.contains(FAR, tol=v),
    "ConfidenceSet.empty": lambda v: SET.empty(ORIGIN, tol=v),
    "ConfidenceSet.falsified": lambda v: SET.falsified(ORIGIN, tol=v),
    "ConfidenceSet.contains": lambda v: SET.contains(lambda z: z[..., :1], ORIGIN, tol=v),
    "Enclosure.empty": lambda v: Enclosure.empty(SimpleNamespace(low=ORIGIN, high=ORIGIN, cap=ORIGIN), tol=v),  # type: ignore[arg-type]
    "Tubes.contains_hull": lambda v: Tubes((Zonotope.point(ORIGIN[None]),), torch.ones(1, 1)).contains_hull(
        ORIGIN[None, None], tol=v
    ),
}
LEVELS: dict[str, Callable[[Any], object]] = {
    "ScenarioTube give_up": lambda v: ScenarioTube(task=TASK, seed=0, give_up=v),
    "GaussianTube give_up": lambda v: GaussianTube(task=TASK, give_up=v),
}
POSITIVE: dict[str, Callable[[Any], object]] = {
    "ScenarioTube limit": lambda v: ScenarioTube(task=TASK, seed=0, limit=v),
    "GaussianTube width": lambda v: GaussianTube(task=TASK, width=v),
    "GaussianTube limit": lambda v: GaussianTube(task=TASK, limit=v),
    "EnsembleTube radius": lambda v: EnsembleTube(ENSEMBLE, "sound", v),
    "EnsembleTube.sound aleatoric": lambda v: EnsembleTube.sound(ENSEMBLE, steps=3, delta=0.1, aleatoric=v),
    "mean_upper ceiling": lambda v: monte_carlo.mean_upper(torch.zeros(5), v, 0.1),
    "dominating_mean_upper ceiling": lambda v: monte_carlo.dominating_mean_upper(torch.zeros(5), v, 0.1),
    "drift_gap ceiling": lambda v: drift.drift_gap(vector(0.1, 0.1), v),
    "drifted ceiling": lambda v: drift.drifted(vector(0.1), 0.1, v),
    "PolicyGap ceiling": lambda v: PolicyGap(ORIGIN, 5, v),
    "policy_distance ceiling": lambda v: distance(ceiling=v),
    "gram_info_gain regularizer": lambda v: info_gain.gram_info_gain(EYE, v),
    "linear_bound max_variance": lambda v: info_gain.linear_bound(2, 5, v, 0.1),
    "linear_bound regularizer": lambda v: info_gain.linear_bound(2, 5, 1.0, v),
}
NONNEGATIVE: dict[str, Callable[[Any], object]] = {
    "EnsembleTube.sound epistemic": lambda v: EnsembleTube.sound(ENSEMBLE, steps=3, delta=0.1, epistemic=v),
    "SafePolicySet budget": lambda v: SafePolicySet.initial(3, [0], budget=v),
    "SafeParameters budget": lambda v: SafeParameters.initial(ORIGIN, budget=v),
    "reachable epsilon": lambda v: reachable([0], vector(0.1, 0.1), 0 * EYE, budget=0.2, epsilon=v),
    "reachable budget": lambda v: reachable([0], vector(0.1, 0.1), 0 * EYE, budget=v, epsilon=0.0),
}
WHOLE: dict[str, Callable[[Any], object]] = {
    "ConfidenceSet.bounds since": lambda v: SET.bounds(ORIGIN, since=v),
    "chi_square_radius dim": lambda v: chi_square_radius(v, 0.1, 3),
    "Tube.at": TUBE.at,
    "SafePolicySet.expand episode": lambda v: SafePolicySet.initial(3, [0], budget=0.2).expand(
        vector(0.1, 0.1, 0.1), episode=v, bound="b"
    ),
    "SafeParameters.add episode": lambda v: SafeParameters.initial(ORIGIN, budget=0.2).add(
        ORIGIN, vector(0.1), episode=v, bound="b", rule="bound"
    ),
    "reachable rounds": lambda v: reachable([0], vector(0.1, 0.1), 0 * EYE, budget=0.2, epsilon=0.0, rounds=v),
    "PolicyGap horizon": lambda v: PolicyGap(ORIGIN, v, 1.0),
    "policy_distance horizon": lambda v: distance(horizon=v),
}
CASE = make_case("1d", (0,))
PLANNED = Task(vector(0.0), 3, IndicatorCost(EYE[:1, :1], vector(1.0)), 1.0, vector(0.1))
COUNTS: dict[str, Callable[[Any], object]] = {
    **{
        f"ScenarioTube {name}": lambda v, name=name: ScenarioTube(task=TASK, **{"seed": 0, name: v})
        for name in ("anchors", "order", "chunk", "pieces", "pilot", "samples", "calls")
    },
    "GaussianTube order": lambda v: GaussianTube(task=TASK, order=v),
    "PlanTube order": lambda v: PlanTube(
        fallbacks=POLICIES, task=PLANNED, noise_radius=vector(0.1), input_box=POLICIES.input_box, order=v
    ),
    "Hallucinated search_paths": lambda v: Hallucinated(task=TASK, seed=0, search_paths=v),
    "Sampled draws": lambda v: Sampled(task=TASK, seed=0, draws=v),
    "Sampled features": lambda v: Sampled(task=TASK, seed=0, features=v),
    "PrunedSession batch": lambda v: PrunedSession(
        RobustDP(Grid(CASE.system.state_box, (9,)), TASK), CASE.confidence, CASE.policies, torch.Generator(), batch=v
    ),
    "Grid cells": lambda v: Grid(CASE.system.state_box, (v,)),
    "Grid split": lambda v: Grid(CASE.system.state_box, (9,), (v,)),
    "stage_delta stage": lambda v: monte_carlo.stage_delta(0.1, v),
    "stage_delta calls": lambda v: monte_carlo.stage_delta(0.1, 1, calls=v),
    "kl_upper trials": lambda v: monte_carlo.kl_upper(vector(0.1), v, 0.1),
    "EnsembleTube cells": lambda v: EnsembleTube(ENSEMBLE, "sound", 1.0, cells=v),
    "EnsembleTube.sound steps": lambda v: EnsembleTube.sound(ENSEMBLE, steps=v, delta=0.1),
    "chi_square_radius steps": lambda v: chi_square_radius(2, 0.1, v),
    "SampledTube samples": lambda v: SampledTube(MODEL, v, torch.Generator(), 3, 0.1),
    "sampled_level samples": lambda v: sampled_level(v, 0.1),
    "noise_radius steps": lambda v: noise_radius(vector(0.1), steps=v, delta=0.1),
    "linear_bound dim": lambda v: info_gain.linear_bound(v, 5, 1.0, 0.1),
    "linear_bound count": lambda v: info_gain.linear_bound(2, v, 1.0, 0.1),
}
SHARES: dict[str, Callable[[Any], object]] = {
    "ScenarioTube delta": lambda v: ScenarioTube(task=TASK, seed=0, delta=v),
    "stage_delta": lambda v: monte_carlo.stage_delta(v, 1),
    "kl_upper": lambda v: monte_carlo.kl_upper(vector(0.1), 5, v),
    "mean_upper": lambda v: monte_carlo.mean_upper(torch.zeros(5), 1.0, v),
    "chi_square_radius": lambda v: chi_square_radius(2, v, 3),
    "sampled_level": lambda v: sampled_level(5, v),
    "noise_radius": lambda v: noise_radius(vector(0.1), steps=3, delta=v),
    "Mixture": lambda v: Mixture(rkhs_norm=1.0, subgaussian=0.1, delta=v),
}
NO_NUMBER: list[Any] = [math.nan, True, "a", [0.1], vector(0.1, 0.2)]


@pytest.mark.parametrize("bad", [*NO_NUMBER, None], ids=repr)
@pytest.mark.parametrize("name", [*TOLERANCES, *LEVELS, *POSITIVE, *NONNEGATIVE])
def test_a_scalar_is_one_number(name, bad):
    with pytest.raises(ValueError, match="expected"):
        {**TOLERANCES, **LEVELS, **POSITIVE, **NONNEGATIVE}[name](bad)


@pytest.mark.parametrize("bad", [-1, -1e-9, math.inf])
@pytest.mark.parametrize("name", [*TOLERANCES, *POSITIVE, *NONNEGATIVE])
def test_a_scalar_is_in_its_range(name, bad):
    """A negative tolerance accused sets that are not empty; with a negative ceiling limits of means came out negative."""
    with pytest.raises(ValueError, match="expected"):
        {**TOLERANCES, **POSITIVE, **NONNEGATIVE}[name](bad)


@pytest.mark.parametrize("bad", [-1, 1.0, 1.5, math.nan, True, "a", [1], slice(0, 2)], ids=repr)
@pytest.mark.parametrize("name", WHOLE)
def test_a_time_or_a_count_is_a_whole_number_of_its_range(name, bad):
    with pytest.raises(ValueError, match="expected"):
        WHOLE[name](bad)


@pytest.mark.parametrize("bad", [0, -1, 1.5, math.nan, True, "a", [2]], ids=repr)
@pytest.mark.parametrize("name", COUNTS)
def test_a_count_is_a_whole_number_and_at_least_one(name, bad):
    COUNTS[name](4)
    with pytest.raises(ValueError, match="expected"):
        COUNTS[name](bad)


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, 1.1, math.nan], ids=repr)
@pytest.mark.parametrize("name", SHARES)
def test_a_chance_of_failure_is_neither_nothing_nor_certain(name, bad):
    SHARES[name](0.1)
    with pytest.raises(ValueError, match="expected"):
        SHARES[name](bad)


KINDS: dict[str, Callable[[], object]] = {
    "RobustDP task": lambda: RobustDP(Grid(CASE.system.state_box, (9,)), CASE.system),  # type: ignore[arg-type]
    "GaussianTube task": lambda: GaussianTube(task=CASE.system),  # type: ignore[arg-type]
    "ScenarioTube task": lambda: ScenarioTube(task=CASE.system, seed=0),  # type: ignore[arg-type]
    "Sampled task": lambda: Sampled(task=CASE.system, seed=0),  # type: ignore[arg-type]
    "BudgetFilter to_go": lambda: BudgetFilter(CASE, budget=0.1),  # type: ignore[arg-type]
    "CostToGo program": lambda: CostToGo.of(CASE, CASE.confidence, CASE.policies, CASE.policies.input_box),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_asked_for_is_not_taken_for_what_resembles_it(name):
    """A plant has x_0, T and a cost as its task has; what it is may change."""
    with pytest.raises(ValueError, match=f"{name.split()[0]}: expected {name.split()[1]} to be a "):
        KINDS[name]()


@pytest.mark.parametrize("bad", ["a", True, 1j], ids=repr)
def test_means_of_costs_are_real_numbers(bad):
    assert float(monte_carlo.kl_upper([0], 5, 0.1)[0]) == pytest.approx(1 - 0.1 ** (1 / 5))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kl_upper: expected real numbers"):
        monte_carlo.kl_upper(np.array([bad]), 5, 0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", ["a", True, 1j], ids=repr)
def test_values_and_distances_of_policies_are_real_numbers(bad):
    assert through(torch.tensor([1]), torch.tensor([[0, 2]])).tolist() == [[1.0, 3.0]]
    assert through([0.5], [[0.25]]).tolist() == [[0.75]]  # type: ignore[arg-type]
    for given in ((torch.tensor([bad]) if bad != "a" else bad, ORIGIN), (vector(0.1), np.array([[bad]]))):
        with pytest.raises(ValueError, match="through: expected real numbers"):
            through(*given)  # type: ignore[arg-type]


def test_a_stage_beyond_the_tube_is_refused():
    assert torch.equal(TUBE.at(3).center, TUBE.center[..., 3, :])
    with pytest.raises(ValueError, match=r"Tube\.at: expected a stage in 0\.\.3, got 4"):
        TUBE.at(4)


OUTPUTS: dict[str, Callable[[Any], tuple[int, ...]]] = {
    "GP": lambda v: GP.create(kernels.rbf([1.0] * 3), 0.1, nx=3, nu=0, noise_std=0.1, outputs=v).outputs,
    "SparseGP": lambda v: SparseGP.create(kernels.rbf([1.0] * 3), nx=3, nu=0, noise_std=0.1, outputs=v).outputs,
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_are_positions_in_their_order(name):
    """[True, False, True] was the states {1, 0, 1}, and [1.9] was accepted as an index."""
    read = OUTPUTS[name]
    for mask in ([True, False, True], torch.tensor([True, False, True]), np.array([True, False, True]), slice(0, 3, 2)):
        assert read(mask) == (0, 2)
    for given in ([2, 0], (2, 0), torch.tensor([2, 0]), np.array([2, 0], dtype=np.uint8)):
        assert read(given) == (2, 0) and all(type(j) is int for j in read(given))
    for bad in (
        [1.9],
        [0.0, 1.0],
        [True, False],
        [3],
        [-1],
        [0, 0],
        [],
        "01",
        1,
        {0, 2},
        [True, 2],
        torch.tensor(1),
        [None],
    ):
        with pytest.raises(ValueError, match="outputs"):
            read(bad)


def test_outputs_of_a_foreign_model_are_not_rounded():
    likelihood = gpytorch.likelihoods.GaussianLikelihood()

    class Plain(gpytorch.models.ExactGP):
        def __init__(self) -> None:
            super().__init__(torch.zeros(3, 2), torch.zeros(3), likelihood)
            self.mean_module, self.covar_module = gpytorch.means.ZeroMean(), gpytorch.kernels.RBFKernel()

        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    assert from_gpytorch(Plain().double().eval(), outputs=[1]).outputs == (1,)
    for bad in ([1.9], [True], [[1]]):
        with pytest.raises(ValueError, match="outputs"):
            from_gpytorch(Plain().double().eval(), outputs=bad)


def test_a_mask_is_no_bound_of_costs():
    """UCB = [1, 1, 0] admitted the third policy."""
    start = SafePolicySet.initial(3, [0], budget=0.2)
    mask = torch.tensor([True, True, False])
    with pytest.raises(ValueError, match="real numbers in upper"):
        start.expand(mask, episode=1, bound="b")
    assert start.expand([0.3, 0.1, 0.3], episode=1, bound="b").members.tolist() == [0, 1]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="real numbers in values"):
        SafeParameters.initial(ORIGIN, budget=0.2).add(ORIGIN, mask[2:], episode=1, bound="b", rule="bound")


def test_members_are_of_the_class_whoever_says_so():
    start = SafePolicySet.initial(3, [0], budget=0.2)
    record = start.to_json()
    assert SafePolicySet.from_json(record).to_json() == record
    record["witnesses"]["7"] = record["witnesses"]["0"]
    with pytest.raises(ValueError, match=r"members in 0\.\.2, got \[7\]"):
        SafePolicySet.from_json(record)
    with pytest.raises(ValueError, match="budget"):
        replace(start, budget=math.nan)


def test_distances_are_those_of_norms_that_there_are():
    """‖f‖ ≤ −1 made two policies nearer than they are, so that more was admitted."""
    assert float(distance()[0, 1]) > 1.0
    for bad in (
        {"rkhs_norm": vector(-1.0)}, {"rkhs_norm": vector(math.nan)}, {"rkhs_norm": vector(1.0, 1.0)},
        {"outputs": [0, 0]}, {"outputs": [0.0]}, {"outputs": [-1]}, {"outputs": ()},
        {"noise_std": vector(-0.1)}, {"noise_std": torch.tensor([True])},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="policy_distance"):
            distance(**bad)
    for bad in ({"noise_std": vector(-1.0)}, {"rkhs_norm": vector(math.nan)}):
        with pytest.raises(ValueError, match="PolicyGap"):
            PolicyGap(ORIGIN, 5, 1.0, **bad)
    with pytest.raises(ValueError, match="non-empty initial"):
        reachable([], vector(0.1, 0.1), 0 * EYE, budget=0.2, epsilon=0.0)


@pytest.mark.parametrize(
    "value", [True, [True, False], np.array([True]), torch.tensor([True]), np.bool_(True)], ids=repr
)
def test_a_boolean_is_no_number(value):
    for read in (
        lambda: noise_radius(value, steps=3, delta=0.1),
        lambda: GP.create(KERNEL, value, nx=1, nu=1, noise_std=0.1),
        lambda: GP.create(KERNEL, 0.1, nx=1, nu=1, noise_std=value),
        lambda: kernels.rbf(value),
        lambda: Box(torch.zeros(1), value),
        lambda: Polytope([[1.0]], value),
        lambda: AffinePolicies(value, torch.zeros(1, 1, 1), Box([-1.0], [1.0])),
    ):
        with pytest.raises(ValueError, match="Booleans"):
            read()


def test_directions_may_come_in_fewer_digits():
    directions = torch.tensor([[1.0, 1.0], [0.5, -2.0]])
    for body in (BALL, SQUARE, Box(vector(0.0, 0.0), vector(1.0, 1.0)), Zonotope(ORIGIN[0], EYE)):
        assert torch.equal(body.support(directions), body.support(directions.double()))
        assert torch.equal(body.support(directions.numpy()), body.support(directions.double()))  # type: ignore[arg-type]
    assert torch.equal(BALL.support_point(directions), BALL.support_point(directions.double()))
