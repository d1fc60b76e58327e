"""M copies of small layers in one call each, by `baddbmm`; weights come from a generator."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn


def uniform(*shape: int, fan_in: int, generator: torch.Generator) -> Tensor:
    """Uniform on ±1/√fan_in, what torch's own layers start with, but from a generator."""
    return (2.0 * torch.rand(*shape, dtype=torch.float64, generator=generator) - 1.0) / math.sqrt(fan_in)


class Linear(nn.Module):
    """M affine maps: (M, n, d_in) ↦ (M, n, d_out)."""

    def __init__(self, members: int, d_in: int, d_out: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(uniform(members, d_in, d_out, fan_in=d_in, generator=generator))
        self.bias = nn.Parameter(uniform(members, 1, d_out, fan_in=d_in, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """x @ W + b, member by member."""
        return torch.baddbmm(self.bias, x, self.weight)


class Perceptron(nn.Module):
    """M networks with ELU between their layers, sizes (d_in, …, d_out)."""

    def __init__(self, members: int, sizes: tuple[int, ...], generator: torch.Generator) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Linear(members, i, o, generator) for i, o in pairwise(sizes)])

    def forward(self, x: Tensor) -> Tensor:
        """(M, n, d_in) ↦ (M, n, d_out)."""
        for i, layer in enumerate(self.layers):
            x = layer(x if i == 0 else torch.nn.functional.elu(x))
        return x.to(self.layers[-1].weight.dtype)  # type: ignore[union-attr,arg-type]  (from what autocast rounds to)


class GRU(nn.Module):
    """M gated recurrent units: h⁺ = (1 − z) ∘ n + z ∘ h, n = tanh(W_n x + r ∘ (U_n h)), gates r, z logistic."""

    def __init__(self, members: int, d_in: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.into = Linear(members, d_in, 3 * hidden, generator)
        self.around = Linear(members, hidden, 3 * hidden, generator)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """(M, n, d_in), (M, n, hidden) ↦ (M, n, hidden)."""
        r, z, n = self.into(x).to(h.dtype).chunk(3, dim=-1)  # under autocast the state is not rounded
        rh, zh, nh = self.around(h).to(h.dtype).chunk(3, dim=-1)
        keep = torch.sigmoid(z + zh)
        return torch.lerp(torch.tanh(n + torch.sigmoid(r + rh) * nh), h, keep)


class LinearCell(nn.Module):
    """h⁺ = W x + b: no memory beyond the latent state; with it a model is linear throughout if its heads are."""

    def __init__(self, members: int, d_in: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.into = Linear(members, d_in, hidden, generator)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """(M, n, d_in), (M, n, hidden) ↦ (M, n, hidden)."""
        return self.into(x).to(h.dtype)


class Encoder(nn.Module):
    """Observations (n, *shape) ↦ (n, out): images (H, W, C) by 4×4 convolutions of stride 2 down to 4²; or dense."""

    def __init__(
        self, shape: tuple[int, ...], *, depth: int, hidden: tuple[int, ...], out: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.shape, self.levels = shape, levels(shape) if depth else 0
        self.convolutions = nn.ModuleList()
        channels = shape[-1]
        for i in range(self.levels):
            wide = depth * 2**i
            self.convolutions.append(_conv(nn.Conv2d(channels, wide, 4, 2, 1), channels * 16, generator))
            channels = wide
        flat = channels * 16 if self.levels else math.prod(shape)
        self.dense = Perceptron(1, (flat, *hidden, out), generator)

    def forward(self, o: Tensor) -> Tensor:
        """(n, *shape) ↦ (n, out)."""
        if self.levels:
            o = o.movedim(-1, 1)
            for layer in self.convolutions:
                o = torch.nn.functional.elu(layer(o))
        return self.dense(o.flatten(1).unsqueeze(0))[0]


class Decoder(nn.Module):
    """Features (n, d_in) ↦ observations (n, *shape): the encoder's shapes backwards."""

    def __init__(
        self, shape: tuple[int, ...], *, depth: int, hidden: tuple[int, ...], d_in: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.shape, self.levels = shape, levels(shape) if depth else 0
        self.wide = depth * 2 ** max(self.levels - 1, 0)
        flat = self.wide * 16 if self.levels else math.prod(shape)
        self.dense = Perceptron(1, (d_in, *hidden, flat), generator)
        self.convolutions = nn.ModuleList()
        channels = self.wide
        for i in reversed(range(self.levels)):
            thin = depth * 2 ** (i - 1) if i else shape[-1]
            self.convolutions.append(_conv(nn.ConvTranspose2d(channels, thin, 4, 2, 1), channels * 4, generator))
            channels = thin

    def forward(self, feature: Tensor) -> Tensor:
        """(n, d_in) ↦ (n, *shape)."""
        o = self.dense(feature.unsqueeze(0))[0]
        if not self.levels:
            return o.reshape(-1, *self.shape)
        o = o.reshape(-1, self.wide, 4, 4)
        for layer in self.convolutions:
            o = layer(torch.nn.functional.elu(o))
        return o.movedim(1, -1).to(feature.dtype)


def levels(shape: tuple[int, ...]) -> int:
    """How often an image (H, W, C) is halved to reach 4²; ValueError if it cannot."""
    side = shape[0]
    if len(shape) != 3 or shape[1] != side or side < 8 or side & (side - 1):
        raise ValueError(
            f"convolutions: expected square images (H, H, C) with H a power of 2 from 8 on, got shape {shape}"
        )
    return side.bit_length() - 3


def _conv(layer: nn.Conv2d | nn.ConvTranspose2d, fan_in: int, generator: torch.Generator) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(uniform(*layer.weight.shape, fan_in=fan_in, generator=generator))
        assert layer.bias is not None
        layer.bias.zero_()
    return layer
