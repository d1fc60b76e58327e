"""Plants with finitely many states of knowledge, on which every quantity of theory §4 is a small matrix product.

The plant sees the centre c(x) of the cell of its state: x⁺ = c(x) + u/4 + f(c(x), u) + w with w ~ N(0, σ²). Then f, the
policies, the posterior and every value function matter at the cells only; values are exact up to rounding, and the
supremum over rectangular sets of f is bracketed by a grid of means and the slope osc(V)/(σ√(2π)) of m ↦ E V(m + w).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

POINTS = 65  # of the grid of means between l and h


@dataclass(frozen=True, slots=True, eq=False)
class FinitePlant:
    """Cells of [−1, 1] (the outer two reach to infinity), P policies, a horizon, noise.

    Attributes:
        centers: (S,).
        inputs: u of every policy in every cell, (P, S).
        start: cell of x₀.
        horizon: T.
        noise_std: σ.
    """

    centers: Tensor
    inputs: Tensor
    start: int
    horizon: int
    noise_std: float

    @staticmethod
    def draw(cells: int, policies: int, horizon: int, noise_std: float, source: torch.Generator) -> FinitePlant:
        """Half the policies are saturated set-point feedback, half choose at random in every cell."""
        centers = (torch.arange(cells, dtype=torch.float64) + 0.5) * 2 / cells - 1
        goals = 2 * torch.rand(policies // 2, 1, dtype=torch.float64, generator=source) - 1
        feedback = (3 * (goals - centers)).clamp(-1, 1)
        random = 2 * torch.rand(policies - len(feedback), cells, dtype=torch.float64, generator=source) - 1
        start = int(torch.randint(cells, (1,), generator=source))
        return FinitePlant(centers, torch.cat([feedback, random]), start, horizon, noise_std)

    @property
    def z(self) -> Tensor:
        """(c, u) of every policy and cell, (P, S, 2)."""
        return torch.stack([self.centers.expand_as(self.inputs), self.inputs], dim=-1)

    def mean(self, residual: Tensor) -> Tensor:
        """Next means for a residual (P, S)."""
        return self.centers + 0.25 * self.inputs + residual

    def transition(self, mean: Tensor) -> Tensor:
        """P(next cell), (*b) → (*b, S)."""
        edges = self.centers[:-1] + 0.5 * (self.centers[1] - self.centers[0])
        below = torch.special.ndtr((edges - mean.unsqueeze(-1)) / self.noise_std)
        ends = torch.zeros_like(below[..., :1])
        return torch.diff(torch.cat([ends, below, ends + 1], -1), dim=-1)

    def value(self, stage: Tensor, residual: Tensor, weights: Tensor | None = None) -> Tensor:
        """E Σ_{t<T} weights_t stage(cell_t) for every policy.

        Args:
            stage: (*q, P or 1, S).
            residual: f at every policy and cell, (P, S).
            weights: (T,); ones by default.

        Returns:
            (*q, P).
        """
        kernel = self.transition(self.mean(residual))
        weights = torch.ones(self.horizon, dtype=torch.float64) if weights is None else weights
        value = torch.zeros_like(stage + residual)
        for t in range(self.horizon - 1, -1, -1):
            value = weights[t] * stage + torch.einsum("psn,...pn->...ps", kernel, value)
        return value[..., self.start]

    def supremum(self, stage: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper end of sup over l ≤ f ≤ h (chosen anew at every step) of E Σ stage(cell_t).

        Args:
            stage: (*q, P or 1, S).
            low, high: l and h, (P, S).

        Returns:
            Both ends, (*q, P) each.
        """
        share = torch.linspace(0, 1, POINTS, dtype=torch.float64)
        means = self.mean(low).unsqueeze(-1) + (high - low).unsqueeze(-1) * share
        kernel = self.transition(means)  # (P, S, K, S)
        gap = 0.5 * (high - low) / (POINTS - 1) / (self.noise_std * math.sqrt(2 * math.pi))
        below = torch.zeros_like(stage + low)
        above = below
        for _ in range(self.horizon):
            swing = above.amax(-1, keepdim=True) - above.amin(-1, keepdim=True)
            below = stage + torch.einsum("pskn,...pn->...psk", kernel, below).amax(-1)
            above = stage + torch.einsum("pskn,...pn->...psk", kernel, above).amax(-1) + gap * swing
        return below[..., self.start], above[..., self.start] * (1 + 1e-12)

    def roll(self, residual: Tensor, policy: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """One episode of a policy: z_t (T, 2) and y_t = f(z_t) + w_t, (T,)."""
        mean = self.mean(residual)[policy]
        noise = self.noise_std * torch.randn(self.horizon, dtype=torch.float64, generator=source)
        cell, cells = self.start, []
        for t in range(self.horizon):
            cells.append(cell)
            cell = int((self.centers - (mean[cell] + noise[t])).abs().argmin())
        return self.z[policy, cells], residual[policy, cells] + noise
