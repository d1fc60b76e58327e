"""Confidence bounds |f* − μ_n| ≤ β_n σ_n, one frozen class per theorem (theory §2.2–2.8).

Symbols: B = rkhs_norm, R = subgaussian, δ = delta (split as δ/p over p outputs), λ = the model's regulariser,
g_n = ½ log det(I + K_n/λ), `GP.info_gain()` rounded up. A bound reads λ from the model and refuses one it does not
cover, unless told ``unchecked=True``, which marks everything computed from it as not sound.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gpsafe import _require, linalg
from gpsafe.assumptions import Assumption, Believed, listed
from gpsafe.confidence.rounding import EPS, Rounding
from gpsafe.models.gp import GP
from gpsafe.rkhs import kernels

MATCH = 1e-15  # relative agreement required between the model's λ and the λ of a theorem: rounding of a product or two


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
    frequentist: ClassVar[bool] = True  # assumes ‖f*‖_k ≤ B and R-sub-Gaussian noise; False: ignores B and R
    unequal_noise: ClassVar[bool] = False  # holds where observation i has w_i·R in place of R (`gpsafe.models.gp`)

    def __post_init__(self) -> None:
        where = type(self).__name__
        for field in ("rkhs_norm", "subgaussian"):
            value = _require.floats(where, field, getattr(self, field))
            if self.frequentist or not bool(torch.isposinf(value).all()):
                _require.positive(where, field, value)
            object.__setattr__(self, field, float(value) if value.ndim == 0 else tuple(value.tolist()))
        _require.probability(where, "delta", self.delta)

    def _vector(self, field: str, size: int) -> Tensor:
        value = torch.atleast_1d(torch.as_tensor(getattr(self, field), dtype=torch.float64))
        if value.numel() not in (1, size):
            raise _require.fail(type(self).__name__, f"{field} scalar or of length {size}", value.tolist())
        return value.expand(size)

    def norms(self, outputs: int) -> Tensor:
        """B, (p,); +inf for a bound that assumes no norm."""
        return self._vector("rkhs_norm", outputs)

    def noise(self, outputs: int) -> Tensor:
        """R, (p,)."""
        return self._vector("subgaussian", outputs)

    def refusal(self, model: GP) -> str | None:
        """Why the theorem does not cover this model; None if it does."""
        if model.mode != "theory":
            return (
                "a theory-mode model (this one may have been fitted to its data; if kernel and lambda were fixed before "
                'them, declare it: GP.create(..., mode="theory"))'
            )
        if getattr(model, "noise_scale", None) is not None and not self.unequal_noise:
            return f"equal noise in every observation (the theorem of {self.name} does not cover known noise scales)"
        for kernel in getattr(model, "kernels", ()):
            if not kernels.rounding_known(kernel):
                return f"kernels whose values are known up to rounding, not {type(kernel).__name__}"
        return None

    def check(self, model: GP) -> None:
        """Raises ValueError with the reason if the model is refused."""
        if not hasattr(model, "mode"):
            raise _require.fail(
                type(self).__name__, "a GP, or a view of one that states its error", type(model).__name__
            )
        self._vector("rkhs_norm", model.num_outputs)
        self._vector("subgaussian", model.num_outputs)
        reason = None if self.unchecked else self.refusal(model)
        if reason is not None:
            got = f"mode={model.mode}, lambda={model.regularizer.tolist()}, n={model.num_data}"
            raise _require.fail(type(self).__name__, f"{reason}; pass unchecked=True to compute it anyway", got)

    def noise_refusal(self, model: GP, noise_std: Tensor) -> str | None:
        """Why the theorem does not cover observations with Gaussian noise of deviation `noise_std` (p,); None if it does."""
        needed = noise_std.cpu()
        if self.frequentist and not bool((self.noise(model.num_outputs) >= needed).all()):
            return f"subgaussian R >= the task's noise deviation (R = {self.subgaussian})"
        return None

    def beliefs(self) -> tuple[Believed, ...]:
        """What the theorem assumes of f* and of the noise."""
        return (Assumption.RKHS_NORM(f"<={self.rkhs_norm}"), Assumption.SUBGAUSSIAN(f"({self.subgaussian})"))

    def assumptions(self, model: GP) -> tuple[Believed, ...]:
        """What the bound believes."""
        entries = [*self.beliefs(), Assumption.FIXED_KERNEL(), Assumption.ALL_OBSERVATIONS()]
        if getattr(model, "noise_scale", None) is not None:
            entries.append(Assumption.NOISE_SCALES())
        if not self.sound:
            entries.append(Assumption.NOT_A_THEOREM(f": {self.name}"))
        if self.unchecked:
            entries.append(Assumption.UNCHECKED(f": {self.name}"))
        return listed(entries)

    @abstractmethod
    def _beta(self, model: GP, norm: Tensor, noise: Tensor, log_inv_delta: float) -> Tensor:
        """β (p,) from B (p,), R (p,) and ln(p/δ)."""

    def beta(self, model: GP) -> Tensor:
        """β_n per learned output, (p,)."""
        self.check(model)
        p = model.num_outputs
        return self._beta(model, self.norms(p), self.noise(p), math.log(p / self.delta))

    def slack(self, model: GP) -> Tensor | None:
        """What the theorem adds to βσ, (p,), the same at every z; None for nothing."""
        return None

    def covers(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Whether the theorem speaks of all z of the boxes [lower, upper], (*b, d) ×2 → (*b,): of all of space, as a rule.

        For whoever takes `beta`, `slack` and `half_width` at places of its own: `interval` looks itself.
        """
        return torch.ones(lower.shape[:-1], dtype=torch.bool, device=lower.device)

    def prior_width(self, model: GP, z: Tensor) -> Tensor:
        """sup of |f*(z)| before any data, B√k(z, z) at z (*b, d), (*b, p), rounded up; +inf if no norm is assumed."""
        z = _require.floats(type(self).__name__, "z", z)  # in float64, whatever the width of z
        std = model.prior_variance(z).sqrt()
        width = self.norms(model.num_outputs).to(z.device) * std * (1 + 64 * EPS)
        return torch.where(std == 0, std, width)

    def interval(self, model: GP, z: Tensor) -> tuple[Tensor, Tensor]:
        """[μ − βσ, μ + βσ] of the residual at z (*b, d), both (*b, p), rounded outwards (and widened by
        `slack`).

        A model that gives an approximate mean states its error (`mean_error`), which widens the interval too.
        """
        z = _require.floats(type(self).__name__, "z", z)
        beta = self.beta(model).to(z.device)
        mean, std = model.posterior(z)
        half = self.half_width(model, beta, std, model.prior_variance(z)) + model.mean_error(z)
        return mean - half, mean + half

    def half_width(self, model: GP, beta: Tensor, std: Tensor, prior_variance: Tensor) -> Tensor:
        """βσ plus the slack, outwards by the rounding of the computed σ and μ, (*b, p)."""
        rounding, variance = Rounding.of(model), std.square()
        variance = variance + rounding.variance(variance, prior_variance)
        half = beta * linalg.safe_sqrt(variance) + rounding.mean(variance, prior_variance)
        slack = self.slack(model)
        return half if slack is None else half + slack.to(half.device)


