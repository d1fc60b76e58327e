"""Generalised advantages, natural gradients by conjugate gradients, line search: on-policy updates of a Gaussian policy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from gpsafe.baselines._nets import Array, Net
from gpsafe.models import _flat


def advantages(
    reward: Array, value: Array, after: Array, terminated: Array, ended: Array, discount: float, decay: float
) -> Array:
    """Generalised advantages A_t = Σ_k (γλ)^k δ_{t+k} within an episode, δ = r + γ V(s⁺)(1 − terminated) − V(s), (L, n).

    Args:
        reward, value, after: r, V(s), V(s⁺), (L, n); a time-out and the end of a batch bootstrap V(s⁺), a termination 0.
        terminated, ended: (L, n), Boolean.
        discount, decay: γ, λ.
    """
    delta, found = reward + discount * after * ~terminated - value, np.zeros(reward.shape)
    later = np.zeros(reward.shape[1:])
    for t in range(len(reward) - 1, -1, -1):
        later = delta[t] + discount * decay * ~ended[t] * later
        found[t] = later
    return found


def regress(net: Net, rows: Array, goal: Array, rate: float) -> None:
    """A step of Adam on the mean square of net(rows) − goal over all rows (n, d), goal (*lead, n, d_out)."""
    found: list[Array] = []
    for some in _flat.pieces(len(rows), max(net.sizes) * math.prod(net.flat.shape[:-1])):
        values = net(rows[some])
        found.append(net.backward(values, 2 * (values[-1] - goal[..., some, :]) / len(rows)))
    net.step(sum(found[1:], found[0]), rate)


def barrier(change: float, room: float, weight: float) -> float:
    """−β log(1 − Δ/ε): 0 at Δ = 0, ∞ from Δ = ε on; its slope at 0 is β/ε."""
    return -weight * math.log1p(-change / room) if change < room else math.inf


# ------------------------------------------------------------------ natural gradients
def conjugate_gradient(
    product: Callable[[Array], Array], b: Array, *, iterations: int = 10, residual: float = 1e-10
) -> Array:
    """x with H x ≈ b, H given by v ↦ H v."""
    x, r, p = np.zeros_like(b), b.copy(), b.copy()
    square = r @ r
    for _ in range(iterations):
        if not square > residual:
            break
        moved = product(p)
        step = square / (p @ moved)
        x, r = x + step * p, r - step * moved
        square, before = r @ r, square
        p = r + square / before * p
    return x


class Surrogate:
    """A policy N(μ, σ²I) about its present parameters θ₀, on a batch.

    Args:
        net: μ; its parameters are moved by `search`.
        rows, drawn: standardised states (N, nx) and actions (N, nu).
        std: σ.
        squash: μ is tanh of the outputs.
        damping: added to the Fisher matrix, which is that of every fourth row.
    """

    def __init__(
        self, net: Net, rows: Array, drawn: Array, std: float, *, squash: bool = False, damping: float = 0.1
    ) -> None:
        self.net, self.rows, self.std, self.squash, self.damping = net, rows, std, squash, damping
        self.start, self.values = net.flat.copy(), net(rows)
        self.old, self.drawn = self.mean(self.values), drawn
        self._few = [v[::4] for v in self.values]
        self._bend = self._slope(self._few)

    def mean(self, values: list[Array]) -> Array:
        """μ of the values of the network."""
        return np.tanh(values[-1]) if self.squash else values[-1]

    def _slope(self, values: list[Array]) -> Array | float:
        return 1 - np.square(np.tanh(values[-1])) if self.squash else 1.0

    def pull(self, cotangent: Array) -> Array:
        """∇_θ of the mean of cotangent·μ at θ₀."""
        return self.net.backward(self.values, cotangent * self._slope(self.values) / len(self.rows))

    def gradient(self, weight: Array) -> Array:
        """∇_θ E[ρ·weight] at θ₀, ρ the ratio of densities, weight (N,)."""
        return self.pull(weight[:, None] * (self.drawn - self.old) / self.std**2)

    def fisher(self, direction: Array) -> Array:
        """(F + damping·1) v, F = E[Jᵀ J]/σ²: the Hessian of KL(old‖new) at θ₀."""
        moved = self.net.along(self._few, direction) * (self._bend * self._bend) / (self.std**2 * len(self._few[0]))
        return self.net.backward(self._few, moved) + self.damping * direction

    def natural(self, gradient: Array) -> Array:
        """H⁻¹ g."""
        return conjugate_gradient(self.fisher, gradient)

    def now(self) -> tuple[Array, Array, float]:
        """μ (N, nu), ρ (N,) and KL(old‖new) of the parameters that the network has now."""
        mean = self.mean(self.net(self.rows))
        far, near = np.square(self.drawn - mean).sum(-1), np.square(self.drawn - self.old).sum(-1)
        divergence = np.square(mean - self.old).sum(-1).mean() / (2 * self.std**2)
        return mean, np.exp((near - far) / (2 * self.std**2)), float(divergence)

    def search(
        self, step: Array, accept: Callable[[Array, Array, float, float], bool], *, times: int, factor: float = 0.8
    ) -> tuple[float, float]:
        """Backtracking along θ₀ + factor^j·step, j < times: the first that is accepted; θ₀ if none is.

        Args:
            step: (P,).
            accept: of μ, ρ, KL and factor^j.
            times, factor: see above.

        Returns:
            The share of the step that was taken (0: none) and its KL.
        """
        for j in range(times):
            self.net.flat[:] = self.start + factor**j * step
            mean, ratio, divergence = self.now()
            if accept(mean, ratio, divergence, factor**j):
                return factor**j, divergence
        self.net.flat[:] = self.start
        return 0.0, 0.0
