"""What a model's bars claim: of f* and of the next state, as it says them or recalibrated.

Two claims are read off a model, output by output: an interval for f*(x, u), which a set of policies believes, and one for the
next state, which a tube believes.

    scale       f*                            next state                        rests on
    plain       μ ± 2σ                        μ ± 1·√(σ² + σ_w²)                nothing: a constant, and the published tube
    raw         the interval of x⁺            μ ± z·√(σ² + σ_w²)                the model's word; z = Φ⁻¹(1 − δ/2)
    scale       the interval of x⁺            `ScaledStd`                       its assumptions
    isotonic    the interval of x⁺            `Isotonic`                        its assumptions
    conformal   the interval of x⁺            `Conformal`                       its assumptions
    theory      μ ± βσ                        μ ± (βσ + zσ_w)                   the GP's theorem (or 2‖μ_n‖ for B), normal noise

Held-out rows show next states alone, so that a recalibrated model has one interval for both. It claims less of f*: if the noise
is symmetric and f* lies outside on one side, so does x⁺ with probability ≥ ½, hence P(f* outside) ≤ 2 P(x⁺ outside).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._sealed import Seal, require_unbroken, sealed
from gpsafe._show import short
from gpsafe.assumptions import Assumption, Believed, listed
from gpsafe.calibration.coverage import total_std
from gpsafe.calibration.recalibration import Conformal, Isotonic, Recalibrated, ScaledStd, _gaussian
from gpsafe.calibration.theory import Theory, theory_band
from gpsafe.data import Transitions
from gpsafe.models import GP, DynamicsModel

SCALES = ("plain", "raw", "scale", "isotonic", "conformal", "theory")
RECALIBRATED: dict[str, Callable[..., Recalibrated]] = {
    "scale": ScaledStd.fit,
    "isotonic": Isotonic.fit,
    "conformal": Conformal.fit,
}
CONSTANT = 2.0  # multiple of σ that codes of ActSafe's kind take for f*


@short
@dataclass(frozen=True, slots=True, eq=False)
class Bars:
    """What a model claims of f* and of the next state: see the module, and `bars`.

    Attributes:
        model: with data; recalibrated, where the scale is a recalibration.
        scale: one of `SCALES`.
        function: multiple of σ for f*, (nx,); None: the interval of the next state.
        state: multiple of √(σ² + σ_w²) for the next state.
        delta: δ.
        assumptions: what the claims rest on.
    """

    model: DynamicsModel
    scale: str
    function: Tensor | None
    state: float
    delta: float
    assumptions: tuple[Believed, ...]
    _seal: Seal | None = field(default=None)

    def __post_init__(self) -> None:
        require_unbroken("Bars", self)

    def of_function(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Ends of the interval for f*(x, u), (*b, nx)."""
        if self.function is None:
            return self.of_state(x, u)
        told = self.model.predict(x, u)
        half = self.function * told.std
        return told.mean - half, told.mean + half

    def of_state(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Ends of the interval for the next state, (*b, nx)."""
        if isinstance(self.model, Recalibrated):
            return self.model.interval(x, u)
        told = self.model.predict(x, u)
        half = self.state * total_std(told)
        if self.scale == "theory" and self.function is not None:
            half = self.function * told.std + self.state * told.noise_std
        return told.mean - half, told.mean + half

    def misses(self, mean: Callable[[Tensor, Tensor], Tensor], x: Tensor, u: Tensor) -> Tensor:
        """Where f* = `mean` is outside in some output, rounding granted, (*b,)."""
        low, high = self.of_function(x, u)
        true = mean(x, u)
        slack = 1e-12 * (1 + true.abs())
        return ~((true >= low - slack) & (true <= high + slack)).all(-1)  # an end that is no number contains nothing


def bars(
    model: DynamicsModel,
    scale: str,
    held_out: Transitions | None = None,
    *,
    delta: float = 0.1,
    band: Theory | None = None,
) -> Bars:
    """The claims of a model at that scale.

    Args:
        model: with data.
        scale: one of `SCALES`.
        held_out: rows that it was not trained on; the recalibrations need them.
        delta: δ.
        band: β for "theory"; by default that of `theory_band` for an exact Gaussian process without a known norm. A multiple
            borrowed from another model is no theorem.
    """
    _require.one_of("bars", "scale", scale, SCALES)
    z = _gaussian(delta)
    if scale in RECALIBRATED:
        if held_out is None:
            raise _require.fail("bars", f"held-out rows for {scale!r}", None)
        again = RECALIBRATED[scale](model, held_out, delta=delta)
        return sealed(Bars(again, scale, None, z, delta, again.assumptions))
    if scale == "theory":
        exact = isinstance(model, GP)
        if band is None and not exact:
            raise _require.fail("bars", "a Gaussian process, or a band to borrow", type(model).__name__)
        found = theory_band(cast(GP, model), delta=delta) if band is None else band
        outputs = list(getattr(model, "outputs", range(model.nx)))
        beta = torch.zeros(model.nx, dtype=torch.float64)
        beta[outputs] = found.beta if len(found.beta) == len(outputs) else found.beta.max()
        borrowed = [] if exact else [Assumption.NOT_A_THEOREM(": β is that of a Gaussian process on the same rows")]
        gaussian = Assumption.GAUSSIAN_NOISE()  # zσ_w of the next state: sub-Gaussian noise leaves it more often
        return sealed(Bars(model, scale, beta, z, delta, listed(found.assumptions, borrowed, gaussian)))
    told = listed(Assumption.NOT_A_THEOREM(f": the model's own spread ({scale})"))
    constant = torch.full((model.nx,), CONSTANT, dtype=torch.float64)
    plain = scale == "plain"
    return sealed(Bars(model, scale, constant if plain else None, 1.0 if plain else z, delta, told))