@dataclass(frozen=True, kw_only=True)
class ClosedForm(ConfidenceBound):
    """A bound whose β is a formula in g_n, n and λ.

    Where it says so (`unequal_noise`) it also holds for observations with known noise scales w_i ≥ 1, then with w_i·R-
    sub-Gaussian noise and the g_n of the scaled rows: its proof takes any kernel and any predictable points, hence also
    k(z, z′)/(w w′) at the points (z_i, w_i) (`gpsafe.models.gp`). `Srinivas` does not say so: γ_n and |ε| ≤ R = √λ are
    those of equal noise.
    """

    @abstractmethod
    def formula(
        self,
        info_gain: Tensor,
        count: Tensor,
        regularizer: Tensor,
        *,
        norm: Tensor,
        noise: Tensor,
        log_inv_delta: float,
    ) -> Tensor:
        """β, shape (*b,) by broadcasting.

        Args:
            info_gain: g_n of the data, (*b,).
            count: n, (*b,).
            regularizer, norm, noise: λ, B, R, (*b,).
            log_inv_delta: ln(1/δ) of one output.
        """

    def _beta(self, model: GP, norm: Tensor, noise: Tensor, log_inv_delta: float) -> Tensor:
        gain = _gain(model)
        regularizer, norm, noise = (value.to(gain.device) for value in (model.regularizer, norm, noise))
        count = torch.full_like(gain, model.num_data)
        beta = self.formula(gain, count, regularizer, norm=norm, noise=noise, log_inv_delta=log_inv_delta)
        return beta.expand(gain.shape)


def _gain(model: GP) -> Tensor:
    """g_n, at least; (p,)."""
    return Rounding.of(model).info_gain(model.info_gain())


def _mixture(info_gain: Tensor, regularizer: Tensor, norm: Tensor, noise: Tensor, log_inv_delta: float) -> Tensor:
    """β of the mixture bound."""
    return (norm.square() + noise.square() / regularizer * 2 * (info_gain + log_inv_delta)).sqrt()


