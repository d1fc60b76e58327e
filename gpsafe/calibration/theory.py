"""The Gaussian process with the multiple of σ that its theorem asks for, beside those that were fitted.

With a norm B that is known and kernel, λ fixed before the data, |f* − μ| ≤ βσ holds everywhere at once with probability 1 − δ.
From data alone neither is known: then B is read off as a multiple of ‖μ_n‖, and what comes out is a number to compare with, no
theorem. Rows can refute it: f* inside the band and R-sub-Gaussian noise keep all m·p residuals within βσ + R√(2 ln(2mp/δ)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._sealed import Seal, require_unbroken, sealed
from gpsafe._show import short
from gpsafe.assumptions import Assumption, Believed, listed
from gpsafe.confidence import Mixture
from gpsafe.data import Transitions
from gpsafe.models import GP


@short
@dataclass(frozen=True, slots=True, eq=False)
class Theory:
    """β of the learned outputs and what it rests on.

    Attributes:
        beta: (p,).
        rkhs_norm: B, (p,), given or read off.
        subgaussian: R, (p,).
        delta: δ.
        sound: whether B was given and the model is one of theory.
        assumptions: in words.
    """

    beta: Tensor
    rkhs_norm: Tensor
    subgaussian: Tensor
    delta: float
    sound: bool
    assumptions: tuple[Believed, ...]
    _seal: Seal | None = field(default=None)

    def __post_init__(self) -> None:
        require_unbroken("Theory", self)

    def outside(self, model: GP, rows: Transitions) -> int:
        """How many of the rows have an output that refutes the band, noise granted."""
        told = model.predict(rows.x, rows.u)
        chosen = list(model.outputs)
        error, std = (rows.x_next - told.mean)[:, chosen].abs(), told.std[:, chosen]
        room = self.subgaussian * math.sqrt(2 * math.log(2 * error.numel() / self.delta))
        return int((~(error <= self.beta * std + room)).any(-1).sum())


def theory_band(
    model: GP,
    *,
    rkhs_norm: Tensor | None = None,
    subgaussian: Tensor | None = None,
    delta: float = 0.1,
    margin: float = 2.0,
) -> Theory:
    """β of the mixture bound (theory §2.3).

    Args:
        model: with data.
        rkhs_norm: B (p,); None: `margin` times the norm of the posterior mean, which proves nothing.
        subgaussian: R (p,); None: the noise of the model.
        delta: δ.
        margin: see above.
    """
    _require.kind("theory_band", "model", model, GP)
    noise = model.noise_std[list(model.outputs)] if subgaussian is None else subgaussian
    norm = margin * model.posterior_norm().clamp_min(1e-12) if rkhs_norm is None else rkhs_norm
    norm, noise = (torch.as_tensor(v, dtype=torch.float64).expand(model.num_outputs) for v in (norm, noise))
    sound = rkhs_norm is not None and model.mode == "theory"
    bound = Mixture(rkhs_norm=tuple(norm.tolist()), subgaussian=tuple(noise.tolist()), delta=delta, unchecked=not sound)
    told = listed(bound.assumptions(model))
    if rkhs_norm is None:
        told = listed(told, [Assumption.NOT_A_THEOREM(f": B is {margin:g} times the norm of the posterior mean")])
    return sealed(Theory(bound.beta(model), norm, noise, delta, sound, told))
