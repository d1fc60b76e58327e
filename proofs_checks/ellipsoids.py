"""Theory §6.1: what X-MPSC asks of ellipsoids beside the outer sum: images under affine maps, and lying in a polytope."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from unittest import mock

import torch
from torch import Tensor

from gpsafe.sets import Ellipsoid
from gpsafe.testbed.check import Budget, Check, Evidence, Grade, Sample
from gpsafe.verdict import Verdict, worst_of

from ._defects import FACTORS
from ._regression import generator

DRAWS = 60
ROUNDING = 1e-9  # of gauges and supports, relative
POINTS = 4000  # on the boundary of an ellipsoid, at equal angles: they miss at most 3e-7 of a support


def _normal(source: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=source)


def image(shard: int, budget: Budget, broken: bool) -> Sample:
    """Gauge of images of boundary points in the image, and support of the image over the largest of its points (in 1 … 4-D).

    The points of the ellipsoid that are farthest along Mᵀn are known, so both hold for the exact image only.
    """
    source, worst = generator(81, shard), 0.0
    for index in range(DRAWS):
        d = 1 + index % 4
        one = Ellipsoid(_normal(source, d), _normal(source, d, d))
        M, offset = _normal(source, d, d), _normal(source, d)
        moved = Ellipsoid(one.center @ M.mT + offset, one.factor @ M) if broken else one.affine(M, offset)
        points = one.sample_boundary(50, source) @ M.mT + offset
        ways = _normal(source, 50, d)
        farthest = torch.stack([one.support_point(M.mT @ n) for n in ways]) @ M.mT + offset
        reached = ((farthest - moved.center) * ways).sum(-1)
        wide = moved.support(ways) - ways @ moved.center
        worst = worst_of(
            worst, float(moved.gauge(points).max()), float((wide / reached).max()), float((reached / wide).max())
        )
    return {"worst": worst, "cases": DRAWS}


def inside(shard: int, budget: Budget, broken: bool) -> Sample:
    """Plane ellipsoids and half-planes near tangency: what the margin says against 4000 points of the boundary.

    Worst of: a point beyond what the margin allows; a witness that is not as far out as the margin says, or not in the set; all
    relative to the half-width along the row. Broken: the published test without its root, H Q Hᵀ for √(H Q Hᵀ).
    """
    source, worst, wrong = generator(82, shard), 0.0, 0
    angle = torch.linspace(0, 2 * torch.pi, POINTS + 1, dtype=torch.float64)[:-1]
    circle = torch.stack([angle.cos(), angle.sin()], dim=-1)
    for _ in range(DRAWS):
        one = Ellipsoid(_normal(source, 2), _normal(source, 2, 2) * _normal(source, 2).exp())
        H = _normal(source, 3, 2)
        spread = (H @ one.factor).norm(dim=-1)
        h = H @ one.center + spread * (1 + 0.2 * _normal(source, 3))
        boundary = one.center + circle @ one.factor.mT
        excess = float((boundary @ H.mT - h).amax())
        found = one.inside_halfspaces(H, h)
        margin, witness = float(found.margin), found.witness
        if broken:
            margin = float((h - H @ one.center - spread.square()).min())
        scale = float(spread.max())
        far = float((H @ witness - h).max())
        worst = worst_of(
            worst, (excess + margin) / scale, (-margin - far) / scale, float(one.gauge(witness)) - 1 - ROUNDING
        )
        wrong += (margin >= 0) != (excess <= 0)
    return {"worst": worst, "wrong": wrong, "cases": DRAWS}


def judge(samples: Sequence[Sample], broken: bool, threshold: float) -> Evidence:
    """The largest of all cases."""
    worst, cases = worst_of(s["worst"] for s in samples), sum(s["cases"] for s in samples)
    wrong = sum(s.get("wrong", 0) for s in samples)
    told = f"{wrong} of {cases} answers differ from those of the points" if "wrong" in samples[0] else ""
    return Evidence(cases, worst, Verdict(worst, worst, threshold, witness=told), {"worst": worst})


def _narrower(factor: float) -> AbstractContextManager[object]:
    """Supports with the half-width scaled."""

    def support(self: Ellipsoid, directions: Tensor) -> Tensor:
        return self.center @ directions.mT + factor * (directions @ self.factor).norm(dim=-1)

    return mock.patch.object(Ellipsoid, "support", support)


def _smaller(factor: float) -> AbstractContextManager[object]:
    """Images with the factor scaled."""
    exact = Ellipsoid.affine

    def affine(self: Ellipsoid, matrix: Tensor, offset: Tensor | None = None) -> Ellipsoid:
        found = exact(self, matrix, offset)
        return Ellipsoid(found.center, factor * found.factor)

    return mock.patch.object(Ellipsoid, "affine", affine)


CHECKS = (
    Check(
        name="xmpsc-ellipsoid-image",
        claim="The image of E(c, Q) under x ↦ Mx + o is E(Mc + o, MQMᵀ), no smaller and no larger.",
        source="X-MPSC, section 3.4; theory §6.1",
        assumptions=(),
        statistic="largest gauge of image points; support of the image over its farthest point, both ways; threshold 1",
        control="Mᵀ for M in the factor",
        shards={"quick": 4, "full": 40},
        sample=image,
        judge=lambda samples, broken: judge(samples, broken, 1 + ROUNDING),
        grades=(Grade("factor of the image", _smaller, (0,), FACTORS),),
    ),
    Check(
        name="xmpsc-ellipsoid-inside",
        claim="E(c, Q) lies in {Hx ≤ h} iff H_i c + √(H_i Q H_iᵀ) ≤ h_i for every row, by its margin and witness.",
        source="X-MPSC, equation (5); theory §6.1",
        assumptions=(),
        statistic="how far points or the witness contradict the margin, as a share of the half-width; threshold 1e-9",
        control="H Q Hᵀ without its root",
        shards={"quick": 4, "full": 40},
        sample=inside,
        judge=lambda samples, broken: judge(samples, broken, ROUNDING),
        grades=(Grade("half-width √(H Q Hᵀ)", _narrower, (0,), FACTORS),),
    ),
)
