"""What regression models with a known mean and known noise share: checking, embedding, accumulating data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.data import Transitions
from gpsafe.models._prior import Prior, check_prior, known_part
from gpsafe.models.base import Prediction


@dataclass(frozen=True, slots=True, eq=False)
class ResidualModel(ABC):
    """x⁺ = prior(x, u) + residual(z) + w, the residual learnt for the states `outputs`, w of known `noise_std` (nx,).

    Nothing that such a model says about its own error is a bound.
    """

    nx: int
    nu: int
    noise_std: Tensor
    outputs: tuple[int, ...]
    prior: Prior
    seed: int
    data: Transitions | None

    @staticmethod
    def check(
        where: str,
        nx: int,
        nu: int,
        noise_std: Tensor | Sequence[float] | float,
        outputs: Sequence[int] | None,
        prior: Prior,
    ) -> tuple[Tensor, tuple[int, ...]]:
        """Noise as (nx,) and the learned outputs (all by default)."""
        _require.count(where, "nx", nx)
        _require.count(where, "nu", nu, minimum=0)
        check_prior(where, prior, nx, nu)
        noise = torch.atleast_1d(_require.positive(where, "noise_std", noise_std))
        if noise.numel() not in (1, nx):
            raise _require.fail(where, f"noise_std scalar or of shape ({nx},)", f"shape {tuple(noise.shape)}")
        learned = slice(None) if outputs is None else outputs
        return noise.expand(nx).clone(), _require.positions(where, "outputs", learned, nx)

    def condition(self, data: Transitions) -> Self:
        """Fitted to everything seen so far plus `data`; deterministic. This model is unchanged."""
        where = f"{type(self).__name__}.condition"
        if data.x.shape[-1] != self.nx or data.u.shape[-1] != self.nu:
            got = (data.x.shape[-1], data.u.shape[-1])
            raise _require.fail(where, f"transitions with (nx, nu) = ({self.nx}, {self.nu})", got)
        seen = data if self.data is None else self.data + data
        with torch.inference_mode(False), torch.enable_grad():
            residual = (seen.x_next - known_part(where, self.prior, seen.x, seen.u))[:, list(self.outputs)]
            return replace(self._fitted(seen.z, residual.detach()), data=seen)

    def predict(self, x: Tensor, u: Tensor) -> Prediction:
        """x⁺ = prior + residual; std is 0 for outputs that are known."""
        where = type(self).__name__
        x = _require.points(where, "x", x, self.nx)
        u = _require.points(where, "u", u, self.nu)
        z = torch.cat([x, u], dim=-1)
        mean, std = self._residual(z.reshape(-1, self.nx + self.nu))
        full = torch.zeros(2, *z.shape[:-1], self.nx, dtype=torch.float64, device=z.device)
        full[..., list(self.outputs)] = torch.stack([mean, std]).reshape(2, *z.shape[:-1], len(self.outputs))
        return Prediction(known_part(where, self.prior, x, u) + full[0], full[1], self.noise_std.to(z.device))

    def _generator(self, count: int) -> torch.Generator:
        """Randomness of the fit to `count` transitions."""
        return torch.Generator().manual_seed((self.seed + 0x9E3779B97F4A7C15 * count) % 2**63)

    @abstractmethod
    def _fitted(self, z: Tensor, y: Tensor) -> Self:
        """The model fitted to residuals y (n, p) at z (n, d)."""

    @abstractmethod
    def _residual(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of the residual at z (m, d), (m, p) each."""