class Mixture(ClosedForm):
    """β² = B² + (R²/λ)(2g_n + 2 ln(1/δ)): self-normalised mixture bound in closed form, any fixed λ."""

    name = "mixture"
    unequal_noise = True
    source = "theory §2.3; Flynn & Reeb 2024"

    def formula(self, info_gain, count, regularizer, *, norm, noise, log_inv_delta):
        """See `ClosedForm.formula`."""
        return _mixture(info_gain, regularizer, norm, noise, log_inv_delta)


class AbbasiYadkori(ClosedForm):
    """β = B + (R/√λ)√(2g_n + 2 ln(1/δ)), any fixed λ; never below `Mixture` (√(a² + b²) ≤ a + b)."""

    name = "abbasi-yadkori"
    unequal_noise = True
    source = "Abbasi-Yadkori 2012, Thm 3.11; Whitehouse et al. 2023"

    def formula(self, info_gain, count, regularizer, *, norm, noise, log_inv_delta):
        """See `ClosedForm.formula`."""
        return norm + noise / regularizer.sqrt() * (2 * (info_gain + log_inv_delta)).sqrt()


@dataclass(frozen=True, kw_only=True)
class Fiedler(ClosedForm):
    """β = B + s √(log det((λ̄/λ)K + λ̄I) + 2 ln(1/δ)), λ̄ = max(1, λ); log det((λ̄/λ)K + λ̄I) = 2g_n + n ln
    λ̄.

    Args:
        convention: "lambda-sqrt" has s = R/√λ: never below `AbbasiYadkori`, equal to it for λ ≤ 1, hence
            valid for every fixed λ. "published" has s = R/λ, as in the published table: for λ ≤ 1 it is at
            least the other and so a theorem; for λ > 1 it is refused.
    """

    convention: Literal["lambda-sqrt", "published"] = "lambda-sqrt"

    name = "fiedler"
    unequal_noise = True
    source = "Fiedler, Scherer & Trimpe 2021, Thm 1"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require.one_of("Fiedler", "convention", self.convention, ("lambda-sqrt", "published"))

    def refusal(self, model: GP) -> str | None:
        """The published convention needs λ ≤ 1."""
        if self.convention == "published" and bool((model.regularizer > 1).any()):
            return "lambda <= 1 for the published convention R/lambda"
        return super().refusal(model)

    def formula(self, info_gain, count, regularizer, *, norm, noise, log_inv_delta):
        """See `ClosedForm.formula`."""
        scale = noise / (regularizer if self.convention == "published" else regularizer.sqrt())
        logdet = 2 * info_gain + count * regularizer.clamp_min(1.0).log()
        return norm + scale * (logdet + 2 * log_inv_delta).sqrt()


def _chowdhury_gopalan(info_gain: Tensor, norm: Tensor, noise: Tensor, log_inv_delta: float) -> Tensor:
    """B + R√(2(g_n + 1 + ln(1/δ)))."""
    return norm + noise * (2 * (info_gain + 1 + log_inv_delta)).sqrt()


def _fixed_horizon_refusal(model: GP, max_data: int | None) -> str | None:
    """λ = 1 + 2/N and n ≤ N: then ½ log det((1+η)I + K) = g_n + (n/2) ln(1+η) ≤ g_n + nη/2 ≤ g_n + 1, η =
    2/N.
    """
    if max_data is None:
        return "max_data (the theorem holds for the posterior with lambda = 1 + 2/max_data)"
    target = 1 + 2 / max_data
    if bool(((model.regularizer.cpu() - target).abs() > MATCH * target).any()):
        return f"lambda = 1 + 2/max_data = {target:.12g} (normalise units)"
    if model.num_data > max_data:
        return f"n <= max_data = {max_data}"
    return None


@dataclass(frozen=True, kw_only=True)
class ChowdhuryGopalan(ClosedForm):
    """β = B + R√(2(g_n + 1 + ln(1/δ))) on the posterior with λ = 1 + 2/N, n ≤ N = max_data; other models are
    refused.

    The proof bounds ‖ε‖² in the norm ((K+ηI)⁻¹ + I)⁻¹, η = 2/N, by 2R² ln(√det((1+η)I + K)/δ), and
    ½ log det((1+η)I + K) = g_n + (n/2) ln(1+η) ≤ g_n + 1, so the data's own g_n may stand for γ.
    (By `AbbasiYadkori` the value happens to be valid for every λ ≥ 1; for λ < 1 it is wrong by up to 1/√λ.)
    """

    max_data: int

    name = "chowdhury-gopalan"
    unequal_noise = True
    source = "Chowdhury & Gopalan 2017, Thm 2"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require.count("ChowdhuryGopalan", "max_data", self.max_data)

    def refusal(self, model: GP) -> str | None:
        """λ must be 1 + 2/N, and n ≤ N."""
        return _fixed_horizon_refusal(model, self.max_data) or super().refusal(model)

    def formula(self, info_gain, count, regularizer, *, norm, noise, log_inv_delta):
        """See `ClosedForm.formula`."""
        return _chowdhury_gopalan(info_gain, norm, noise, log_inv_delta)


