"""Maximal marginal likelihood of one output, in units that the optimiser can work in: see `gpsafe.models.views`."""

from __future__ import annotations

import math
from typing import Any, cast

import gpytorch
import torch
from botorch.exceptions import ModelFittingError
from botorch.fit import fit_gpytorch_mll
from gpytorch.constraints import GreaterThan, Interval, Positive
from gpytorch.kernels import Kernel
from torch import Tensor


def fit(
    view: gpytorch.models.ExactGP, floor: float | None, *, fresh: bool, **options: Any
) -> tuple[float, Kernel, float] | ModelFittingError:
    """Objective, kernel and λ found from one start, or why there is none.

    Args:
        view: zero-mean GPyTorch model with data, changed in place.
        floor: smallest λ; None leaves λ as it is.
        fresh: start from standardised values in place of the view's own.
        options: of ``botorch.fit.fit_gpytorch_mll``.
    """
    kernel = cast(Kernel, view.train().covar_module)
    likelihood = cast(gpytorch.likelihoods.GaussianLikelihood, view.likelihood)
    for parameter in kernel.parameters():
        parameter.requires_grad_(True)
    inputs, square = _data(view)[0], float(_data(view)[1].square().mean()) or 1.0
    restore = _standardise(kernel, inputs, square, fresh)
    likelihood.raw_noise.requires_grad_(floor is not None)
    if floor is not None:
        floor = max(floor, 1e-14 * square)
        noise = 0.01 * square if fresh else float(cast(Tensor, likelihood.noise).detach())
        likelihood.noise_covar.register_constraint("raw_noise", _Scaled(floor, square))
        likelihood.noise = torch.tensor(max(noise, 2 * floor), dtype=torch.float64)
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, view)
    try:
        fit_gpytorch_mll(objective, **options)
    except ModelFittingError as error:
        return error
    value = _value(objective, view)
    for part, name, constraint in restore:
        _set(part, name, getattr(part, name.removeprefix("raw_")).detach().clone(), constraint)
    return value, kernel, float(cast(Tensor, likelihood.noise).detach().squeeze())


def _data(view: gpytorch.models.ExactGP) -> tuple[Tensor, Tensor]:
    assert view.train_inputs is not None
    return cast(Tensor, view.train_inputs[0]), cast(Tensor, view.train_targets)


def _value(objective: gpytorch.mlls.ExactMarginalLogLikelihood, view: gpytorch.models.ExactGP) -> float:
    """The objective at the parameters found."""
    view.train()
    inputs, targets = _data(view)
    with torch.no_grad():
        value = float(cast(Tensor, objective(view(inputs), targets)))
    return -math.inf if math.isnan(value) else value


def _standardise(
    kernel: Kernel, inputs: Tensor, square: float, fresh: bool
) -> list[tuple[torch.nn.Module, str, Interval]]:
    """Gives every parameter that is merely positive a unit and, if `fresh`, a standard start; returns what to restore."""
    restore = []
    for part, name, seen in _parts(kernel, inputs):
        constraint = getattr(part, f"{name}_constraint")
        if type(constraint) is not Positive:
            continue  # somebody's own limits: in their units
        value = getattr(part, name.removeprefix("raw_")).detach().clone()
        shared = value.ndim == 0 or value.shape[-1] != seen.shape[-1]
        if name in ("raw_lengthscale", "raw_period_length"):
            spread = seen.std(0, correction=0)
            spread = torch.where(spread > 1e-12 * seen.abs().amax(0), spread, torch.ones_like(spread))
            unit = spread.square().mean().sqrt() if shared else spread
            start = unit * math.sqrt(seen.shape[-1])
        elif name == "raw_variance":
            size = seen.square().mean(0)
            size = torch.where(size > 0, size, torch.ones_like(size))
            unit = start = square / (size.mean() if shared else size)
        else:
            unit = start = torch.tensor(square, dtype=torch.float64)
        unit, start = (v.to(value).expand(value.shape).clone() for v in (unit, start))
        restore.append((part, name, constraint))
        _set(part, name, start if fresh else value, _Scaled(0.0, unit))
    return restore


def _parts(kernel: Kernel, inputs: Tensor) -> list[tuple[torch.nn.Module, str, Tensor]]:
    """(module, parameter, inputs that it sees) of every length-scale, period and variance."""
    active = kernel.active_dims
    if active is not None and not isinstance(
        kernel, gpytorch.kernels.ScaleKernel
    ):  # a ScaleKernel only shows its base's
        inputs = inputs[:, cast(Tensor, active).to(inputs.device)]
    names = ("raw_lengthscale", "raw_period_length", "raw_variance", "raw_outputscale")
    found: list[tuple[torch.nn.Module, str, Tensor]] = [
        (kernel, name, inputs) for name in names if kernel._parameters.get(name) is not None
    ]
    for child in kernel.children():
        for part in child if isinstance(child, torch.nn.ModuleList) else (child,):
            if isinstance(part, Kernel):
                found.extend(_parts(part, inputs))
    return found


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
