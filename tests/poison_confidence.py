"""Poison cases of confidence intervals and sets, and of enclosures."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from contracts.test_bounds import build, model_for
from poison import ROWS, Arguments, PoisonCase, Results, draw, visible
from poison_tubes import KNOWN
from shield_cases import judged
from torch import Tensor

from gpsafe.confidence import BOUNDS, ConfidenceSet, Mixture, ranges, regions
from gpsafe.confidence.functionals import jet, taylor_modulus
from gpsafe.cost.enclosure import closed_loop_range, jacobians
from gpsafe.cost.local_affine import Displacements
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import kernels
from gpsafe.sets import Box


@cache
def learned(kernel: str) -> ConfidenceSet:
    """Two generations, k = 1 and B = 2."""
    shape = kernels.rbf(0.4) if kernel == "rbf" else kernels.matern(float(kernel), 0.4)
    z = torch.linspace(-1, 1, 6).double().unsqueeze(1)
    model = GP.create(shape, 0.1, nx=1, nu=0, noise_std=0.1)
    confidence = ConfidenceSet(Mixture(rkhs_norm=2.0, subgaussian=0.3, delta=0.1)).update(
        model.condition_on(z, z.sin())
    )
    return confidence.update(confidence.model.condition_on(z + 0.1, z.cos()))


def inputs() -> Arguments:
    return {"z": 0.4 + 0.1 * draw(ROWS, 1).tanh()}


def no_narrower(width: float) -> Callable[..., Tensor]:
    """Than ±B√k, which is known before any data."""
    return lambda low, high: visible(low, high) | (high - low >= width * (1 - 1e-6)).all(-1)


def interval(name: str) -> Callable[..., Results]:
    return lambda z: build(name).interval(model_for(name), z)


def derivatives(kernel: str) -> Callable[..., Results]:
    def run(z: Tensor) -> Results:
        found = jet(learned(kernel).model, z)
        return found.mean, found.cov

    return run


def says_prior(mean: Tensor, cov: Tensor) -> Tensor:
    """Mean 0 and the variance before any data."""
    return visible(mean, cov) | ((mean == 0).flatten(1).all(-1) & (cov[:, 0, 0, 0] >= 1.0))


def closed_loops(x: Tensor, radius: Tensor) -> Results:
    """Cells are the rows here."""
    policies = AffinePolicies(
        torch.zeros(1, 1).double(), -torch.ones(1, 1, 2).double(), Box(-torch.ones(1), torch.ones(1))
    )
    return tuple(found[0] for found in closed_loop_range(KNOWN, policies, x, radius))


def tabulated(z: Tensor, radius: Tensor) -> Results:
    """The residual around z, from the nearest anchor of a grid: value, error, and whether it says no more than ±B√k."""
    anchors = judged().anchors
    assert anchors is not None
    local, offset = anchors.around(z)
    found = local.range_outer(Displacements(offset, torch.diag_embed(radius), torch.zeros_like(radius)))
    everything = (found.value == 0).all(-1) & (found.error >= local.cap * (1 - 1e-9)).all(-1)
    return found.value, found.error, found.linear, everything


def boxes() -> Arguments:
    lower = 0.4 + 0.1 * draw(ROWS, 1).tanh()
    return {"lower": lower, "upper": lower + 0.2}


def enclosed(what: str, kernel: str) -> Callable[..., Results]:
    """Lower and upper ends, attained ones, and the gap."""

    def run(lower: Tensor, upper: Tensor) -> Results:
        of = learned(kernel) if what == "band" else learned(kernel).model
        found = getattr(ranges, what)(of, (lower, upper), cells=64)
        return found.lower, found.upper, found.attained_low, found.attained_high, found.gap

    return run


def contains(what: str, kernel: str) -> Callable[[Arguments, Results], Tensor]:
    """Whether the struck box's ends and centre have values within (all that is left of [0.4, 1.7e308] to look at)."""

    def check(arguments: Arguments, results: Results) -> Tensor:
        low, high = arguments["lower"], arguments["upper"]
        z = torch.stack([low, low + 0.1, low + 0.5, high.clamp_max(9.0), high - 0.1])
        z = z.clamp(low, high)
        confidence = learned(kernel)
        mean, std = confidence.model.posterior(z)
        least, most = {"mean": (mean, mean), "std": (std, std), "band": confidence.bounds(z)}[what]
        within = (least >= results[0]) & (most <= results[1])
        return (within | ~torch.isfinite(least)).all(0).all(-1)

    return check


def answered(lower: Tensor, upper: Tensor) -> Results:
    """Both questions at once."""
    found = regions.certified(learned("rbf"), (lower, upper), epsilon=0.8, within=Box([-9.0], [9.0]), pieces=4)
    return found.yes, found.no, found.witness


def grown(z: Tensor) -> Results:
    """The largest box around z on which the model is right to 0.8."""
    found = regions.largest(learned("rbf"), z, torch.ones(1).double(), epsilon=0.8, rounds=3)
    return found.scale, found.lower, found.upper


SHAPES = tuple(kernels.Stationary(nu, torch.ones(1).double(), 1.0) for nu in (torch.inf, 1.5, 2.5))
CASES = {
    **{
        f"{name}.interval": PoisonCase(interval(name), inputs, no_narrower(3.0), refuses=name == "lederer")
        for name in sorted(BOUNDS)
    },
    **{
        f"ConfidenceSet.bounds, {kernel}": PoisonCase(learned(kernel).bounds, inputs, no_narrower(4.0))
        for kernel in ("rbf", "0.5", "1.5", "2.5")
    },
    **{f"jet, {kernel}": PoisonCase(derivatives(kernel), inputs, says_prior) for kernel in ("rbf", "1.5", "2.5")},
    "ConfidenceBound.prior_width": PoisonCase(
        lambda z: (learned("rbf").bound.prior_width(learned("rbf").model, z),), inputs, lambda width: (width >= 2.0).all(-1)
    ),
    "taylor_modulus": PoisonCase(
        lambda r: tuple(taylor_modulus(shape, r) for shape in SHAPES), lambda: {"r": draw(ROWS).abs()},
    ),
    "closed_loop_range": PoisonCase(
        closed_loops, lambda: {"x": 0.3 * draw(ROWS, 2), "radius": 0.1 * draw(ROWS, 2).abs()},
    ),
    "jacobians": PoisonCase(
        lambda x, u: (*jacobians(KNOWN.__call__, x, u), x, u),  # by differentiation
        lambda: {"x": draw(ROWS, 2), "u": draw(ROWS, 1)},
    ),
    **{
        f"{what}, {kernel}": PoisonCase(
            enclosed(what, kernel), boxes, lambda low, high, *_: visible(low, high), contains(what, kernel)
        )
        for what in ("mean", "std", "band") for kernel in ("rbf", "0.5", "1.5", "2.5")
    },
    "ends": PoisonCase(lambda lower, upper: ranges.ends("ends", (lower, upper), 1), boxes),
    "certified": PoisonCase(answered, boxes, lambda yes, no, witness: ~yes),
    "largest": PoisonCase(
        grown, lambda: {"z": 0.4 + 0.1 * draw(ROWS, 1).tanh()}, lambda scale, lower, upper: visible(lower, upper)
    ),
    "AnchorGrid.around": PoisonCase(
        tabulated, lambda: {"z": 0.2 * draw(ROWS, 3), "radius": 0.1 * draw(ROWS, 3).abs()},
        lambda value, error, linear, everything: everything | visible(value, error),
    ),
}  # fmt: skip