@dataclass(frozen=True, kw_only=True)
class ActSafeForm(ClosedForm):
    """β = B + σ√(2(g_n + 1 + ln(nx/δ))), as ActSafe and HAMBO print it: a theorem only where
    `ChowdhuryGopalan` is.

    On the usual posterior with λ = σ² it lacks the factor 1/σ and fails (theory §2.8): refused unless
    ``unchecked=True``.
    """

    max_data: int | None = None

    name = "actsafe"
    unequal_noise = True
    source = "ActSafe, Lemma on calibrated GPs; after Chowdhury & Gopalan 2017"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_data is not None:
            _require.count("ActSafeForm", "max_data", self.max_data)

    def refusal(self, model: GP) -> str | None:
        """As for `ChowdhuryGopalan`."""
        return _fixed_horizon_refusal(model, self.max_data) or super().refusal(model)

    def formula(self, info_gain, count, regularizer, *, norm, noise, log_inv_delta):
        """See `ClosedForm.formula`."""
        return _chowdhury_gopalan(info_gain, norm, noise, log_inv_delta)


@dataclass(frozen=True, kw_only=True)
class Srinivas(ClosedForm):
    """β² = 2B² + 300 γ ln³((n+1)/δ) on the posterior with λ = R², noise with zero mean and |ε| ≤ R.

    The paper has γ = γ_{n+1}, the maximum over all designs: give it as ``max_info_gain(n + 1)``. Without it
    the data's g_n stands in; the paper's proof does not cover that, but bounded noise is R-sub-Gaussian, so
    any value that is at least the mixture β is a theorem: a model where it is not (very small g_n) is
    refused. At n = 0, |f*| ≤ B√k suffices.

    Args:
        max_info_gain: n ↦ an upper bound of γ_n, or None.
    """

    max_info_gain: Callable[[int], float] | None = None

    name = "srinivas"
    source = "Srinivas et al. 2010, Thm 6"

    def refusal(self, model: GP) -> str | None:
        """λ must be R², and β at least the mixture value (or n = 0)."""
        p = model.num_outputs
        norm, noise, log = self.norms(p), self.noise(p), math.log(p / self.delta)
        target = noise.square()
        if bool(((model.regularizer.cpu() - target).abs() > MATCH * target).any()):
            return f"lambda = subgaussian^2 = {target.tolist()}"
        if model.num_data > 0:
            own = self._beta(model, norm, noise, log).cpu()
            if bool((own < _mixture(_gain(model).cpu(), model.regularizer.cpu(), norm, noise, log)).any()):
                return "information gain large enough for the theorem (or max_info_gain)"
        return super().refusal(model)

    def beliefs(self) -> tuple[Believed, ...]:
        """Bounded noise in place of sub-Gaussian noise."""
        return (Assumption.RKHS_NORM(f"<={self.rkhs_norm}"), Assumption.BOUNDED_OBSERVATION(f"<={self.subgaussian}"))

    def formula(self, info_gain, count, regularizer, *, norm, noise, log_inv_delta):
        """See `ClosedForm.formula`; γ is at least g_n."""
        if self.max_info_gain is not None:
            values = [float(self.max_info_gain(int(n) + 1)) for n in count.reshape(-1).tolist()]
            given = torch.tensor(values, dtype=torch.float64, device=info_gain.device).reshape(count.shape)
            info_gain = torch.maximum(info_gain, given)
        log = torch.log(count + 1) + log_inv_delta
        return (2 * norm.square() + 300 * info_gain * log**3).sqrt()


@dataclass(frozen=True, kw_only=True)
class Constant(ClosedForm):
    """β = value, by hand. A heuristic: no probability statement holds, `sound` is False."""

    rkhs_norm: float | tuple[float, ...] = math.inf
    subgaussian: float | tuple[float, ...] = math.inf
    delta: float = 0.5
    value: float = 2.0

    name = "constant"
    unequal_noise = True
    source = "none (heuristic)"
    sound = False
    frequentist = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _require.positive("Constant", "value", self.value)

    def beliefs(self) -> tuple[Believed, ...]:
        """Calibration by assertion."""
        return (Assumption.CALIBRATED_CONSTANT(f" <= {self.value} std everywhere"),)

    def formula(self, info_gain, count, regularizer, *, norm, noise, log_inv_delta):
        """See `ClosedForm.formula`."""
        return torch.full_like(info_gain, self.value)
