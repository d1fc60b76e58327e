"""Checks of what a GP is created from."""

from __future__ import annotations

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe import _require, kernels


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
        gram = kernels.cross(kernels.freeze(kernel), probe.to(device), probe.to(device))
    except Exception as error:
        reason = str(error).splitlines()[0][:120]
        raise _require.fail("GP", f"a kernel on {dim} inputs (nx + nu)", f"one that fails: {reason}") from error
    if tuple(gram.shape) != (2, 2) or not bool(torch.isfinite(gram).all()):
        raise _require.fail("GP", f"a kernel on {dim} inputs with one output", f"a Gram matrix {gram.tolist()}")
