"""Checks of what a GP is created from and conditioned on."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe import _require
from gpsafe.rkhs import kernels

P = ParamSpec("P")
T = TypeVar("T")


def plain_tensors(function: Callable[P, T]) -> Callable[P, T]:
    """Runs it outside `torch.inference_mode`: what a model keeps must serve later gradients too."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return wrapped


def differentiating(function: Callable[P, T]) -> Callable[P, T]:
    """Runs it with gradients, whatever the caller has switched off: what is fitted in here needs them."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.inference_mode(False), torch.enable_grad():
            return function(*args, **kwargs)

    return wrapped


def noise_scale(value: Tensor | None, z: Tensor) -> Tensor | None:
    """w (m,) of the m rows of z as a tensor of its own, on their device; all ≥ 1."""
    if value is None:
        return None
    scale = _require.shape(
        "GP.condition", "noise_scale", _require.finite("GP.condition", "noise_scale", value), (len(z),)
    )
    if not bool((scale >= 1).all()):
        expected = (
            "noise_scale >= 1 (relative to the quietest observation, whose noise lambda and a bound's R stand for)"
        )
        raise _require.fail("GP.condition", expected, float(scale.min()))
    return scale.detach().to(z.device).clone()


def per_output(name: str, value: Tensor, size: int) -> Tensor:
    """A scalar or a vector of length `size` as a vector of its own, (size,)."""
    if value.ndim > 1 or value.numel() not in (1, size):
        raise _require.fail("GP", f"{name} scalar or of length {size}", f"shape {tuple(value.shape)}")
    return value.detach().expand(size).clone()


def check_kernel(kernel: Kernel, dim: int) -> None:
    """Refuses a kernel that does not map two points of R^dim to one number ≥ 0 on the diagonal."""
    probe = torch.zeros(2, dim, dtype=torch.float64)
    device = next((p.device for p in kernel.parameters()), probe.device)
    try:
        probe = probe.to(device)
        gram = kernels.cross(kernels.freeze(kernel), probe, probe)
    except Exception as error:
        reason = str(error).splitlines()[0][:120]
        raise _require.fail("GP", f"a kernel on {dim} inputs (nx + nu)", f"one that fails: {reason}") from error
    if _require.written(probe):
        raise _require.fail(
            "GP", "a kernel that leaves its arguments, the data, as they are", "one that writes on them"
        )
    if tuple(gram.shape) != (2, 2) or not bool(torch.isfinite(gram).all()):
        raise _require.fail("GP", f"a kernel on {dim} inputs with one output", f"a Gram matrix {gram.tolist()}")
