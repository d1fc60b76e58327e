"""What a plant is: x⁺ = f*(x, u) + w with w ~ N(0, diag(noise_std²)), a cost in [0, C] and a budget (theory §1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.sets import Box


@runtime_checkable
class Cost(Protocol):
    """A state cost c(x) ∈ [0, ceiling] together with its exact supremum over boxes."""

    @property
    def ceiling(self) -> float: ...

    def __call__(self, x: Tensor) -> Tensor:
        """c(x), (*b, nx) → (*b,)."""
        ...

    def upper(self, lower: Tensor, upper: Tensor) -> Tensor:
        """sup of c over the boxes [lower, upper], (*b, nx) ×2 → (*b,)."""
        ...

    def lower(self, lower: Tensor, upper: Tensor) -> Tensor:
        """inf of c over the boxes, (*b, nx) ×2 → (*b,)."""
        ...


def _support(normal: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """min and max of normal·x over boxes."""
    positive, negative = normal.clamp_min(0.0), normal.clamp_max(0.0)
    return lower @ positive + upper @ negative, upper @ positive + lower @ negative


@dataclass(frozen=True, slots=True, eq=False)
class IndicatorCost:
    """c(x) = 1{normals[i]·x > offsets[i] for some i}: the state has left the polytope {normals x ≤ offsets}.

    Args:
        normals: (m, nx).
        offsets: (m,).
    """

    normals: Tensor
    offsets: Tensor

    def __post_init__(self) -> None:
        normals = _require.finite("IndicatorCost", "normals", self.normals)
        if normals.ndim != 2:
            raise _require.fail("IndicatorCost", "normals of shape (m, nx)", f"shape {tuple(normals.shape)}")
        offsets = _require.finite("IndicatorCost", "offsets", self.offsets)
        _require.shape("IndicatorCost", "offsets", offsets, (normals.shape[0],))
        object.__setattr__(self, "normals", normals)
        object.__setattr__(self, "offsets", offsets)

    @property
    def ceiling(self) -> float:
        """C = 1."""
        return 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """1 outside the polytope, 0 inside."""
        return (x @ self.normals.T > self.offsets).any(-1).to(x.dtype)

    def upper(self, lower: Tensor, upper: Tensor) -> Tensor:
        """1 if the box meets the unsafe set (exact: each half-space is tested by its support function)."""
        reach = torch.stack([_support(n, lower, upper)[1] for n in self.normals], dim=-1)
        return (reach > self.offsets).any(-1).to(lower.dtype)

    def lower(self, lower: Tensor, upper: Tensor) -> Tensor:
        """1 only if one half-space alone shows that the whole box is unsafe (an under-approximation for m > 1)."""
        reach = torch.stack([_support(n, lower, upper)[0] for n in self.normals], dim=-1)
        return (reach > self.offsets).any(-1).to(lower.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class HingeCost:
    """c(x) = min(max(normal·x − offset, 0), ceiling)."""

    normal: Tensor
    offset: float
    ceiling: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "normal", _require.finite("HingeCost", "normal", self.normal))
        _require.positive("HingeCost", "ceiling", self.ceiling)

    def __call__(self, x: Tensor) -> Tensor:
        """Clipped distance beyond the half-space."""
        return (x @ self.normal - self.offset).clamp(0.0, self.ceiling)

    def upper(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Exact sup over boxes."""
        return (_support(self.normal, lower, upper)[1] - self.offset).clamp(0.0, self.ceiling)

    def lower(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Exact inf over boxes."""
        return (_support(self.normal, lower, upper)[0] - self.offset).clamp(0.0, self.ceiling)


@runtime_checkable
class System(Protocol):
    """A plant. Everything is batched over leading dimensions and pure."""

    @property
    def name(self) -> str:
        """Short name."""
        ...

    @property
    def nx(self) -> int:
        """State dimension."""
        ...

    @property
    def nu(self) -> int:
        """Input dimension."""
        ...

    @property
    def state_box(self) -> Box:
        """Region on which the system is meant to be studied."""
        ...

    @property
    def input_box(self) -> Box:
        """Limits of u; what is outside is the caller's error."""
        ...

    @property
    def noise_std(self) -> Tensor:
        """Standard deviations of w, (nx,)."""
        ...

    @property
    def initial_state(self) -> Tensor:
        """x₀, (nx,)."""
        ...

    @property
    def horizon(self) -> int:
        """T."""
        ...

    @property
    def cost(self) -> Cost:
        """c."""
        ...

    @property
    def budget(self) -> float:
        """d: E Σ_{t<T} c(x_t) ≤ d."""
        ...

    def mean(self, x: Tensor, u: Tensor) -> Tensor:
        """f*(x, u), (*b, nx), (*b, nu) → (*b, nx)."""
        ...

    def reward(self, x: Tensor, u: Tensor) -> Tensor:
        """r(x, u), → (*b,)."""
        ...


@runtime_checkable
class KnownPart(Protocol):
    """A smooth known mean p(x, u) with a bound on its second derivatives, so that its range over a cell is rigorous."""

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """p(x, u), → (*b, nx)."""
        ...

    @property
    def hessian_bound(self) -> Tensor:
        """H (nx, nz, nz), z = (x, u): |∂²p_i/∂z_j∂z_k| ≤ H_ijk everywhere."""
        ...


def step(system: System, x: Tensor, u: Tensor, w: Tensor) -> Tensor:
    """x⁺ = f*(x, u) + w for given noise w."""
    return system.mean(x, u) + w


def sample_noise(noise_std: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """w ~ N(0, diag(noise_std²)), shape (*shape, nx), on the generator's device."""
    draw = torch.randn(
        *shape, noise_std.numel(), dtype=torch.float64, generator=generator, device=generator.device
    )
    return draw * noise_std.to(draw.device)
