"""Known parts p(x, u) with second derivatives bounded everywhere, so that ranges over cells are rigorous."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short


def _affine(x: Tensor, u: Tensor, A: Tensor, B: Tensor, c: Tensor) -> Tensor:
    x, u = _require.points("known part", "x", x, A.shape[1]), _require.points("known part", "u", u, B.shape[1])
    return x @ A.T.to(x.device) + u @ B.T.to(x.device) + c.to(x.device)


def _check_affine(where: str, A: Tensor, B: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    A, B, c = (_require.finite(where, name, value).clone() for name, value in (("A", A), ("B", B), ("c", c)))
    if A.ndim != 2 or A.shape[0] != A.shape[1]:
        raise _require.fail(where, "A of shape (nx, nx)", f"shape {tuple(A.shape)}")
    if B.ndim != 2 or B.shape[0] != A.shape[0]:
        raise _require.fail(where, f"B of shape ({A.shape[0]}, nu)", f"shape {tuple(B.shape)}")
    _require.shape(where, "c", c, (A.shape[0],))
    return A, B, c


@short
@dataclass(frozen=True, slots=True, eq=False)
class AffineKnown:
    """p(x, u) = A x + B u + c, with Hessian 0.

    Args:
        A: (nx, nx).
        B: (nx, nu).
        c: (nx,).
    """

    A: Tensor
    B: Tensor
    c: Tensor

    if TYPE_CHECKING:  # lists and arrays become tensors

        def __init__(self, A: _require.Numbers, B: _require.Numbers, c: _require.Numbers) -> None: ...

    def __post_init__(self) -> None:
        for name, value in zip("ABc", _check_affine("AffineKnown", self.A, self.B, self.c), strict=True):
            object.__setattr__(self, name, value)

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """p(x, u), (*b, nx), (*b, nu) → (*b, nx)."""
        return _affine(x, u, self.A, self.B, self.c)

    def jacobian(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """∂p/∂x = A (*b, nx, nx) and ∂p/∂u = B (*b, nx, nu)."""
        A, B = self.A.to(x.device), self.B.to(x.device)
        return A.expand(*x.shape[:-1], *A.shape), B.expand(*x.shape[:-1], *B.shape)

    @property
    def hessian_bound(self) -> Tensor:
        """0, (nx, nz, nz)."""
        nz = self.A.shape[0] + self.B.shape[1]
        return torch.zeros(self.A.shape[0], nz, nz, dtype=torch.float64, device=self.A.device)


@short
@dataclass(frozen=True, slots=True, eq=False)
class SineKnown:
    """p(x, u) = A x + B u + c + Σ_k amplitudes[k] sin(frequencies[k]·z + phases[k]) with z = (x, u).

    |∂²p_i/∂z_j∂z_l| ≤ Σ_k |amplitudes[k, i] frequencies[k, j] frequencies[k, l]| everywhere, since |sin| ≤ 1.

    Args:
        A: (nx, nx).
        B: (nx, nu).
        c: (nx,).
        amplitudes: (m, nx).
        frequencies: (m, nx + nu).
        phases: (m,).
    """

    A: Tensor
    B: Tensor
    c: Tensor
    amplitudes: Tensor
    frequencies: Tensor
    phases: Tensor

    def __post_init__(self) -> None:
        for name, value in zip("ABc", _check_affine("SineKnown", self.A, self.B, self.c), strict=True):
            object.__setattr__(self, name, value)
        nx, nz = self.A.shape[0], self.A.shape[0] + self.B.shape[1]
        phases = _require.finite("SineKnown", "phases", self.phases)
        m = phases.numel()
        for name, value, shape in (
            ("amplitudes", self.amplitudes, (m, nx)),
            ("frequencies", self.frequencies, (m, nz)),
            ("phases", phases, (m,)),
        ):
            tensor = _require.shape("SineKnown", name, _require.finite("SineKnown", name, value), shape).clone()
            object.__setattr__(self, name, tensor)

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """p(x, u), (*b, nx), (*b, nu) → (*b, nx)."""
        x, u = _require.floats("known part", "x", x), _require.floats("known part", "u", u)
        z = _require.points("known part", "(x, u)", torch.cat([x, u], dim=-1), self.frequencies.shape[1])
        waves = torch.sin(z @ self.frequencies.T.to(z.device) + self.phases.to(z.device))
        return _affine(x, u, self.A, self.B, self.c) + waves @ self.amplitudes.to(z.device)

    def jacobian(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """∂p/∂x (*b, nx, nx) and ∂p/∂u (*b, nx, nu), in closed form."""
        z = torch.cat([x, u], dim=-1)
        frequencies, amplitudes = self.frequencies.to(z.device), self.amplitudes.to(z.device)
        slope = torch.cos(z @ frequencies.T + self.phases.to(z.device))
        through = (slope.unsqueeze(-2) * amplitudes.T) @ frequencies
        return through[..., : x.shape[-1]] + self.A.to(z.device), through[..., x.shape[-1] :] + self.B.to(z.device)

    @property
    def hessian_bound(self) -> Tensor:
        """H (nx, nz, nz), see the class."""
        a, w = self.amplitudes.abs(), self.frequencies.abs()
        return torch.einsum("ki,kj,kl->ijl", a, w, w) * (1.0 + 1e-12)  # more than its rounding


def pendulum_known(
    *, gravity: float, gain: float, damping: float, dt: float, hanging_at_zero: bool, semi_implicit: bool
) -> SineKnown:
    """Euler step of θ̈ = ∓gravity sin θ + gain·u − damping·θ̇ on z = (θ, θ̇, u), without speed clip.

    Args:
        gravity: g/l times the inertia factor, 1/s².
        gain: angular acceleration per unit of input, 1/s².
        damping: 1/s.
        dt: step, s.
        hanging_at_zero: True: θ = 0 hangs (−gravity sin θ); False: θ = 0 is upright (+gravity sin θ).
        semi_implicit: True: θ⁺ = θ + dt·ω⁺; False (explicit Euler): θ⁺ = θ + dt·ω.
    """
    _require.positive("pendulum_known", "dt", dt)
    _require.positive("pendulum_known", "gravity", gravity)
    sign = -1.0 if hanging_at_zero else 1.0
    rows = torch.tensor([[0.0, 1.0 - dt * damping, dt * gain, sign * dt * gravity]], dtype=torch.float64)
    through = dt * rows if semi_implicit else torch.tensor([[0.0, dt, 0.0, 0.0]], dtype=torch.float64)
    table = torch.cat([through + torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64), rows])
    frequency = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    return SineKnown(table[:, :2], table[:, 2:3], zero, table[:, 3:].T.contiguous(), frequency, zero[:1])
