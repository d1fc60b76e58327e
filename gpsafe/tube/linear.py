"""Linear plants with a bounded disturbance: where everything about tubes is provable without any learning."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._pinned import numbers_of, same_numbers
from gpsafe._show import short
from gpsafe.assumptions import Assumption, Believed, listed
from gpsafe.systems.known import AffineKnown
from gpsafe.tube.core import MODES, Linearisation, Mode


@short
@dataclass(frozen=True, slots=True, eq=False)
class LinearTube:
    """x⁺ = Ax + Bu + c + w with w ∈ E(0, diag half_axes²).

    Args:
        plant: A, B, c.
        half_axes: (nx,), ≥ 0.
        mode: "sound" by default.
    """

    plant: AffineKnown
    half_axes: Tensor
    mode: Mode = "sound"
    _numbers: tuple[Tensor, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        _require.one_of("LinearTube", "mode", self.mode, MODES)
        half_axes = _require.half_axes("LinearTube", "half_axes", self.half_axes).clone()
        object.__setattr__(self, "half_axes", _require.shape("LinearTube", "half_axes", half_axes, (self.nx,)))
        object.__setattr__(self, "_numbers", numbers_of((self.plant, self.half_axes)))

    @property
    def edited(self) -> str | None:
        """See `TubeModel`; of the published tube nothing is claimed."""
        same = self.mode == "paper" or same_numbers(numbers_of((self.plant, self.half_axes)), self._numbers)
        return None if same else "the plant and half-axes of which this tube was made"

    @property
    def nx(self) -> int:
        """State dimension."""
        return self.plant.A.shape[0]

    @property
    def nu(self) -> int:
        """Input dimension."""
        return self.plant.B.shape[1]

    @property
    def num_members(self) -> int:
        """1."""
        return 1

    @property
    def assumptions(self) -> tuple[Believed, ...]:
        """The plant's matrices and the bound on w."""
        axes = f": half-axes {self.half_axes.tolist()}, at every step"
        return listed(
            Assumption.KNOWN_OUTPUTS(" (all states)"), Assumption.NOISE_ELLIPSOID(axes), Assumption.ROUNDING()
        )

    def linearise(self, x: Tensor, u: Tensor) -> Linearisation:
        """Exact."""
        A, B = self.plant.jacobian(x, u)
        return Linearisation(self.plant(x, u), A, B, self.half_axes.square().to(x.device).expand(x.shape))

    def unseen(self, reach: Tensor, moved: Tensor) -> Tensor:
        """0, see `gpsafe.tube.core.sizes`: c is no larger than the terms that are seen."""
        return torch.zeros_like(reach)

    def remainder(self, x: Tensor, u: Tensor, factor: Tensor, gain: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(x)
