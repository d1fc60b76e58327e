"""How the point-goal plant is seen, and what of its pictures is known without learning."""

from __future__ import annotations

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.planning.latent.world import Sight
from gpsafe.systems.pixels import Capsules, capsules, images, rasterise
from gpsafe.systems.point_goal import PointGoal

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
