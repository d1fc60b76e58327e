"""F_n tabulated at a grid of anchors: one pass over the posterior per episode, none while plans are verified.

An affine enclosure of the residual around an anchor a (`LocalAffine`) is valid at every z, whatever z − a: it only widens, by
‖f‖_k times the Taylor modulus at that distance. So the enclosures at a fixed grid may serve every set that a verifier asks
about; a set takes the nearest anchor. What is stored grows by intersection alone (F_n is nested at fixed points), so a
new posterior costs one evaluation at the anchors and the old ones cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.confidence.set import ConfidenceSet
from gpsafe.cost._lineage import continues
from gpsafe.cost.local_affine import LocalAffine
from gpsafe.sets import Box


@short
@dataclass(frozen=True, slots=True, eq=False)
class AnchorGrid:
    """Enclosures of F_n at the points of a regular grid in z = (x, u). Make it with :meth:`create`, fill it with `refine`.

    Attributes:
        box: of z, (d,); sets outside it are served by the nearest anchor, soundly and loosely.
        counts: points per axis; 1 (the middle of the axis) for an axis the kernels ignore.
        local: batch (M,) of enclosures, M = Π counts; None before the first `refine`.
        generations: posteriors already intersected.
        source: the confidence set they came from; one with another history or bound is refused.
    """

    box: Box
    counts: tuple[int, ...]
    local: LocalAffine | None = None
    generations: int = 0
    source: ConfidenceSet | None = None
    _axes: tuple[Tensor, Tensor, Tensor, Tensor] = field(init=False)  # start, step, last index, stride

    def __post_init__(self) -> None:
        counts = torch.tensor(self.counts, dtype=torch.float64, device=self.box.lower.device)
        step = (self.box.upper - self.box.lower) / (counts - 1).clamp_min(1.0)
        start = torch.where(counts > 1, self.box.lower, self.box.center)
        stride = counts.flip(0).cumprod(0).roll(1)
        stride[0] = 1.0
        object.__setattr__(self, "_axes", (start, torch.where(counts > 1, step, 1.0), counts - 1, stride.flip(0)))

    @staticmethod
    def create(box: Box, spacing: Tensor) -> AnchorGrid:
        """The grid with at most `spacing` (d,) between neighbours; an infinite spacing is for an ignored axis."""
        width = box.upper - box.lower
        if spacing.shape != width.shape or not bool((spacing > 0).all()):
            raise _require.fail("AnchorGrid", f"a positive spacing of shape ({box.dim},)", spacing.tolist())
        return AnchorGrid(box, tuple(int(count) for count in (width / spacing).ceil() + 1))

    @property
    def anchors(self) -> Tensor:
        """(M, d), the last axis fastest."""
        axes = [
            torch.linspace(low, high, count, dtype=torch.float64)
            if count > 1
            else torch.tensor([0.5 * (low + high)], dtype=torch.float64)
            for low, high, count in zip(self.box.lower.tolist(), self.box.upper.tolist(), self.counts, strict=True)
        ]
        return torch.cartesian_prod(*axes).reshape(-1, self.box.dim).to(self.box.lower.device)

    def refine(self, confidence: ConfidenceSet) -> AnchorGrid:
        """Intersects the posteriors that are new since the last call; value and gradient come from the newest."""
        if self.source is not None and not continues(self.source, self.generations, confidence):
            raise _require.fail("AnchorGrid.refine", "a confidence set that continues the last one", "another history")
        if self.local is not None and len(confidence.generations) == self.generations:
            return self
        anchors = self.anchors
        low, high = confidence.bounds(anchors, since=self.generations)
        if self.local is not None:
            low = torch.maximum(low, self.local.middle - self.local.half)
            high = torch.minimum(high, self.local.middle + self.local.half)
        newest = ConfidenceSet(confidence.bound, (confidence.model,))
        local = replace(LocalAffine.at(newest, anchors), middle=0.5 * (low + high), half=0.5 * (high - low))
        return replace(self, local=local, generations=len(confidence.generations), source=confidence)

    @property
    def empty(self) -> Tensor:
        """Anchors (k, d) at which F_n came out empty: a falsified assumption."""
        return self.anchors[self._filled().empty]

    def around(self, z: Tensor) -> tuple[LocalAffine, Tensor]:
        """The enclosures at the anchors nearest to z (*b, d), and z − anchor."""
        local = self._filled()
        start, step, last, stride = self._axes
        cell = torch.minimum(((z - start) / step).nan_to_num(0.0).round().clamp_min(0.0), last)
        index = (cell * stride).sum(-1).long()
        mean = None if local.mean is None else local.mean[index]
        cov = None if local.cov is None else local.cov[index]
        chosen = LocalAffine(local.middle[index], local.half[index], mean, cov, local.norm, local.cap, local.moduli)
        return chosen, z - (start + cell * step)

    def _filled(self) -> LocalAffine:
        if self.local is None:
            raise _require.fail("AnchorGrid", "refine before use", "an empty grid")
        return self.local
