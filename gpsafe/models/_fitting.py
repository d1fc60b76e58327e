"""Maximal marginal likelihood of one output, in units that the optimiser can work in: see `gpsafe.models.views`."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any, Literal, cast

import gpytorch
import torch
from botorch.exceptions import ModelFittingError, OptimizationWarning
from botorch.fit import fit_gpytorch_mll
from gpytorch.constraints import GreaterThan, Interval, Positive
from gpytorch.kernels import Kernel
from linear_operator.settings import cholesky_jitter
from linear_operator.utils.errors import NanError, NotPSDError
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor

Start = Literal["given", "standard", "likeliest"]
LENGTHS = tuple(2.0 ** (k / 2) for k in range(-8, 5))  # of the standard ones
NOISES = (0.01, 1e-4)  # of the mean square of the targets


def fit(
    view: gpytorch.models.ExactGP, floor: float | None, start: Start, **options: Any
) -> tuple[float, Kernel, float] | ModelFittingError:
    """Objective, kernel and λ found from one start, or why there is none.

    Args:
        view: zero-mean GPyTorch model with data, changed in place.
        floor: smallest λ; None leaves λ as it is.
        start: the view's own values, standardised ones, or the likeliest of those times `LENGTHS`, with λ of `NOISES`.
        options: of ``botorch.fit.fit_gpytorch_mll``.
    """
    kernel = cast(Kernel, view.train().covar_module)
    likelihood = cast(gpytorch.likelihoods.GaussianLikelihood, view.likelihood)
    for parameter in kernel.parameters():
        parameter.requires_grad_(True)
    inputs, square = _data(view)[0], float(_data(view)[1].square().mean()) or 1.0
    restore = _standardise(kernel, inputs, square, fresh=start != "given")
    likelihood.raw_noise.requires_grad_(floor is not None)
    if floor is not None:
        floor = max(floor, 1e-13 * square)
        noise = float(cast(Tensor, likelihood.noise).detach()) if start == "given" else NOISES[0] * square
        likelihood.noise_covar.register_constraint("raw_noise", _Scaled(floor, square))
        likelihood.noise = torch.tensor(max(noise, 2 * floor), dtype=torch.float64)
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, view)
    jitter = cholesky_jitter(double_value=1e-10 * square)  # in the targets' units: gpytorch's own is absolute
    with jitter, warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)  # of jitter: parts of a sum of kernels may be singular
        warnings.filterwarnings("ignore", "`scipy_minimize` terminated", OptimizationWarning)  # an error tells
        if start == "likeliest":
            _likeliest(objective, view, floor, square)
        try:
            fit_gpytorch_mll(objective, **options)
        except ModelFittingError as error:
            return error
        value = _value(objective, view)
    for part, name, constraint in restore:
        _set(part, name, getattr(part, name.removeprefix("raw_")).detach().clone(), constraint)
    return value, kernel, float(cast(Tensor, likelihood.noise).detach().squeeze())


def noise_alone(targets: Tensor) -> float:
    """The objective (log marginal likelihood over n) of nothing but noise, of the variance that suits targets (n,) best."""
    return -0.5 * math.log(2 * math.pi * math.e * (float(targets.square().mean()) or 1.0))


def _likeliest(
    objective: gpytorch.mlls.ExactMarginalLogLikelihood,
    view: gpytorch.models.ExactGP,
    floor: float | None,
    square: float,
) -> None:
    """Gives length-scales and periods the common factor, and λ the share, of largest likelihood: its optima are many."""
    likelihood = cast(gpytorch.likelihoods.GaussianLikelihood, view.likelihood)
    lengths = [
        (part, name, getattr(part, name.removeprefix("raw_")).detach().clone())
        for part, name, *_ in _parts(cast(Kernel, view.covar_module), _data(view)[0])
        if type(getattr(part, f"{name}_constraint")) is _Scaled and name in _lengths(part)
    ]

    def value_at(factor: float, noise: float) -> float:
        for part, name, value in lengths:
            cast(Any, part).initialize(**{name.removeprefix("raw_"): factor * value})
        if floor is not None:
            likelihood.noise = torch.tensor(max(noise * square, 2 * floor), dtype=torch.float64)
        return _value(objective, view)

    tried = itertools.product(LENGTHS if lengths else (1.0,), NOISES if floor is not None else (0.0,))
    value_at(*max(tried, key=lambda values: value_at(*values)))


def _data(view: gpytorch.models.ExactGP) -> tuple[Tensor, Tensor]:
    assert view.train_inputs is not None
    return cast(Tensor, view.train_inputs[0]), cast(Tensor, view.train_targets)


def _value(objective: gpytorch.mlls.ExactMarginalLogLikelihood, view: gpytorch.models.ExactGP) -> float:
    """The objective at the parameters found; −∞ where it has no value."""
    view.train()
    inputs, targets = _data(view)
    try:
        with torch.no_grad():
            value = float(cast(Tensor, objective(view(inputs), targets)))
    except (NotPSDError, NanError):
        return -math.inf
    return -math.inf if math.isnan(value) else value


def _standardise(
    kernel: Kernel, inputs: Tensor, square: float, *, fresh: bool
) -> list[tuple[torch.nn.Module, str, Interval]]:
    """Gives every parameter that is merely positive a unit and, if `fresh`, a standard start; returns what to restore."""
    restore = []
    for part, name, seen, share in _parts(kernel, inputs):
        constraint = getattr(part, f"{name}_constraint")
        if type(constraint) is not Positive:
            continue  # somebody's own limits: in their units
        value = getattr(part, name.removeprefix("raw_")).detach().clone()
        shared = value.ndim == 0 or value.shape[-1] != seen.shape[-1]
        if name in _lengths(part):
            spread = seen.std(0, correction=0)
            spread = torch.where(spread > 1e-12 * seen.abs().amax(0), spread, torch.ones_like(spread))
            unit = spread.square().mean().sqrt() if shared else spread
            start = unit * math.sqrt(seen.shape[-1])
        elif name == "raw_variance":
            size = seen.square().mean(0)
            size = torch.where(size > 0, size, torch.ones_like(size))
            unit = start = square**share / (size.mean() if shared else size)
        elif name == "raw_outputscale":
            unit = start = torch.tensor(square**share, dtype=torch.float64)
        else:  # ℓ of a squared sine
            unit = start = torch.ones((), dtype=torch.float64)
        unit, start = (v.to(value).expand(value.shape).clone() for v in (unit, start))
        restore.append((part, name, constraint))
        _set(part, name, start if fresh else value, _Scaled(0.0, unit))
    return restore


def _parts(kernel: Kernel, inputs: Tensor, share: float = 1.0) -> list[tuple[torch.nn.Module, str, Tensor, float]]:
    """(module, parameter, inputs that it sees, power of the kernel's unit that it carries) of every length-scale, period and
    variance: the factors of a product share its unit.
    """
    active = kernel.active_dims
    if active is not None and not isinstance(
        kernel, gpytorch.kernels.ScaleKernel
    ):  # a ScaleKernel only shows its base's
        inputs = inputs[:, cast(Tensor, active).to(inputs.device)]
    children = [
        part
        for child in kernel.children()
        for part in (child if isinstance(child, torch.nn.ModuleList) else (child,))
        if isinstance(part, Kernel)
    ]
    if not isinstance(kernel, gpytorch.kernels.AdditiveKernel):
        carriers = [part for part in (kernel, *children) if _has_unit(part, own=part is kernel)]
        share = share / max(1, len(carriers))
    names = ("raw_lengthscale", "raw_period_length", "raw_variance", "raw_outputscale")
    found: list[tuple[torch.nn.Module, str, Tensor, float]] = [
        (kernel, name, inputs, share) for name in names if kernel._parameters.get(name) is not None
    ]
    for part in children:
        found.extend(_parts(part, inputs, share))
    return found


def _lengths(part: torch.nn.Module) -> tuple[str, ...]:
    """The parameters in units of inputs: of a periodic kernel the period, not ℓ."""
    return ("raw_period_length",) if hasattr(part, "raw_period_length") else ("raw_lengthscale",)


def _has_unit(kernel: Kernel, *, own: bool) -> bool:
    """Whether a variance or output scale is among the parameters of the kernel (`own`: its own, not its parts')."""
    names = (name.rpartition(".")[2] for name, _ in kernel.named_parameters(recurse=not own))
    return any(name in ("raw_variance", "raw_outputscale") for name in names)


def _set(part: torch.nn.Module, name: str, value: Tensor, constraint: Interval) -> None:
    """A parameter's value under another constraint."""
    cast(Any, part).register_constraint(name, constraint)
    cast(Any, part).initialize(**{name: constraint.inverse_transform(value)})


class _Scaled(GreaterThan):
    """floor + unit·softplus(raw)."""

    def __init__(self, floor: float, unit: Tensor | float) -> None:
        size = torch.as_tensor(unit, dtype=torch.float64)

        def inverse(value: Tensor) -> Tensor:
            ratio = (value / size.to(value.device)).clamp_min(1e-300)
            return ratio + torch.log(-torch.expm1(-ratio))

        super().__init__(
            torch.tensor(floor, dtype=torch.float64),
            transform=cast(Any, lambda raw: size.to(raw.device) * torch.nn.functional.softplus(raw)),
            inv_transform=inverse,
        )
        self.lower_bound = torch.tensor(floor, dtype=torch.float64)  # GPyTorch rounds to the default type
