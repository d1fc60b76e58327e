"""Latent distributions of a recurrent state-space model: diagonal Gaussians, or groups of categoricals; their divergences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["gaussian", "categorical"]


@dataclass(frozen=True, slots=True, eq=False)
class Gaussian:
    """N(mean, diag std²), both (*b, S)."""

    mean: Tensor
    std: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """A draw (*b, S), differentiable in mean and std."""
        noise = torch.randn(self.mean.shape, dtype=self.mean.dtype, device=self.mean.device, generator=generator)
        return self.mean + self.std * noise

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self ‖ other) in nats, summed over S, (*b,)."""
        ratio = self.std / other.std
        gap = (self.mean - other.mean) / other.std
        return (0.5 * (ratio.square() + gap.square() - 1.0) - ratio.log()).sum(-1)

    def detach(self) -> Gaussian:
        """Without gradients."""
        return Gaussian(self.mean.detach(), self.std.detach())

    def __getitem__(self, index: object) -> Gaussian:
        return Gaussian(self.mean[index], self.std[index])  # type: ignore[index]


@dataclass(frozen=True, slots=True, eq=False)
class Categorical:
    """S groups of K classes: probabilities (*b, S, K). Samples and means are (*b, S·K)."""

    probabilities: Tensor

    @property
    def mean(self) -> Tensor:
        """(*b, S·K)."""
        return self.probabilities.flatten(-2)

    @property
    def std(self) -> Tensor:
        """Of every entry of a sample, (*b, S·K)."""
        return (self.probabilities * (1.0 - self.probabilities)).sqrt().flatten(-2)

    def sample(self, generator: torch.Generator) -> Tensor:
        """One-hot draws (*b, S·K); the gradient is that of the probabilities (straight through)."""
        p = self.probabilities
        drawn = torch.multinomial(p.detach().reshape(-1, p.shape[-1]), 1, generator=generator)
        hot = torch.zeros_like(p).reshape(-1, p.shape[-1]).scatter_(-1, drawn, 1.0).reshape(p.shape)
        return (hot + p - p.detach()).flatten(-2)

    def kl(self, other: Categorical) -> Tensor:
        """KL(self ‖ other) in nats, summed over groups, (*b,)."""
        return (self.probabilities * (self.probabilities.log() - other.probabilities.log())).sum((-1, -2))

    def detach(self) -> Categorical:
        """Without gradients."""
        return Categorical(self.probabilities.detach())

    def __getitem__(self, index: object) -> Categorical:
        return Categorical(self.probabilities[index])  # type: ignore[index]


Latent = Gaussian | Categorical


def stacked(of: Sequence[Latent]) -> Latent:
    """T distributions as one with a leading axis of length T."""
    if isinstance(of[0], Gaussian):
        return Gaussian(torch.stack([d.mean for d in of]), torch.stack([d.std for d in of]))
    return Categorical(torch.stack([d.probabilities for d in of]))  # type: ignore[union-attr]


@dataclass(frozen=True, slots=True)
class Head:
    """How `width` numbers become a distribution.

    Args:
        kind: "gaussian", or "categorical".
        size: S.
        classes: K, of a categorical.
        least: smallest standard deviation of a Gaussian, which is softplus(·) + least.
        mixing: share of the uniform distribution in a categorical, so that no divergence is infinite.
    """

    kind: Kind = "gaussian"
    size: int = 8
    classes: int = 8
    least: float = 0.1
    mixing: float = 0.01

    @property
    def width(self) -> int:
        """How many numbers make one."""
        return 2 * self.size if self.kind == "gaussian" else self.size * self.classes

    @property
    def out(self) -> int:
        """Entries of a sample."""
        return self.size if self.kind == "gaussian" else self.size * self.classes

    def __call__(self, raw: Tensor) -> Latent:
        """(*b, width) ↦ distribution."""
        if self.kind == "gaussian":
            mean, spread = raw.chunk(2, dim=-1)
            return Gaussian(mean, torch.nn.functional.softplus(spread) + self.least)
        share = torch.softmax(raw.unflatten(-1, (self.size, self.classes)), dim=-1)
        return Categorical((1.0 - self.mixing) * share + self.mixing / self.classes)


def divergence(posterior: Latent, prior: Latent, *, balance: float, free_nats: float) -> tuple[Tensor, Tensor]:
    """balance · max(KL(sg q ‖ p), free) + (1 − balance) · max(KL(q ‖ sg p), free), and KL(q ‖ p) itself; (*b,) each.

    The value is max(KL, free) whatever the balance, which only divides the gradient: `balance` of it trains the prior.
    `free_nats` are free on each side, as published.
    """
    to_prior = posterior.detach().kl(prior)  # type: ignore[arg-type]
    to_posterior = posterior.kl(prior.detach())  # type: ignore[arg-type]
    balanced = balance * to_prior.clamp_min(free_nats) + (1.0 - balance) * to_posterior.clamp_min(free_nats)
    return balanced, to_prior.detach()


def disagreement(priors: Latent, *, scale: float = 1.0) -> Tensor:
    """½ log(1 + scale · mean_d Var_members(mean) / (mean_d mean_members std² + 1e-5)): (M, *b, S) ↦ (*b,).

    The intrinsic reward of the published code, and (with scale 1, times a factor) its pessimism. It has no units of the task:
    nothing ties it to the cost of a policy.
    """
    between = priors.mean.var(0, unbiased=False).mean(-1)
    within = priors.std.square().mean(0).mean(-1)
    return 0.5 * torch.log1p(scale * between / (within + 1e-5))


def gaussian_log_density(x: Tensor, mean: Tensor, std: float) -> Tensor:
    """log N(x; mean, std² I) with all but the first axes summed by the caller: elementwise."""
    return -0.5 * ((x - mean) / std).square() - math.log(std) - 0.5 * math.log(2 * math.pi)
