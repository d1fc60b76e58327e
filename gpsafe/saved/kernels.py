"""Kernels as the call of their constructor: name and numbers, to the last bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import gpytorch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe import _require
from gpsafe.confidence.lineage import fingerprint
from gpsafe.rkhs import kernels

EXPECTED = "kernels as gpsafe.rkhs.kernels builds them, with the numbers they were given"


def encode_kernel(where: str, kernel: Kernel) -> dict[str, Any]:
    """The call that builds this kernel again.

    Raises:
        ValueError: for a kernel made elsewhere, trained, or edited: no call of a constructor gives its equal.
    """
    call = _call(kernel) if kernels.is_stated(kernel) else None
    if call is None or not _makes(call, kernel):
        raise _require.fail("save", EXPECTED, f"{where}: {kernels.describe(kernel)}")
    return call


def _makes(call: Mapping[str, Any], kernel: Kernel) -> bool:
    """Whether the call gives this kernel to the last bit and the last attribute."""
    try:
        return fingerprint(decode_kernel(call)) == fingerprint(kernel)
    except ValueError:
        return False


def decode_kernel(call: Mapping[str, Any]) -> Kernel:
    """The kernel of a call."""
    name = _require.one_of(
        "load", "kernel", call["kernel"], ("rbf", "matern", "periodic", "linear", "additive", "product")
    )
    options = {key: value for key, value in call.items() if key != "kernel"}
    if name in ("additive", "product"):
        return getattr(kernels, name)(*(decode_kernel(part) for part in options["parts"]))
    return getattr(kernels, name)(**options)


def _call(kernel: Kernel) -> dict[str, Any] | None:
    for family, name in ((gpytorch.kernels.AdditiveKernel, "additive"), (gpytorch.kernels.ProductKernel, "product")):
        if type(kernel) is family:
            parts = [_call(cast(Kernel, part)) for part in cast(Any, kernel).kernels]
            return None if None in parts else {"kernel": name, "parts": parts}
    if type(kernel) is gpytorch.kernels.LinearKernel:
        return {"kernel": "linear", "variance": _numbers(kernel.variance), "dims": _dims(kernel)}
    if type(kernel) is not gpytorch.kernels.ScaleKernel:
        return None
    base = kernel.base_kernel
    common = {"variance": float(kernel.outputscale), "dims": _dims(base)}
    if type(base) is gpytorch.kernels.RBFKernel:
        return {"kernel": "rbf", "lengthscale": _numbers(base.lengthscale), **common}
    if type(base) is gpytorch.kernels.MaternKernel:
        return {"kernel": "matern", "nu": float(base.nu), "lengthscale": _numbers(base.lengthscale), **common}
    if type(base) is gpytorch.kernels.PeriodicKernel:
        numbers = {"period": _numbers(base.period_length), "lengthscale": _numbers(base.lengthscale)}
        return {"kernel": "periodic", **numbers, **common}
    return None


def _numbers(value: Any) -> list[float]:
    return cast(Tensor, value).detach().reshape(-1).tolist()


def _dims(kernel: Kernel) -> list[int] | None:
    dims = cast(Tensor | None, kernel.active_dims)
    return None if dims is None else dims.tolist()
