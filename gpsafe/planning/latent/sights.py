"""How plants are seen, and what of their pictures is known without learning."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.planning.latent.world import Sight
from gpsafe.systems.pendulum import wrap_angle
from gpsafe.systems.pixels import Capsules, capsules, images, rasterise
from gpsafe.systems.point_goal import PointGoal
from gpsafe.systems.swing_up import SparseCartPole, SparsePendulum

CONTRAST = 0.1  # below which a pixel is none of the point's


def empty_scene(plant: PointGoal, size: int) -> Tensor:
    """The arena without the point, (size, size, 3)."""
    drawn = capsules(plant, plant.initial_state.unsqueeze(0))
    rest = Capsules(drawn.start[:, :-1], drawn.end[:, :-1], drawn.radius[:-1], drawn.colour[:-1])
    return rasterise(rest, size=size)[0]


def point_goal_sight(
    plant: PointGoal, *, size: int = 16, width: float = 0.05, margin: float = 0.0, known_cost: bool = True
) -> Sight:
    """Pictures less the empty scene, so that only the point is left of them; its centroid; and the hazards' cost of that.

    The cost of a reading p is max over hazards of sigmoid((r + margin − ‖p − hazard‖)/width), which has gradients; the plant's
    own is its limit as width → 0 (at margin 0).

    Args:
        plant: whose hazards are known.
        size: of the images.
        width: of the smooth cost, in units of the state.
        margin: added to the hazards' radius.
        known_cost: False: the cost is left to the world model's head.
    """
    _require.positive("point_goal_sight", "width", width)
    empty = empty_scene(plant, size)
    half = 1.15 * plant.arena
    line = ((torch.arange(size, dtype=torch.float64) + 0.5) * 2 / size - 1) * half

    def see(x: Tensor) -> Tensor:
        return images(plant, x, size=size) - empty

    def read(image: Tensor) -> Tensor:
        light = (image.double().abs().sum(-1) - CONTRAST).clamp_min(0.0)  # (N, rows, columns)
        total = light.sum((-1, -2)).clamp_min(1e-9)
        across, up = (light.sum(-2) * line).sum(-1), (light.sum(-1) * line.flip(0)).sum(-1)
        return torch.stack([across, up], dim=-1) / total.unsqueeze(-1)

    def cost(place: Tensor) -> Tensor:
        gap = torch.linalg.vector_norm(place.unsqueeze(-2) - plant.hazards.to(place), dim=-1)
        return torch.sigmoid((plant.hazard_radius + margin - gap) / width).amax(-1)

    return Sight(see, read, cost if known_cost else None, readings=2)


def _beyond(limit: float, width: float) -> Callable[[Tensor], Tensor]:
    """What is of size y ↦ sigmoid((y − limit)/width), in place of a step that has no gradient."""
    return lambda y: torch.sigmoid((y.abs() - limit) / width)


def pendulum_sight(plant: SparsePendulum, *, size: int = 16, width: float = 0.05, known_cost: bool = True) -> Sight:
    """Two grey pictures less the paper, a substep apart: the rod at θ − dt·ω, where it was (to the noise), and at θ.

    Readings: sin θ and cos θ, from the centroid of the rod, and the difference of both angles by dt, over the safe speed. The
    cost is sigmoid((|ω|/safe_speed − 1)/width) of the last.

    Args:
        plant: whose limit is known.
        size: of the pictures.
        width: of the smooth cost, as a share of the safe speed.
        known_cost: False: the cost is left to the world model's head.
    """
    _require.positive("pendulum_sight", "width", width)
    line = (torch.arange(size, dtype=torch.float64) + 0.5) * 2 / size - 1
    rate = 1.0 / (plant.dt * plant.safe_speed)

    def see(x: Tensor) -> Tensor:
        before = torch.stack([x[..., 0] - plant.dt * x[..., 1], x[..., 1]], dim=-1)
        drawn = images(plant, torch.cat([before, x]), size=size).mean(-1)  # (2 N, size, size)
        paper = drawn[0, 0, 0]  # a corner: the rod ends within the window
        return torch.stack((paper - drawn).chunk(2), dim=-1)

    def angle(dark: Tensor) -> Tensor:
        """Of pictures (N, size, size)."""
        across, up = (dark.sum(-2) * line.to(dark)).sum(-1), (dark.sum(-1) * line.flip(0).to(dark)).sum(-1)
        return torch.atan2(across, up)

    def read(image: Tensor) -> Tensor:
        before, now = (angle(image.double()[..., i].clamp_min(0.0)) for i in range(2))
        return torch.stack([now.sin(), now.cos(), rate * wrap_angle(now - before)], dim=-1)

    smooth = _beyond(1.0, width)
    return Sight(see, read, (lambda told: smooth(told[..., 2])) if known_cost else None, readings=3)


def cartpole_sight(plant: SparseCartPole, *, size: int = 32, width: float = 0.05, known_cost: bool = True) -> Sight:
    """Coloured pictures, kept as bytes; the place of the cart is read from what is redder than blue.

    Args:
        plant: whose limit is known.
        size: of the pictures.
        width: of the smooth cost sigmoid((|p|/track − 1)/width), as a share of the track.
        known_cost: False: nothing is read, and the cost is left to the world model's head, as published.
    """
    _require.positive("cartpole_sight", "width", width)
    line = ((torch.arange(size, dtype=torch.float64) + 0.5) * 2 / size - 1) * (1.2 * plant.rail / plant.track)

    def see(x: Tensor) -> Tensor:
        return images(plant, x, size=size)

    def read(image: Tensor) -> Tensor:
        if not known_cost:
            return image.new_zeros(len(image), 0, dtype=torch.float64)
        red = (image[..., 0] - image[..., 2] - CONTRAST).double().clamp_min(0.0).sum(-2)  # (N, columns)
        return ((red * line.to(red)).sum(-1) / red.sum(-1).clamp_min(1e-9)).unsqueeze(-1)

    smooth = _beyond(1.0, width)
    cost = (lambda told: smooth(told[..., 0])) if known_cost else None
    return Sight(see, read, cost, readings=int(known_cost), compact=True)
