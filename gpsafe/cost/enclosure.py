"""Rigorous boxes of next means over cells of states, for many policies at once (theory §3.3, §5.1, §5.5)."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.confidence.set import EMPTY, ConfidenceSet
from gpsafe.cost._lineage import continues
from gpsafe.cost.in_cell import InCell, Loop
from gpsafe.models._prior import prior_jacobian
from gpsafe.policies import PolicyClass, feedback, inputs_at, selected
from gpsafe.policies.finite import ROUNDING
from gpsafe.rkhs import kernels
from gpsafe.systems.base import KnownPart, known_with_bound

_OUTER = (torch.maximum, torch.minimum)  # of the lower and of the upper ends of sets that are intersected


def grow(value: Tensor, relative: float) -> Tensor:
    """Outward rounding of an upper bound ≥ 0 that is a sum of terms ≥ 0."""
    return value * (1 + relative)


def closed_loop_range(
    known: KnownPart, policies: PolicyClass, centers: Tensor, radius: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Range of x ↦ p(x, π_i(x)) over boxes, keeping cancellations between plant and feedback.

    With A, B the Jacobians of p at (c, π(c)), s ∈ [low, high] the policy's slope over the box, d = x − c and e what the
    policy's gain G leaves out (`Feedback.remainder`): p = p(c, π(c)) + (A + B diag(s) G) d + B diag(s) e + ½ dzᵀ H dz.
    The first terms: `Loop.rows`.

    Args:
        known: p with `hessian_bound`.
        policies: P policies with `slopes` or `feedback`.
        centers, radius: (N, nx).

    Returns:
        centre (P, N, nx), half-width (P, N, nx), and reach of the inputs |π(x) − π(c)| (P, N, nu).
    """
    known_with_bound("closed_loop_range", known)
    loop = around(policies, centers, radius)
    z = _points(policies, centers)
    middle, a, b = linearised(known, z)
    reach = grow(loop.rows(a, b) + bend(known, loop), 1e-12)
    return middle, reach + _blur(middle, a, b, z, loop), loop.inputs


def around(policies: PolicyClass, centers: Tensor, radius: Tensor, spread: Tensor | None = None) -> Loop:
    """How (x, π_i(x)) moves over boxes, (N, nx) ×2; `spread` (P, N, nu) is added to what the gain leaves out."""
    slope = feedback(policies, (centers - radius).unsqueeze(0), (centers + radius).unsqueeze(0))
    gain = slope.gain.expand(policies.num, len(centers), *slope.gain.shape[-2:])
    bent = slope.high * slope.remainder
    return Loop(radius, gain, slope.low, slope.high, bent if spread is None else bent + spread)


