"""Rigorous boxes of next means over cells of states, for many policies at once (theory §3.3, §5.1, §5.5)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.confidence.set import ConfidenceSet
from gpsafe.cost._lineage import continues
from gpsafe.models._prior import prior_jacobian
from gpsafe.policies import PolicyClass, feedback
from gpsafe.rkhs import kernels
from gpsafe.systems.base import KnownPart, known_with_bound

EMPTY = 1e-9  # l_n may exceed h_n by rounding only


def grow(value: Tensor, relative: float = 1e-9) -> Tensor:
    """Outward rounding of an upper bound."""
    return value + relative * (1.0 + value.abs())


def closed_loop_range(
    known: KnownPart, policies: PolicyClass, centers: Tensor, radius: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Range of x ↦ p(x, π_i(x)) over boxes, keeping cancellations between plant and feedback.

    With A, B the Jacobians of p at (c, π(c)), s ∈ [low, high] the policy's slope over the box, d = x − c and e what the
    policy's gain G leaves out (`Feedback.remainder`): p = p(c, π(c)) + (A + B diag(s) G) d + B diag(s) e + ½ dzᵀ H dz.
    The row norm Σ_j |A + B s G|_ij r_j is convex in s: for one input its maximum is at an end; for several inputs the
    ends are combined by the triangle inequality.

    Args:
        known: p with `hessian_bound`.
        policies: P policies with `slopes` or `feedback`.
        centers, radius: (N, nx).

    Returns:
        centre (P, N, nx), half-width (P, N, nx), and reach of the inputs |π(x) − π(c)| (P, N, nu).
    """
    known_with_bound("closed_loop_range", known)
    slope = feedback(policies, (centers - radius).unsqueeze(0), (centers + radius).unsqueeze(0))
    low, high = slope.low, slope.high
    u = policies(centers.unsqueeze(0))
    x = centers.expand(u.shape[0], *centers.shape)
    gain = slope.gain.expand(*u.shape, centers.shape[-1])
    middle = known(x, u)
    a, b = jacobians(known, x, u)
    if u.shape[-1] == 1:
        ends = [a + b * (s.unsqueeze(-1) * gain) for s in (low, high)]
        reach = torch.maximum(*[torch.einsum("pnix,nx->pni", end.abs(), radius) for end in ends])
    else:
        mid, half = 0.5 * (low + high), 0.5 * (high - low)
        row = a + torch.einsum("pniu,pnu,pnux->pnix", b, mid, gain)
        reach = torch.einsum("pnix,nx->pni", row.abs(), radius)
        reach = reach + torch.einsum("pniu,pnu,pnux,nx->pni", b.abs(), half, gain.abs(), radius)
    bent = high * slope.remainder
    reach = reach + torch.einsum("pniu,pnu->pni", b.abs(), bent)
    u_reach = high * torch.einsum("pnux,nx->pnu", gain.abs(), radius) + bent
    dz = torch.cat([radius.expand(u_reach.shape[0], *radius.shape), u_reach], dim=-1)
    hessian = known.hessian_bound.to(dz.device)
    if bool((hessian != 0).any()):
        reach = reach + 0.5 * torch.einsum("ijk,pnj,pnk->pni", hessian, dz, dz)
    return middle, grow(reach, 1e-12), u_reach


def jacobians(known: KnownPart, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """∂p/∂x (*b, nx, nx) and ∂p/∂u (*b, nx, nu): the known part's own `jacobian`, if it has one, else by differentiation."""
    closed = getattr(known, "jacobian", None)
    if closed is not None:
        return closed(x, u)
    found = prior_jacobian("jacobians", known, x, u)
    return found[..., : x.shape[-1]], found[..., x.shape[-1] :]


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

    def refine(self, confidence: ConfidenceSet) -> Enclosure:
        """Intersects the generations of the confidence set that are new since the last call."""
        if self.source is not None and not continues(self.source, self.generations, confidence):
            raise _require.fail("Enclosure.refine", "a confidence set that continues the last one", "another history")
        if len(confidence.generations) == self.generations:
            return self
        low, high = confidence.bounds(self.z, since=self.generations)
        low, high = torch.maximum(low, self.low), torch.minimum(high, self.high)
        return replace(self, low=low, high=high, generations=len(confidence.generations), source=confidence)

    def with_residual(self, value: Tensor) -> Enclosure:
        """The enclosure of one known residual function with values `value` (P, N, p) at z."""
        return replace(self, low=value, high=value)

    def select(self, index: Tensor) -> Enclosure:
        """The sub-family of policies."""
        names = ("z", "known", "known_radius", "metric", "slack", "low", "high", "cap")
        return replace(self, **{name: getattr(self, name)[index] for name in names})

    def empty(self, *, tol: float = EMPTY) -> bool:
        """Whether F_n is empty at some z: a falsified assumption."""
        return bool((self.low > self.high + tol).any())

    def boxes(self) -> tuple[Tensor, Tensor]:
        """Outer boxes of the next mean, low and high, both (P, N, nx); the whole space where F_n came out empty: nothing is
        claimed there.
        """
        low = self.known - self.known_radius
        high = self.known + self.known_radius
        columns = list(self.outputs)
        low[..., columns] += torch.maximum(self.low - self.slack, -self.cap)
        high[..., columns] += torch.minimum(self.high + self.slack, self.cap)
        empty = (self.low > self.high + EMPTY).any(-1, keepdim=True)
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
    z = torch.cat([centers.expand(policies.num, *centers.shape), policies(centers.unsqueeze(0))], dim=-1)
    dz = torch.cat([radius.expand(policies.num, *radius.shape), u_reach], dim=-1)
    metric, slack, cap = residual_reach(confidence, z, dz)
    wide = confidence.bound.prior_width(model, z)
    return Enclosure(
        centers, radius, z, known, known_radius, metric, slack, -wide, wide, cap, model.kernels, model.outputs,
        source=confidence,
    )  # fmt: skip
