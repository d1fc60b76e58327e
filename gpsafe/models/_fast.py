"""Posterior evaluation on the CPU without gradients: the hot path of planners.

One output kernel at a time, for a chunk of points as rows: exponents by one matrix product of augmented
inputs (from true differences where data are spread too widely for it), the exponential in place, the mean by a
product with the weights, then L⁻¹ by an in-place triangular product (BLAS dtrmm, n² flops a point) and row norms.
Everything stays in one (chunk, n) buffer. Numerically this is the same L⁻¹ form as the differentiable path, in
another summation order.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg.blas import dtrmm  # type: ignore[attr-defined]
from torch import Tensor

from gpsafe import linalg
from gpsafe.models._factor import Factor
from gpsafe.rkhs import kernels

Array = NDArray[np.float64]
SCRATCH = 2**19  # numbers
PANEL = 256  # columns
RATIO = 1.25


def usable(z: Tensor) -> bool:
    """Whether z can be handed to NumPy: on the CPU, float64, not part of a graph, not inside a ``torch.func``
    transform.
    """
    if linalg.is_transformed(z) or z.device.type != "cpu" or z.dtype != torch.float64:
        return False
    return not (torch.is_grad_enabled() and z.requires_grad)


def _wide(part: kernels.Stationary, points: Tensor) -> bool:
    scaled = part.scaled(points)
    return float((scaled - scaled.mean(0)).square().sum(-1).max()) > kernels.MAX_SPREAD


_memory = threading.local()


def scratch(rows: int, columns: int) -> Array:
    """An uninitialised (rows, columns) array in memory that this thread keeps (fresh pages cost as much as the kernel)."""
    size = rows * columns
    if size > SCRATCH:
        return np.empty((rows, columns))
    if not hasattr(_memory, "array"):
        _memory.array = np.empty(SCRATCH)
    return _memory.array[:size].reshape(rows, columns)


def chunk_for(columns: int) -> int:
    """Number of points at a time whose (chunk, columns) buffer is about 4 MB: large products, yet in the shared cache."""
    return max(64, min(1024, SCRATCH // max(columns, 1)))


@dataclass(frozen=True, slots=True, eq=False)
class Gram:
    """κ(z_i, x_j) for fixed points x_j (n of them) and unit amplitude; `amplitude` is the factor to be
    applied after.

    Stationary kernels are evaluated here; others through `Factor.cross` (amplitude 1). With inputs centred and
    scaled, `columns` are [xᵀ; 1; −½‖x‖²] for the RBF, so that rows [z, −½‖z‖², 1] give −½r², and [−2xᵀ; 1; ‖x‖²] for
    Matérn, so that rows [z, ‖z‖², 1] give r². Matérn ½ (a square root at zero), and data spread beyond MAX_SPREAD, take
    true differences: no columns then.
    """

    factor: Factor
    points: Tensor
    form: kernels.Stationary | None
    center: Array
    scale: Array
    columns: Array | None

    @staticmethod
    def build(factor: Factor, points: Tensor) -> Gram:
        """For the n rows of `points` (n, d)."""
        part = factor.form.parts[0] if factor.form is not None and len(factor.form.parts) == 1 else None
        if not isinstance(part, kernels.Stationary):
            empty = np.empty(0)
            return Gram(factor, points, None, empty, empty, None)
        active = points if part.dims is None else points[:, part.dims.cpu()]
        center = active.mean(0)
        gain = 1.0 if math.isinf(part.nu) else math.sqrt(2 * part.nu)
        scale = (gain / part.lengthscale.cpu()).expand(active.shape[1])
        if part.nu == 0.5 or _wide(part, points):
            return Gram(factor, points, part, center.numpy(), scale.numpy(), None)
        scaled = ((active - center) * scale).numpy()
        square = np.einsum("ij,ij->i", scaled, scaled)
        factors = (1.0, -0.5) if math.isinf(part.nu) else (-2.0, 1.0)
        columns = np.concatenate([factors[0] * scaled.T, np.ones((1, len(square))), factors[1] * square[None]])
        return Gram(factor, points, part, center.numpy(), scale.numpy(), np.ascontiguousarray(columns))

    @property
    def amplitude(self) -> float:
        """Factor between the entries and the kernel."""
        return 1.0 if self.form is None else self.form.variance

    def fill(self, z: Tensor, out: Array) -> None:
        """Writes κ(z_i, x_j) into out (m, n)."""
        if self.form is None:
            out[...] = self.factor.cross(self.points, z).mT.numpy()
            return
        with np.errstate(invalid="ignore", over="ignore"):  # NaN or infinite in, NaN out
            self._fill(self.form, z, out)

    def _fill(self, form: kernels.Stationary, z: Tensor, out: Array) -> None:
        rows = z.numpy()
        if form.dims is not None:
            rows = rows[:, form.dims.cpu().numpy()]
        if self.columns is None:
            self._squares(form, rows, out)
            if math.isinf(form.nu):
                out *= -0.5
                np.exp(out, out=out)
            else:
                _matern(form.nu, out)
            return
        augmented = np.empty((rows.shape[0], rows.shape[1] + 2))
        scaled = augmented[:, :-2]
        np.subtract(rows, self.center, out=scaled)
        scaled *= self.scale
        square = np.einsum("ij,ij->i", scaled, scaled)
        augmented[:, -1] = 1.0
        if math.isinf(form.nu):
            np.multiply(square, -0.5, out=augmented[:, -2])
            np.matmul(augmented, self.columns, out=out)
            np.exp(out, out=out)  # an exponent may round to a few ε above 0: κ ≤ 1 + a few ε, within stated margins
            return
        augmented[:, -2] = square
        np.matmul(augmented, self.columns, out=out)
        np.maximum(out, 0.0, out=out)
        _matern(form.nu, out)

    def _squares(self, form: kernels.Stationary, rows: Array, out: Array) -> None:
        """The squares of gain·r from true differences."""
        points = self.points.numpy() if form.dims is None else self.points.numpy()[:, form.dims.cpu().numpy()]
        gap = np.empty_like(out)
        out[...] = 0.0
        for i, scale in enumerate(self.scale):
            np.subtract(rows[:, i, None], points[None, :, i], out=gap)
            gap *= scale
            gap *= gap
            out += gap


def _matern(nu: float, out: Array) -> None:
    """The Matérn profile of the squares of √(2ν)r, in place."""
    np.sqrt(out, out=out)
    decay = np.exp(-out)
    if nu == 0.5:
        out[...] = decay
        return
    if nu == 1.5:
        out += 1.0
    else:  # 1 + r + r²/3 = 1 + r(1 + r/3)
        decay_scale = out / 3.0
        decay_scale += 1.0
        out *= decay_scale
        out += 1.0
    out *= decay


@dataclass(frozen=True, slots=True, eq=False)
class Evaluator:
    """Mean and explained variance of one factor with several weight columns.

    `root` is (L⁻¹)ᵀ as a Fortran-ordered upper-triangular matrix, `weights` amplitude · α of
    shape (n, k).
    """

    gram: Gram
    root: Array
    weights: Array

    @staticmethod
    def build(factor: Factor, inputs: Tensor, weights: Tensor) -> Evaluator:
        """For the posterior with data `inputs` (n, d) and weights α (n, k)."""
        gram = Gram.build(factor, inputs)
        root = np.ascontiguousarray(factor.inverse.numpy()).T
        return Evaluator(gram, root, np.ascontiguousarray((weights * gram.amplitude).numpy()))

    def __call__(self, z: Tensor, buffer: Array) -> tuple[Array, Array]:
        """μ (m, k) and ‖L⁻¹k_n(z)‖² (m,) for z (m, d); overwrites the leading m rows of buffer (≥ m, n)."""
        block = buffer[: z.shape[0]]
        self.gram.fill(z, block)
        with np.errstate(invalid="ignore"):
            mean = block @ self.weights
        block = triangular_product(self.root, block, scale=self.gram.amplitude)
        return mean, np.einsum("ij,ij->i", block, block)

    def std(self, z: Tensor, explained: Array) -> Array:
        """√(k(z, z) − explained), at least 0; NaN stays NaN."""
        form = self.gram.form
        prior = form.variance if form is not None else self.gram.factor.diagonal(z).numpy()
        return np.sqrt(np.maximum(prior - explained, 0.0))


def triangular_product(root: Array, rows: Array, *, scale: float = 1.0) -> Array:
    """scale · rows @ root in the memory of rows: rows (m, n) C-ordered, root (n, n) upper triangular,
    F-ordered.

    By BLAS's dtrmm, or from `PANEL` rows on by products of whole panels (`by_panels`) where dtrmm is far slower than they are.
    """
    if len(root) > PANEL and panels_are_faster():
        return by_panels(root, rows, scale=scale)
    return _by_trmm(root, rows, scale=scale)


def by_panels(root: Array, rows: Array, *, scale: float = 1.0) -> Array:
    """The same, `PANEL` columns at a time from the right, by dgemm: n² + PANEL·n products a row in place of n²."""
    n = len(root)
    for start in reversed(range(0, n, PANEL)):
        stop = min(start + PANEL, n)
        panel = np.triu(root[:stop, start:stop], -start)  # dtrmm does not read what is below the diagonal either
        np.multiply(rows[:, :stop] @ panel, scale, out=rows[:, start:stop])
    return rows


@cache
def panels_are_faster(size: int = 512) -> bool:
    """Whether dtrmm takes `RATIO` times as long as panels on this machine, measured once a process (30 ms).

    Far more than timings scatter, so that the answer, with it the last bits of a posterior, is that of the machine: 0.6 to 0.75
    where dtrmm runs at 90 % of dgemm, 1.3 to 2.5 where it runs at a third to a half.
    """
    root = np.asfortranarray(np.triu(np.full((size, size), 0.5)))
    rows = np.full((size // 2, size), 1e-3)
    times: tuple[list[float], list[float]] = [], []
    for _ in range(5):
        for way, run in enumerate((_by_trmm, by_panels)):
            start = time.perf_counter()
            run(root, rows.copy())
            times[way].append(time.perf_counter() - start)
    return min(times[0]) > RATIO * min(times[1])


def _by_trmm(root: Array, rows: Array, *, scale: float = 1.0) -> Array:
    return dtrmm(scale, root, rows.T, side=0, lower=0, trans_a=1, overwrite_b=1).T
