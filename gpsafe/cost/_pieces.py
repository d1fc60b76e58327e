"""Boxes that cover sets piece by piece, batched: how a tube cuts a set, and what it makes of the images of the pieces."""

from __future__ import annotations

import torch
from torch import Tensor

from gpsafe.sets.zonotope import Zonotope


def take(value: Tensor, index: Tensor) -> Tensor:
    """value (P, N, d), index (P, K) into N → (P, K, d)."""
    return torch.gather(value, 1, index.unsqueeze(-1).expand(*index.shape, value.shape[-1]))


def cut(tube: Zonotope, count: int, sides: Tensor) -> Zonotope:
    """The interval hulls of sets (P, N) in `count` equal boxes each, (P, N·count), one set after the other.

    Args:
        tube: the sets.
        count: a power of two.
        sides: (P, N, d), positive: what says where to cut. Halved again and again across the widest, whatever the hull's own
            sides are: sets with equal `sides` are cut alike.
    """
    center, radius = tube.center.unsqueeze(2), tube.radius
    while center.shape[2] < count:
        halved = torch.zeros_like(radius).scatter(-1, sides.argmax(-1, keepdim=True), 0.5)
        shift = (halved * radius).unsqueeze(2)
        radius, sides = (1 - halved) * radius, (1 - halved) * sides
        center = torch.cat([center - shift, center + shift], dim=2)
    rays = torch.diag_embed(radius * (1 + 1e-12)).repeat_interleave(count, dim=1)
    return Zonotope(center.flatten(1, 2), rays)


def hull(parts: Zonotope, count: int) -> Zonotope:
    """The interval hull of every `count` sets of (P, N·count), (P, N)."""
    ends = (parts.center - parts.radius, parts.center + parts.radius)
    low, high = (end.unflatten(1, (-1, count)) for end in ends)
    return _box(low.amin(2), high.amax(2))


def common(a: Zonotope, without_a: Tensor, b: Zonotope, without_b: Tensor) -> Zonotope:
    """Boxes around what the interval hulls of two enclosures of the same sets have in common, set by set; of one where the
    other is to be left out. Hulls that miss each other by rounding give what lies between them: the set of a generator is that
    of its negative.
    """
    pairs = ((a, without_a.unsqueeze(-1)), (b, without_b.unsqueeze(-1)))
    low = torch.maximum(*(torch.where(gone, -torch.inf, z.center - z.radius) for z, gone in pairs))
    high = torch.minimum(*(torch.where(gone, torch.inf, z.center + z.radius) for z, gone in pairs))
    return _box(low, high)


def _box(low: Tensor, high: Tensor) -> Zonotope:
    return Zonotope(0.5 * (low + high), torch.diag_embed(0.5 * (high - low) * (1 + 1e-12)))