def linearised(known: KnownPart, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p, ∂p/∂x and ∂p/∂u at z = (c, π(c)), (P, N, nz): (P, N, nx), (P, N, nx, nx), (P, N, nx, nu)."""
    nx = known.hessian_bound.shape[0]
    x, u = z[..., :nx].clone(), z[..., nx:].clone()
    return known(x, u), *jacobians(known, x, u)


def _points(policies: PolicyClass, centers: Tensor) -> Tensor:
    """(c, π_i(c)), (P, N, nz)."""
    return torch.cat([centers.expand(policies.num, *centers.shape), inputs_at(policies, centers.unsqueeze(0))], dim=-1)


def _blur(middle: Tensor, a: Tensor, b: Tensor, z: Tensor, loop: Loop) -> Tensor:
    """More than p(x, u) and slopes over cells about z = (c, π(c)) err by, (P, N, nx): a share of terms that may cancel."""
    terms = torch.einsum("pnij,pnj->pni", torch.cat([a, b], dim=-1).abs(), z.abs() + loop.reach)
    return ROUNDING * (middle.abs() + terms)


def bend(known: KnownPart, loop: Loop) -> Tensor:
    """½ dzᵀ H dz over the cells, (P, N, nx)."""
    dz, hessian = loop.reach, known.hessian_bound.to(loop.radius.device)
    if not bool((hessian != 0).any()):
        return torch.zeros(*dz.shape[:2], hessian.shape[0], dtype=dz.dtype, device=dz.device)
    return 0.5 * torch.einsum("ijk,pnj,pnk->pni", hessian, dz, dz)


def jacobians(known: KnownPart, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """∂p/∂x (*b, nx, nx) and ∂p/∂u (*b, nx, nu): the known part's own `jacobian`, if it has one, else by differentiation."""
    x, u = (_require.floats("jacobians", name, value) for name, value in (("x", x), ("u", u)))
    closed = getattr(known, "jacobian", None)
    if closed is not None:
        return closed(x, u)
    found = prior_jacobian("jacobians", known, x, u)
    return found[..., : x.shape[-1]], found[..., x.shape[-1] :]


def input_matrix(known: KnownPart, nx: int, nu: int) -> Tensor:
    """∂p/∂u of a known part that is affine in u with a constant input matrix, (nx, nu).

    Its stated derivative: a difference of values, p(0, e_j) − p(0, 0), would lose what is below the rounding of p(0, 0).
    """
    x, u = torch.zeros(1, nx, dtype=torch.float64), torch.zeros(1, nu, dtype=torch.float64)
    return jacobians(known, x, u)[1].reshape(nx, nu)


@short
@dataclass(frozen=True, slots=True, eq=False)
class Enclosure:
    """Boxes that contain f(x, π_i(x)) for all x in cell j and all f ∈ F_n with ‖f‖_k ≤ B.

    Attributes:
        centers, radius: cells, (N, nx).
        z: (c_j, π_i(c_j)), (P, N, nz).
        known, known_radius: range of the known part, (P, N, nx).
        metric: sup of the kernel metric d_k(z_c, z) over the cell, per learned output, (P, N, p).
        slack: B · metric, (P, N, p).
        low, high: running intersection of [l_i, h_i] at z_c, (P, N, p).
        cap: B sup √k(z, z) over the cell, per learned output, (P, N, p); no residual exceeds it there.
        kernels: one per learned output.
        outputs, generations: learned outputs; number of generations already intersected.
        source: the confidence set they came from; one that does not continue it is refused.
        policies: π_i; None: gradients are not used.
        spread: further uncertainty of the inputs that the boxes have to hold, (P, N, nu); None: 0.
        inner: low and high ends of boxes from posterior gradients (`gpsafe.cost.in_cell`), (P, N, nx) each; None: none yet.
        peak: ≥ sup σ_n over the cell, of the same origin, (P, N, p).
    """

    centers: Tensor
    radius: Tensor
    z: Tensor
    known: Tensor
    known_radius: Tensor
    metric: Tensor
    slack: Tensor
    low: Tensor
    high: Tensor
    cap: Tensor
    kernels: tuple[Kernel, ...]
    outputs: tuple[int, ...]
    generations: int = 0
    source: ConfidenceSet | None = None
    policies: PolicyClass | None = None
    spread: Tensor | None = None
    inner: tuple[Tensor, Tensor] | None = None
    peak: Tensor | None = None

    def refine(self, confidence: ConfidenceSet) -> Enclosure:
        """Intersects the generations of the confidence set that are new since the last call."""
        if self.source is not None and not continues(self.source, self.generations, confidence):
            raise _require.fail("Enclosure.refine", "a confidence set that continues the last one", "another history")
        if len(confidence.generations) == self.generations:
            return self
        low, high = confidence.bounds(self.z, since=self.generations)
        low, high = torch.maximum(low, self.low), torch.minimum(high, self.high)
        grown = replace(self, low=low, high=high, generations=len(confidence.generations), source=confidence)
        return grown._narrowed(confidence)

    def _narrowed(self, confidence: ConfidenceSet) -> Enclosure:
        """With the boxes of the newest posterior's gradients intersected: known part and ∇μ_n in one closed loop."""
        known, policies = confidence.model.prior, self.policies
        if policies is None:
            return self
        loop = around(policies, self.centers, self.radius, self.spread)
        found = InCell.of(confidence, self.z, loop)
        if not found:
            return self
        assert isinstance(known, KnownPart)
        linear, bent = linearised(known, self.z)[1:], bend(known, loop)
        ends = [self._inner(cell, linear, bent, loop) for cell in found]
        peak = found[0].peak
        if self.inner is not None and self.peak is not None:
            ends.append(self.inner)
            peak = torch.fmin(peak, self.peak)
        low, high = (
            functools.reduce(better, side) for better, side in zip(_OUTER, zip(*ends, strict=True), strict=True)
        )
        return replace(self, inner=(low, high), peak=peak)

    def _inner(self, found: InCell, linear: tuple[Tensor, ...], bent: Tensor, loop: Loop) -> tuple[Tensor, Tensor]:
        """The boxes from one band, low and high, both (P, N, nx); infinite where it says nothing."""
        columns, nx = list(self.outputs), self.centers.shape[-1]
        a, b = (part.expand(*self.known.shape, part.shape[-1]).clone() for part in linear)
        a[..., columns, :] += found.slope[..., :nx]
        b[..., columns, :] += found.slope[..., nx:]
        reach = grow(loop.rows(a, b) + bent, 1e-12) + _blur(self.known, a, b, self.z, loop)
        low, high = self.known - reach, self.known + reach
        low[..., columns] += torch.maximum(self.low - found.error, found.value - found.half)
        high[..., columns] += torch.minimum(self.high + found.error, found.value + found.half)
        return torch.where(low.isnan(), -torch.inf, low), torch.where(high.isnan(), torch.inf, high)

    def with_residual(self, value: Tensor) -> Enclosure:
        """The enclosure of one known residual function with values `value` (P, N, p) at z, and but its norm between."""
        return replace(self, low=value, high=value, policies=None, inner=None, peak=None)

    def select(self, index: Tensor) -> Enclosure:
        """The sub-family of policies."""
        names = ("z", "known", "known_radius", "metric", "slack", "low", "high", "cap")
        part = replace(self, **{name: getattr(self, name)[index] for name in names})
        return replace(
            part,
            policies=None if self.policies is None else selected(self.policies, index, self.centers[-1]),
            spread=None if self.spread is None else self.spread[index],
            inner=None if self.inner is None else (self.inner[0][index], self.inner[1][index]),
            peak=None if self.peak is None else self.peak[index],
        )

    def empty(self, *, tol: float = EMPTY) -> bool:
        """Whether F_n is empty at some z, by more than the share `tol` of `cap`: a falsified assumption."""
        return bool((self.low > self.high + _require.tolerance("Enclosure.empty", tol) * self.cap).any())

    def middle(self) -> tuple[Tensor, Tensor]:
        """Boxes of the next mean from the centres of the cells alone, low and high, both (P, N, nx): what is left of `boxes` as
        cells shrink."""
        low, high = self.known.clone(), self.known.clone()
        low[..., list(self.outputs)] += torch.maximum(self.low, -self.cap)
        high[..., list(self.outputs)] += torch.minimum(self.high, self.cap)
        return low, high

    def boxes(self) -> tuple[Tensor, Tensor]:
        """Outer boxes of the next mean, low and high, both (P, N, nx); the whole space for policies in one of whose cells F_n
        came out empty, wherever it lies: no function is left that the other boxes could hold of.
        """
        low = self.known - self.known_radius
        high = self.known + self.known_radius
        columns = list(self.outputs)
        ends = self.low - self.slack, self.high + self.slack
        low[..., columns] += torch.maximum(torch.minimum(*ends), -self.cap)  # at a point they may cross, by rounding
        high[..., columns] += torch.minimum(torch.maximum(*ends), self.cap)
        if self.inner is not None:
            low, high = torch.maximum(low, self.inner[0]), torch.minimum(high, self.inner[1])
        empty = (self.low > self.high + EMPTY * self.cap).flatten(1).any(-1)[:, None, None]
        return torch.where(empty, -torch.inf, low), torch.where(empty, torch.inf, high)


def residual_reach(confidence: ConfidenceSet, z: Tensor, dz: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What ‖f_j‖_k ≤ B_j says over boxes |z′ − z| ≤ dz (*b, nz): sup d_k, B sup d_k and B sup √k, (*b, p) each.

    Raises:
        ValueError: for a kernel without closed form, by name, or a bound that assumes no norm.
    """
    norm = confidence.bound.norms(confidence.model.num_outputs).to(z.device)
    if not bool(torch.isfinite(norm).all()):
        raise _require.fail("enclose", "a bound with a finite RKHS norm", confidence.bound.name)
    metrics, variances = [], []
    for kernel in confidence.model.kernels:
        metric, variance = kernels.metric_over_box(kernel, dz), kernels.variance_over_box(kernel, z, dz)
        if metric is None or variance is None:
            expected = "kernels with suprema over boxes (sums of RBF, Matérn and linear kernels)"
            raise _require.fail("enclose", expected, kernels.describe(kernel))
        metrics.append(metric)
        variances.append(variance)
    metric, cap = torch.stack(metrics, dim=-1), norm * torch.stack(variances, dim=-1).sqrt()
    return metric, grow(norm * metric, 1e-12), cap * (1 + 1e-15)


def enclose(centers: Tensor, radius: Tensor, confidence: ConfidenceSet, policies: PolicyClass) -> Enclosure:
    """Enclosure before any data: residuals in ±B√k(z, z). Cells are (N, nx) centres and radii."""
    model = confidence.model
    known, known_radius, u_reach = closed_loop_range(model.prior, policies, centers, radius)  # type: ignore[arg-type]
    z = _points(policies, centers)
    dz = torch.cat([radius.expand(policies.num, *radius.shape), u_reach], dim=-1)
    metric, slack, cap = residual_reach(confidence, z, dz)
    wide = confidence.bound.prior_width(model, z)
    return Enclosure(
        centers, radius, z, known, known_radius, metric, slack, -wide, wide, cap, model.kernels, model.outputs,
        source=confidence, policies=policies,
    )  # fmt: skip
