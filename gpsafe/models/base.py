"""What a dynamics model is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

from torch import Tensor

from gpsafe._show import short
from gpsafe.data import Transitions


@short
@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Prediction of x⁺: `mean` and epistemic `std` (*b, nx), aleatoric `noise_std` broadcastable to them."""

    mean: Tensor
    std: Tensor
    noise_std: Tensor


@runtime_checkable
class DynamicsModel(Protocol):
    """A belief about x⁺ = f(x, u) + w."""

    @property
    def nx(self) -> int: ...

    @property
    def nu(self) -> int: ...

    def predict(self, x: Tensor, u: Tensor) -> Prediction:
        """Prediction at x (*b, nx), u (*b, nu)."""
        ...

    def condition(self, data: Transitions) -> Self:
        """A new model that has also seen `data`; this one is unchanged."""
        ...
