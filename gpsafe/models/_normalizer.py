"""Scaling of inputs and targets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require


@dataclass(frozen=True, slots=True, eq=False)
class Normalizer:
    """v ↦ (v − offset)/scale, (d,) each, scale > 0."""

    offset: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        offset, scale = _require.finite("Normalizer", "offset", self.offset), self.scale
        object.__setattr__(self, "offset", offset.detach().clone())
        object.__setattr__(self, "scale", _require.positive("Normalizer", "scale", scale).detach().clone())
        _require.shape("Normalizer", "scale", self.scale, tuple(self.offset.shape))

    @staticmethod
    def identity(dim: int) -> Normalizer:
        """v ↦ v."""
        return Normalizer(torch.zeros(dim, dtype=torch.float64), torch.ones(dim, dtype=torch.float64))

    @staticmethod
    def of(values: Tensor) -> Normalizer:
        """To mean 0 and standard deviation 1 over the rows of (n, d); a constant column keeps scale 1."""
        std = values.std(0, correction=0)
        return Normalizer(values.mean(0), torch.where(std < 1e-12, torch.ones_like(std), std))

    def to(self, device: torch.device | str) -> Normalizer:
        """The same map on another device."""
        return Normalizer(self.offset.to(device), self.scale.to(device))

    def __call__(self, values: Tensor) -> Tensor:
        return (values - self.offset) / self.scale
