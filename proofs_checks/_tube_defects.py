"""Graded controls of the terms of ellipsoidal tubes, each on a piece in which the term tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpsafe.confidence import Mixture
from gpsafe.testbed.check import Grade
from gpsafe.tube import EnsembleTube, GPTube, core
from gpsafe.tube import gp as gp_tube

from ._defects import FACTORS, Scaled, around, forged, replaced, times

LADDER = (0.99, 0.95, 0.9, 0.7, 0.5, 0.3, 0.1, 0.0)
KNOWN = "what is learned leads in R for this plant; the same bound leads, and is graded, in scenario-tubes and gaussian-tubes"
STEEP = "the conformal radius covers a straight tube with room to spare: R counts in xmpsc-tube-ensemble"


def _summand(index: int) -> Scaled:
    """F Q Fᵀ (0) or W (1) with half-axes scaled, in the step's outer sum and nowhere else."""

    def change(sum_of: Callable[..., Tensor], factor: float) -> Callable[..., Tensor]:
        def less(factors: list[Tensor], *box: Tensor) -> Tensor:
            return sum_of([factor * part if i == index else part for i, part in enumerate(factors)], *box)

        return less

    return replaced(core, "outer_sum", change)


def _flatter(_: Callable[..., Tensor], factor: float) -> Callable[..., Tensor]:
    """The outer sum with weights of sizes to the power g: 1 is least, 0 weighs all alike."""

    def wider(factors: list[Tensor]) -> Tensor:
        sizes = [part.square().sum((-2, -1)).sqrt() ** factor for part in factors]
        total = torch.stack(sizes).sum(0)
        return torch.cat(
            [(total / s).sqrt()[..., None, None] * part for s, part in zip(sizes, factors, strict=True)], -1
        )

    return wider


def _first(pair: tuple[Tensor, Tensor], factor: float) -> tuple[Tensor, Tensor]:
    return factor * pair[0], pair[1]


def _second(pair: tuple[Tensor, Tensor], factor: float) -> tuple[Tensor, Tensor]:
    return pair[0], factor * pair[1]


def _nearer(tube: EnsembleTube, factor: float) -> EnsembleTube:
    return forged(tube, radius=factor * tube.radius)


def outer_sums(module: Any) -> tuple[Grade, ...]:
    """Of the sum that `module` tests."""
    return (
        Grade("half-axes of the sum", around(module, "outer_sum", times), (0,), FACTORS),
        Grade("weights by size", replaced(module, "outer_sum", _flatter), (0,), FACTORS),
    )


def conformal(pieces: tuple[int, ...], factors: tuple[float, ...]) -> tuple[Grade, ...]:
    """Of calibrated tubes of an ensemble."""
    return (
        Grade("conformal radius", around(EnsembleTube, "calibrated", _nearer, static=True), pieces, factors),
        Grade("remainder R", around(EnsembleTube, "remainder", times), pieces, (0.0,), unseen=STEEP),
    )


LINEAR = (
    Grade("carried F Q Fᵀ", _summand(0), (0,), LADDER),
    Grade("disturbance W", _summand(1), (0,), LADDER),
)
ENSEMBLE = (
    Grade("carried F Q Fᵀ", _summand(0), (1,), LADDER),
    Grade("disturbance W", _summand(1), (1,), LADDER),
    Grade("remainder R", around(EnsembleTube, "remainder", times), (2,), LADDER),
    Grade("curvature of the networks", around(EnsembleTube, "_over", _first), (0,), LADDER),
    Grade("σ over the section", around(EnsembleTube, "_over", _second), (1,), LADDER),
)
PROCESS = (
    Grade("carried F Q Fᵀ", _summand(0), (0,), LADDER),
    Grade("disturbance W", _summand(1), (0,), LADDER),
    Grade("remainder R", around(GPTube, "remainder", times), (8,), LADDER),
    Grade("learned part of R", around(GPTube, "_learned", times), (8,), LADDER),
    Grade("confidence width β", around(Mixture, "beta", times), (3,), (0.5, 0.3, 0.1, 0.0)),
    Grade("known part's remainder", around(gp_tube, "remainder_outer", times), (0,), (0.0,), unseen=KNOWN),
)
