"""What was seen: episodes of images, inputs, rewards and costs, from which batches for a world model are drawn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short


@short
@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """B episodes of T steps; what stands at t belongs to the state seen at t.

    Args:
        images: (B, T + 1, *shape).
        actions: (B, T + 1, nu); that at t led to the image at t, so the first is 0.
        reward, cost: (B, T + 1).
        readings: what the picture shows, by its known geometry, (B, T + 1, k); k may be 0.
    """

    images: Tensor
    actions: Tensor
    reward: Tensor
    cost: Tensor
    readings: Tensor

    def __post_init__(self) -> None:
        lead = self.images.shape[:2]
        for name in ("actions", "reward", "cost", "readings"):
            value = getattr(self, name)
            if value.shape[:2] != lead or value.ndim != (2 if name in ("reward", "cost") else 3):
                raise _require.fail("Seen", f"{name} of {tuple(lead)} steps", f"shape {tuple(value.shape)}")
            _require.finite("Seen", name, value)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Tensor) -> Seen:
        return Seen(self.images[rows], self.actions[rows], self.reward[rows], self.cost[rows], self.readings[rows])


class Episodes:
    """All that was seen, and for every episode how much it weighs in every member (a bootstrap, Poisson of mean 1).

    Args:
        members: M of the ensemble.
        preference: how much likelier an episode with a reward is drawn than one without; 1: not at all.
        bootstrap: False: every episode weighs 1 in every member, as published.
    """

    def __init__(self, members: int, *, preference: float = 1.0, bootstrap: bool = True) -> None:
        self.members = _require.count("Episodes", "members", members)
        self.preference = float(_require.positive("Episodes", "preference", preference))
        self.bootstrap = bootstrap
        self.seen: Seen | None = None
        self.weights = torch.zeros(0, members)

    def __len__(self) -> int:
        return 0 if self.seen is None else len(self.seen)

    def add(self, more: Seen, generator: torch.Generator) -> None:
        """Keeps further episodes, of the same length."""
        old = self.seen
        parts = ("images", "actions", "reward", "cost", "readings")
        if old is not None and old.images.shape[1:] != more.images.shape[1:]:
            raise _require.fail(
                "Episodes.add", f"episodes of shape {tuple(old.images.shape[1:])}", f"{tuple(more.images.shape[1:])}"
            )
        drawn = torch.ones(len(more), self.members)
        self.weights = torch.cat([self.weights, torch.poisson(drawn, generator=generator) if self.bootstrap else drawn])
        self.seen = more if old is None else Seen(*(torch.cat([getattr(old, p), getattr(more, p)]) for p in parts))

    def sample(self, count: int, generator: torch.Generator) -> tuple[Seen, Tensor]:
        """Episodes drawn with replacement, and their weights (M, count)."""
        if self.seen is None:
            raise _require.fail("Episodes.sample", "at least one episode", "none")
        likely = torch.where((self.seen.reward > 0).any(-1), self.preference, 1.0)
        rows = torch.multinomial(likely, count, replacement=True, generator=generator)
        return self.seen[rows], self.weights[rows].T
