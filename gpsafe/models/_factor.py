"""Cholesky factors of K_n + λI that grow block by block and share their memory between successive
posteriors.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe import linalg
from gpsafe.rkhs import kernels


def _write(buffer: Tensor, start: int, stop: int, rows: Tensor) -> None:
    """Sets rows start..stop of a growing lower-triangular matrix, and clears its columns start..stop above
    them.

    Through ``.data``: no element that an older posterior sees through its view [:start, :start] changes, so a
    graph that was recorded on such a view stays valid, and its version counter must not move.
    """
    data = buffer.data
    data[:start, start:stop] = 0.0
    data[start:stop, : rows.shape[1]] = rows


class Store:
    """Rows of L and L⁻¹ in a growable buffer that successive posteriors share.

    Only the leading `rows` rows of `lower` and `inverse_rows` rows of `inverse` are defined. Appending data
    adds rows below, so an older posterior's view [:n, :n] never changes. A posterior may append here only if
    it is the newest one (its n equals `rows`); any other posterior works on a copy. Threads may share all of
    this: who appends is settled under `lock`, and L⁻¹ grows under it.
    """

    __slots__ = ("inverse", "inverse_rows", "lock", "lower", "rows")

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.lower = torch.empty(capacity, capacity, dtype=torch.float64, device=device)
        self.inverse: Tensor | None = None
        self.rows = 0
        self.inverse_rows = 0
        self.lock = threading.Lock()

    def claim(self, n: int, m: int, device: torch.device) -> bool:
        """Takes rows n..n + m for the caller, who alone may write them then; False if another has them or they do not fit."""
        with self.lock:
            free = self.rows == n and n + m <= self.lower.shape[0] and self.lower.device == device
            if free:
                self.rows = n + m
            return free

    def __getstate__(self) -> dict[str, Any]:
        """Only what is defined travels, not the spare capacity."""
        with self.lock:
            n, k = self.rows, self.inverse_rows
            inverse = None if self.inverse is None else self.inverse[:k, :k].clone()
            return {"lower": self.lower[:n, :n].clone(), "inverse": inverse}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.lock = threading.Lock()
        self.lower, inverse = state["lower"], state["inverse"]
        self.rows = self.lower.shape[0]
        self.inverse, self.inverse_rows = None, 0
        if inverse is not None:
            self.inverse = torch.empty_like(self.lower)
            self.inverse_rows = inverse.shape[0]
            _write(self.inverse, 0, self.inverse_rows, inverse)

    def copy(self, n: int, capacity: int, device: torch.device) -> Store:
        """A new buffer that starts with the leading n rows of this one."""
        new = Store(capacity, device)
        if n:
            _write(new.lower, 0, n, self.lower[:n, :n].to(device))
        new.rows = n
        with self.lock:
            known = min(n, self.inverse_rows)
            if self.inverse is not None and known:
                new.inverse = torch.empty_like(new.lower)
                _write(new.inverse, 0, known, self.inverse[:known, :known].to(device))
                new.inverse_rows = known
        return new


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """L with L Lᵀ = K_n + λI (λ times the squared noise scales where these differ) for one kernel, and L⁻¹.

    Attributes:
        kernel: the frozen kernel; `form` its closed form, read once (None: evaluated through gpytorch).
        regularizer: λ.
        store: shared memory, see :class:`Store`.
        n: number of data points.
    """

    kernel: Kernel
    form: kernels.ClosedForm | None
    regularizer: float
    store: Store
    n: int

    @staticmethod
    def empty(kernel: Kernel, regularizer: float, device: torch.device) -> Factor:
        """The factor without data."""
        return Factor(kernel, kernels.closed_form(kernel), regularizer, Store(0, device), 0)

    def cross(self, x: Tensor, z: Tensor) -> Tensor:
        """k(x_i, z_j), (*b, n, d), (*b, m, d) → (*b, n, m)."""
        return kernels.cross(self.kernel if self.form is None else self.form, x, z)

    def diagonal(self, z: Tensor) -> Tensor:
        """k(z, z), (*b, d) → (*b,)."""
        return kernels.diagonal(self.kernel if self.form is None else self.form, z)

    @property
    def lower(self) -> Tensor:
        """L, (n, n)."""
        return self.store.lower[: self.n, : self.n]

    @property
    def inverse(self) -> Tensor:
        """L⁻¹, (n, n), computed at first use; later only the rows that are missing: [−C⁻¹B L⁻¹, C⁻¹] under
        [L⁻¹, 0].
        """
        store, n = self.store, self.n
        # an inference tensor would be of no use to whoever differentiates later
        with store.lock, torch.inference_mode(False), torch.no_grad():
            if store.inverse is None:
                store.inverse = torch.empty_like(store.lower)
            k = store.inverse_rows
            if k < n:
                corner = linalg.inverse_lower(store.lower[k:n, k:n])
                left = -corner @ linalg.product_lower(store.lower[k:n, :k], store.inverse[:k, :k])
                _write(store.inverse, k, n, torch.cat([left, corner], dim=-1))
                store.inverse_rows = n
            return store.inverse[:n, :n]

    def append(self, old: Tensor, new: Tensor, scale: Tensor | None = None) -> Factor:
        """Factor for inputs [old; new]: L′ = [[L, 0], [Bᵀ, C]] with B = L⁻¹K₁₂ and CCᵀ = K₂₂ + λ diag(scale²) − BᵀB.

        Args:
            old: (n, d).
            new: (m, d).
            scale: (m,), noise of the new observations relative to that which λ stands for; 1 if None.

        Raises:
            ValueError: if C does not exist numerically; nothing has changed then.
        """
        n, m = self.n, new.shape[0]
        rows = self.cross(new, new)
        one = torch.ones(m, dtype=rows.dtype, device=rows.device) if scale is None else scale.square()
        rows = rows + self.regularizer * torch.diag(one)
        if n:
            block = linalg.substitute(self.lower, self.cross(old, new))
            small = linalg.cholesky(rows - block.mT @ block, "GP.condition")
            rows = torch.cat([block.mT, small], dim=-1)
        else:
            rows = linalg.cholesky(rows, "GP.condition")
        store = self.store
        if not store.claim(n, m, new.device):
            fits = n + m <= store.lower.shape[0] and store.lower.device == new.device
            capacity = store.lower.shape[0] if fits else max(64, n + m + max(n + m, 256) // 2)
            store = store.copy(n, capacity, new.device)
            store.rows = n + m  # nobody else knows this one yet
        _write(store.lower, n, n + m, rows)
        return Factor(self.kernel, self.form, self.regularizer, store, n + m)

    def to(self, device: torch.device, kernel: Kernel) -> Factor:
        """The same factor on another device, with a kernel that is already there."""
        return Factor(
            kernel,
            kernels.closed_form(kernel),
            self.regularizer,
            self.store.copy(self.n, self.n, device),
            self.n,
        )
