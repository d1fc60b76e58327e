"""Known parts without a tape: values and exact derivatives from torch, for the compiled sweep
(:mod:`gpsafe.planning.mpc._sweeps`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpsafe.models._prior import Prior, known_part

Array = NDArray[np.float64]
Jets = tuple[Array, Array, Array]


@dataclass(frozen=True, slots=True)
class Part:
    """p along the nominal paths of a plan, x̄⁺ = p(x̄, ū) + network(x̄, ū).

    Attributes:
        known: p.
        networks: (x (M, nx), u (nu,), out (M, nx)): fills `out` with what the members add.
        members, nx: M and the state dimension.
    """

    known: Prior
    networks: Callable[[Array, Array, Array], None]
    members: int
    nx: int

    def jets(self, x0: Array, inputs: Array) -> Jets:
        """p (M, T, nx), its Jacobian (M, T, nx, nz) and Hessian (M, T, nx, nz, nz) in z = (x, u) for a plan (T, nu).

        Values step by step, since each point needs the last; derivatives of all points in one pass.
        """
        steps = len(inputs)
        x, added = np.tile(x0, (self.members, 1)), np.empty((self.members, self.nx))
        points = np.empty((self.members, steps, self.nx + inputs.shape[1]))
        with torch.no_grad():
            for k in range(steps):
                points[:, k, : self.nx], points[:, k, self.nx :] = x, inputs[k]
                if k + 1 < steps:
                    self.networks(x, inputs[k], added)
                    z = torch.from_numpy(points[:, k].copy())
                    x = known_part("CondensedSQP", self.known, z[:, : self.nx], z[:, self.nx :]).numpy() + added
        flat = jets(self.known, torch.from_numpy(points.reshape(-1, points.shape[-1])), self.nx)
        value, gradient, hessian = (np.ascontiguousarray(part.numpy()) for part in flat)
        shape = (self.members, steps)
        return tuple(part.reshape(*shape, *part.shape[1:]) for part in (value, gradient, hessian))  # type: ignore[return-value]


def jets(known: Prior, z: Tensor, nx: int) -> tuple[Tensor, Tensor, Tensor]:
    """p, ∂p and ∂²p at z (n, nz): (n, nx), (n, nx, nz), (n, nx, nz, nz).

    Two passes backward, whatever the sizes: of nx copies of the points, copy i answers for p_i; of nz copies of these, copy a
    for ∂p/∂z_a.

    Raises:
        RuntimeError: where torch has no gradient.
    """
    n, nz = z.shape
    with torch.enable_grad():
        copies = z.expand(nz, nx, n, nz).reshape(-1, nz).requires_grad_()
        value = known_part("CondensedSQP", known, copies[:, :nx], copies[:, nx:])
        own = value.reshape(nz, nx, n, nx).diagonal(dim1=1, dim2=3).sum()
        (gradient,) = torch.autograd.grad(own, copies, create_graph=True)
        second = torch.zeros_like(copies)
        if gradient.requires_grad:
            along = gradient.reshape(nz, nx, n, nz).diagonal(dim1=0, dim2=3).sum()
            (second,) = torch.autograd.grad(along, copies)
    values = value.detach().reshape(nz, nx, n, nx)[0, 0]
    slopes = gradient.detach().reshape(nz, nx, n, nz)[0].movedim(0, 1)
    return values, slopes, second.reshape(nz, nx, n, nz).movedim(2, 0).movedim(1, 2)
