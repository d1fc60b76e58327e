"""Known parts of models: evaluated with their shape checked, and differentiated."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from gpsafe import _require, linalg

Prior = Callable[[Tensor, Tensor], Tensor]


def zero_prior(x: Tensor, u: Tensor) -> Tensor:
    """Known mean 0."""
    return torch.zeros_like(x)


def identity_prior(x: Tensor, u: Tensor) -> Tensor:
    """Known mean x: the model learns state differences."""
    return x


@dataclass(frozen=True, slots=True)
class PlainKnown:
    """p(x, u) = 0, or x if `identity`, with the Jacobian and the second derivatives, which are 0: what certified costs ask of a
    known part (`gpsafe.systems.base.KnownPart`).
    """

    nx: int
    nu: int
    identity: bool

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """p(x, u), (*b, nx), (*b, nu) → (*b, nx), in memory of its own: callers add to it."""
        value = x if self.identity else torch.zeros_like(x)
        return value.expand(*_require.batch(x, u), self.nx).clone()

    def jacobian(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """∂p/∂x, identity or 0 (*b, nx, nx), and ∂p/∂u = 0 (*b, nx, nu)."""
        zero = torch.zeros(self.nx, self.nx + self.nu, dtype=x.dtype, device=x.device)
        by_x = torch.eye(self.nx, dtype=x.dtype, device=x.device) if self.identity else zero[:, : self.nx]
        by_u = zero[:, self.nx :]
        return by_x.expand(*x.shape[:-1], *by_x.shape), by_u.expand(*x.shape[:-1], *by_u.shape)

    @property
    def hessian_bound(self) -> Tensor:
        """0, (nx, nz, nz)."""
        return torch.zeros(self.nx, self.nx + self.nu, self.nx + self.nu, dtype=torch.float64)


def with_derivatives(prior: Prior, nx: int, nu: int) -> Prior:
    """`zero_prior` and `identity_prior` as known parts of (nx, nu) whose derivatives are stated; others as given."""
    if prior is zero_prior or prior is identity_prior:
        return PlainKnown(nx, nu, prior is identity_prior)
    return prior


@dataclass(frozen=True, slots=True, eq=False)
class Shifted:
    """p(x, u) + slope z + offset; slope (nx, nx + nu), offset (nx,)."""

    prior: Prior
    slope: Tensor
    offset: Tensor

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """The sum, (*b, nx), (*b, nu) → (*b, nx)."""
        lead = _require.batch(x, u)
        z = torch.cat([x.expand(*lead, -1), u.expand(*lead, -1)], dim=-1)
        return known_part("Shifted", self.prior, x, u) + z @ self.slope.T.to(z.device) + self.offset.to(z.device)

    def jacobian(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """∂/∂x (*b, nx, nx) and ∂/∂u (*b, nx, nu)."""
        whole = prior_jacobian("Shifted", self.prior, x, u) + self.slope.to(x.device)
        whole = whole.expand(*x.shape[:-1], *self.slope.shape)
        return whole[..., : x.shape[-1]], whole[..., x.shape[-1] :]


@dataclass(frozen=True, slots=True, eq=False)
class ShiftedKnown(Shifted):
    """`Shifted` of a known part that bounds its second derivatives, to which an affine term adds nothing."""

    @property
    def hessian_bound(self) -> Tensor:
        """(nx, nz, nz)."""
        return cast(Any, self.prior).hessian_bound


def shifted(prior: Prior, slope: Tensor, offset: Tensor) -> Prior:
    """`prior` + slope z + offset; with the derivatives and the bounds that it states."""
    base = with_derivatives(prior, slope.shape[0], slope.shape[1] - slope.shape[0])
    if not bool((slope != 0).any() | (offset != 0).any()):
        return base
    return (ShiftedKnown if hasattr(base, "hessian_bound") else Shifted)(base, slope, offset)


def known_part(where: str, prior: Prior, x: Tensor, u: Tensor) -> Tensor:
    """prior(x, u) at x (*b, nx), u (*b, nu), (*b, nx).

    A constant (nx,) is expanded. Anything else that would only fit by broadcasting is refused: (n,) against (n, nx) gives
    (n, n), a column gives every state the same value.

    Raises:
        ValueError: that names the shape, or numbers of less width than x, which is another function by their rounding.
    """
    value = prior(x, u)
    if isinstance(value, Tensor) and value.dtype not in (torch.float64, x.dtype):
        raise _require.fail(where, f"a prior (known part) in {torch.float64}", value.dtype)
    expected = (*_require.batch(x, u), x.shape[-1])
    if isinstance(value, Tensor) and tuple(value.shape) == expected:
        return value
    got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    if isinstance(value, Tensor) and tuple(value.shape) == expected[-1:]:
        # a constant, unless it is one number for each of nx points: with one more axis the two differ
        again = prior(x.unsqueeze(0), u.unsqueeze(0))
        if again.shape == value.shape:
            return value.expand(expected)
    raise _require.fail(where, f"a prior (known part) that returns shape {expected} for x {tuple(x.shape)}", got)


def check_prior(where: str, prior: Prior, nx: int, nu: int) -> None:
    """Refuses a known part whose value at a few zeros has another shape, and one that writes on its arguments, itself or in a
    derivative that it states: what it is given may be the task's x_0, and certificates would then speak of another.

    One that cannot be evaluated there (another device, another domain) is checked at every later use.
    """
    x, u = torch.zeros(nx + 2, nx, dtype=torch.float64), torch.zeros(nx + 2, nu, dtype=torch.float64)
    try:
        with torch.no_grad():
            value = prior(x, u)
    except Exception:
        return
    z, w = (torch.zeros(nx + 2, nx + nu, dtype=torch.float64) for _ in range(2))
    for name, given in (("jacobian", (x, u)), ("linearise", (x, u)), ("hessian_over", (z, w))):
        with contextlib.suppress(Exception), torch.no_grad():  # one that is not there, or not for these
            getattr(prior, name)(*given)
    if _require.written(x, u, z, w):
        raise _require.fail(
            where, "a prior (known part) that leaves its arguments as they are", "one that writes on them"
        )
    known_part(where, lambda *_: value, x, u)
    _check_rows(where, prior, nx, nu)
    check_derivatives(where, prior, nx, nu)


def _check_rows(where: str, prior: Prior, nx: int, nu: int) -> None:
    """Refuses a known part whose value at a point depends on what else is asked, as by a norm over the whole batch: data would
    leave out another part of the plant than is added again. One that cannot be evaluated at drawn points is not checked.
    """
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, nx + nu, dtype=torch.float64, generator=generator)
    try:
        with torch.no_grad():
            whole, alone = (known_part(where, prior, part[:, :nx], part[:, nx:]) for part in (z, z[1:2]))
    except Exception:
        return
    if not linalg.alike(alone.double(), whole.double(), slice(1, 2)):
        expected = "a prior (known part) of each row of a batch for itself"
        raise _require.fail(where, expected, "rows that depend on each other (a sum or norm over the whole batch?)")


def check_derivatives(where: str, prior: Prior, nx: int, nu: int) -> None:
    """Refuses a known part that bounds its second derivatives and then leaves |p(z + δ) − p(z) − Jδ| ≤ ½ Σ_jk H_ijk |δ_jδ_k| at
    drawn z and δ: its `jacobian` or `hessian_bound` is another function's, or it leaves torch, so that differentiation
    sees a constant. None found is no proof. One that cannot be evaluated there is not checked.
    """
    bound = getattr(prior, "hessian_bound", None)
    if not isinstance(bound, Tensor) or bound.shape != (nx, nx + nu, nx + nu):
        return
    generator = torch.Generator().manual_seed(0)
    z, direction = torch.randn(2, 64, nx + nu, dtype=torch.float64, generator=generator)
    step = direction * torch.tensor([1e-3, 0.03, 0.3, 3.0], dtype=torch.float64).repeat(16).unsqueeze(-1)
    moved, H = z + step, bound.to(torch.float64)
    try:
        with torch.no_grad():
            ends = [known_part(where, prior, p[:, :nx].clone(), p[:, nx:].clone()).double() for p in (z, moved)]
    except Exception:
        return
    slope = prior_jacobian(where, prior, z[:, :nx].clone(), z[:, nx:].clone()).detach().double()
    linear = (slope @ step.unsqueeze(-1)).squeeze(-1)
    most = 0.5 * torch.einsum("ijk,nj,nk->ni", H, step.abs(), step.abs())
    off, room = (ends[1] - ends[0] - linear).abs(), 1e-9 * (1.0 + ends[0].abs() + ends[1].abs() + linear.abs())
    wrong = off > most + room  # what is not a number accuses nobody
    if bool(wrong.any()):
        k, i = torch.nonzero(wrong)[0].tolist()
        told = f"state {i} {float(off[k, i]):.4g} off where hessian_bound allows {float(most[k, i]):.4g}"
        told += f", from z = {z[k].tolist()} by {step[k].tolist()}"
        raise _require.fail(where, "a known part within its own hessian_bound of its linearisation", told)


def linearised_prior(where: str, prior: Prior, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """`known_part` and `prior_jacobian`, in one call where the known part has a `linearise` of its own."""
    both = getattr(prior, "linearise", None)
    if both is None:
        return known_part(where, prior, x, u), prior_jacobian(where, prior, x, u)
    value, by_x, by_u = both(x, u)
    value = known_part(where, lambda *_: value, x, u)
    jacobian = torch.cat([by_x, by_u], dim=-1)
    return value, _require.shape(where, "the prior's jacobian", jacobian, (*value.shape, x.shape[-1] + u.shape[-1]))


def prior_jacobian(where: str, prior: Prior, x: Tensor, u: Tensor) -> Tensor:
    """∂prior/∂(x, u) at x (*b, nx), u (*b, nu): (*b, nx, nx + nu), or (nx, nx + nu) where it is the same everywhere.

    The known part's own `jacobian` is used if it has one; else it is differentiated, in one sweep for all points and outputs.
    """
    nx = x.shape[-1]
    size = nx + u.shape[-1]
    if prior is zero_prior or prior is identity_prior:
        eye = torch.eye(nx, size, dtype=x.dtype, device=x.device)
        return eye if prior is identity_prior else torch.zeros_like(eye)
    closed = getattr(prior, "jacobian", None)
    if closed is not None:
        value = torch.cat(closed(x, u), dim=-1)
        return _require.shape(where, "the prior's jacobian", value, (*x.shape, size))
    batch = _require.batch(x, u)
    z = torch.cat([x.expand(*batch, nx), u.expand(*batch, size - nx)], dim=-1)

    def diagonal(rows: Tensor) -> Tensor:
        """Σ_i p_i(z_i) of one copy z_i of the points for each output: its gradient in z_i is that of p_i alone."""
        return known_part(where, prior, rows[..., :nx], rows[..., nx:]).diagonal(dim1=0, dim2=-1).sum()

    try:
        found: Tensor = torch.func.grad(diagonal)(z.expand(nx, *z.shape))
    except RuntimeError as error:  # numbers that leave torch, say
        expected = "a known part that torch can differentiate, or one with a `jacobian` of its own"
        raise _require.fail(where, expected, _require.told(error)) from error
    return found.movedim(0, -2)
