"""Small certificates of policies and of plans on learned models."""

from functools import lru_cache
from typing import Any

import torch
from export_cases import draw
from strategies import make_kernel

import gpsafe as gs
from gpsafe.certify import CertificationProblem, judge
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost import RobustDP
from gpsafe.cost.grid import Grid
from gpsafe.linalg import vector
from gpsafe.models import Ensemble, identity_prior
from gpsafe.models._mlp import MLP
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import kernels
from gpsafe.saved import export_membership, export_plan
from gpsafe.sets import Box, Polytope
from gpsafe.systems import AffineKnown, SineKnown
from gpsafe.systems.base import HingeCost, IndicatorCost
from gpsafe.systems.task import Task
from gpsafe.tube import EnsembleTube, GPTube


def square(half: float, dim: int) -> Polytope:
    """|x_i| ≤ half."""
    return Polytope.of_box(Box(-half * torch.ones(dim).double(), half * torch.ones(dim).double()))


# ------------------------------------------------------------------------------------------------------------ policies
def program_case(
    kernel: Any = None,
    *,
    n: int = 8,
    seed: int = 0,
    hinge: bool = False,
    bound: Any = None,
    lam: float = 4e-4,
    **changes: Any,
):
    """A program on the line, its F_n of two generations, and a policy; `changes` of the task."""
    known = AffineKnown([[0.8 + 0.2 * float(draw(1, seed=seed + 7))]], [[0.3]], [0.05])
    kernel = kernels.rbf([0.9, 2.0], variance=0.04) if kernel is None else make_kernel(kernel, 2)
    old = gs.GP.create(kernel, lam, nx=1, nu=1, noise_std=vector(0.02), prior=known)
    z = torch.stack([torch.linspace(-1.2, 1.2, n), torch.zeros(n)], dim=-1).double()
    sets = [old] if not n else [old, old.condition_on(z, 0.02 * draw(n, 1, seed=seed + 1))]
    bound = Mixture(rkhs_norm=1.0, subgaussian=0.02, delta=0.1) if bound is None else bound
    cost = HingeCost([[1.0], [-2.0]], [0.6, 1.9], 0.7) if hinge else IndicatorCost([[1.0], [-1.0]], [0.8, 0.9])
    task = Task(vector(0.1), 4, cost, 4.0, vector(0.02)).with_(**changes)
    gain = 0.5 * draw(2, 1, 1, seed=seed + 2)
    policies = AffinePolicies(0.1 * draw(2, 1, seed=seed + 3), gain, Box(vector(-0.3), vector(0.4)))
    return RobustDP(Grid(Box(vector(-1.5), vector(1.7)), (24,), (3,)), task), ConfidenceSet(bound, sets), policies


@lru_cache(maxsize=1)
def admitted() -> str:
    """Membership of a policy."""
    return export_membership(*program_case(), 0)


# --------------------------------------------------------------------------------------------------- Gaussian processes
def gp_plan(
    kernel: Any = None,
    *,
    n: int = 14,
    seed: int = 0,
    outputs: tuple[int, ...] = (1,),
    steps: int = 2,
    noise: str = "each",
):
    """A certificate for a pendulum-like plant with an unknown residual."""
    frequency = vector(1.0, 0.0, 0.0).reshape(1, 3)
    known = SineKnown(
        vector(1.0, 0.1, 0.0, 0.9).reshape(2, 2), vector(0.0, 0.2).reshape(2, 1), vector(0.0, 0.01),
        vector(0.0, -0.3).reshape(1, 2), frequency, vector(0.1),
    )  # fmt: skip
    noises, lam = vector(0.0, 0.01), 1e-4
    kernel = kernels.rbf([1.0, 1.5, 2.0], variance=0.01) if kernel is None else make_kernel(kernel, 3)
    model = gs.GP.create(kernel, lam, nx=2, nu=1, noise_std=noises, outputs=outputs, prior=known)
    if n:
        model = model.condition_on(0.3 * draw(n, 3, seed=seed), 0.01 * draw(n, len(outputs), seed=seed + 1))
    bound = Mixture(rkhs_norm=1.0, subgaussian=0.01, delta=0.1)
    tube = GPTube(ConfidenceSet(bound).update(model), steps + 1, 0.05, noise=noise)  # type: ignore[arg-type]
    gain = 0.3 * draw(1, 2, seed=seed + 2)
    problem = CertificationProblem(tube, square(3.0, 2), square(2.0, 1), square(1.5, 2), gain, steps)
    return judge(problem, 0.2 * draw(2, seed=seed + 3), vector(0.0), 0.2 * draw(steps, 1, seed=seed + 4))


@lru_cache(maxsize=1)
def gp_flown() -> str:
    """A plan on a Gaussian process."""
    return export_plan(gp_plan())


# ----------------------------------------------------------------------------------------------------------- ensembles
def ensemble_plan(
    *, seed: int = 0, nx: int = 2, members: int = 2, steps: int = 2, clamp: str = "soft", prior: Any = identity_prior
):
    """A certificate for random networks."""
    network = MLP.random(members, (nx + 1, 4, 3, 2 * nx), torch.Generator().manual_seed(seed))
    limits = torch.tensor([[-10.0] * nx, [-6.0] * nx], dtype=torch.float64)
    scales = [
        gs.models.Normalizer(0.1 * draw(d, seed=seed + d), (0.3 * draw(d, seed=seed)).exp()) for d in (nx + 1, nx)
    ]
    model = Ensemble.from_weights(
        network.weights, network.biases, nx=nx, nu=1, inputs=scales[0], targets=scales[1], log_var_limits=limits,
        clamp=clamp, prior=prior,  # type: ignore[arg-type]
    )  # fmt: skip
    tube = EnsembleTube(model, "sound", 2.0, ("calibrated by hand",), cells=4)
    sets = square(9.0, nx), square(3.0, 1), square(8.0, nx)
    problem = CertificationProblem(tube, *sets, 0.2 * draw(1, nx, seed=seed + 2), steps)
    return judge(problem, 0.3 * draw(nx, seed=seed + 3), vector(0.0), 0.2 * draw(steps, 1, seed=seed + 4))


@lru_cache(maxsize=1)
def ensemble_flown() -> str:
    """A plan on an ensemble."""
    return export_plan(ensemble_plan())


LEARNED = {"membership": admitted, "plan-gp": gp_flown, "plan-ensemble": ensemble_flown}
__all__ = ["LEARNED", "ensemble_plan", "gp_plan", "kernels", "program_case"]
