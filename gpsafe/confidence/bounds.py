"""Confidence bounds |f* − μ_n| ≤ β_n σ_n, one frozen class per theorem (theory §2).

Symbols: B = rkhs_norm, R = subgaussian, δ = delta (split as δ/p over p outputs), λ = the model's regulariser,
g_n = ½ log det(I + K_n/λ) = `GP.info_gain()`. A bound reads λ from the model and refuses one it does not cover, unless
told ``unchecked=True``, which marks everything computed from it as not sound.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.models.gp import GP

MARGIN = 1e-12  # outward rounding of the variance, relative to the prior variance


@dataclass(frozen=True, kw_only=True)
class ConfidenceBound(ABC):
    """Base of all bounds.

    Args:
        rkhs_norm: B ≥ ‖f*_j‖_k, scalar or one per learned output, > 0.
        subgaussian: R, scalar or one per learned output, > 0.
        delta: total failure probability, in (0, 1).
        unchecked: use the formula on a model it is not valid for; marks its output as not sound.
    """

    rkhs_norm: float | tuple[float, ...]
    subgaussian: float | tuple[float, ...]
    delta: float
    unchecked: bool = False

    name: ClassVar[str]
    source: ClassVar[str]
    sound: ClassVar[bool] = True

    def __post_init__(self) -> None:
        where = type(self).__name__
        for field in ("rkhs_norm", "subgaussian"):
            value = _require.positive(where, field, torch.as_tensor(getattr(self, field), dtype=torch.float64))
            object.__setattr__(self, field, float(value) if value.ndim == 0 else tuple(value.tolist()))
        _require.probability(where, "delta", self.delta)

    def _vector(self, field: str, size: int) -> Tensor:
        value = torch.atleast_1d(torch.as_tensor(getattr(self, field), dtype=torch.float64))
        if value.numel() not in (1, size):
            raise _require.fail(type(self).__name__, f"{field} scalar or of length {size}", value.tolist())
        return value.expand(size)

    def norms(self, outputs: int) -> Tensor:
        """B, (p,)."""
        return self._vector("rkhs_norm", outputs)

    def noise(self, outputs: int) -> Tensor:
        """R, (p,)."""
        return self._vector("subgaussian", outputs)

    def refusal(self, model: GP) -> str | None:
        """Why the theorem does not cover this model; None if it does."""
        if model.mode != "theory":
            return "a theory-mode model (this one may have been fitted to its data)"
        return None

    def check(self, model: GP) -> None:
        """Raises ValueError with the reason if the model is refused."""
        self._vector("rkhs_norm", model.num_outputs)
        self._vector("subgaussian", model.num_outputs)
        reason = None if self.unchecked else self.refusal(model)
        if reason is not None:
            got = f"mode={model.mode}, lambda={model.regularizer.tolist()}, n={model.num_data}"
            raise _require.fail(type(self).__name__, f"{reason}; pass unchecked=True to compute it anyway", got)

    def assumptions(self, model: GP) -> tuple[str, ...]:
        """What the bound believes."""
        listed = [f"rkhs_norm<={self.rkhs_norm}", f"subgaussian({self.subgaussian})", "kernel and lambda fixed before data"]
        if not self.sound:
            listed.append(f"{self.name} is not a theorem")
        if self.unchecked:
            listed.append(f"{self.name} used outside its theorem (unchecked)")
        return tuple(listed)

    @abstractmethod
    def _beta(self, model: GP, norm: Tensor, noise: Tensor, log_inv_delta: float) -> Tensor:
        """β (p,) from B (p,), R (p,) and ln(p/δ)."""

    def beta(self, model: GP) -> Tensor:
        """β_n per learned output, (p,)."""
        self.check(model)
        p = model.num_outputs
        return self._beta(model, self.norms(p), self.noise(p), math.log(p / self.delta))

    def interval(self, model: GP, z: Tensor) -> tuple[Tensor, Tensor]:
        """[μ − βσ, μ + βσ] of the residual at z (*b, d), both (*b, p), rounded outwards."""
        beta = self.beta(model).to(z.device)
        mean, std = model.posterior(z)
        half = beta * (std.square() + MARGIN * model.prior_variance(z)).sqrt()
        return mean - half, mean + half


class Mixture(ConfidenceBound):
    """β² = B² + (R²/λ)(2g_n + 2 ln(1/δ)): self-normalised mixture bound in closed form, any fixed λ."""

    name = "mixture"
    source = "theory §2; Flynn & Reeb 2024"

    def _beta(self, model: GP, norm: Tensor, noise: Tensor, log_inv_delta: float) -> Tensor:
        return (norm.square() + noise.square() / model.regularizer * 2 * (model.info_gain() + log_inv_delta)).sqrt()
