"""What was seen: episodes of images, inputs, rewards and costs, from which batches for a world model are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.planning.latent._state import Arrays, State, array

PARTS = ("images", "actions", "reward", "cost", "readings")


def pictures(images: Tensor) -> Tensor:
    """What a world model is shown: bytes as numbers in [−½, ½], as published; other images as they are."""
    return images.float() / 255.0 - 0.5 if images.dtype == torch.uint8 else images


@short
@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """B episodes of T steps; what stands at t belongs to the state seen at t.

    Args:
        images: (B, T + 1, *shape); bytes, or numbers as the world model is to see them.
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
        for name in PARTS[1:]:
            value = getattr(self, name)
            if value.shape[:2] != lead or value.ndim != (2 if name in ("reward", "cost") else 3):
                raise _require.fail("Seen", f"{name} of {tuple(lead)} steps", f"shape {tuple(value.shape)}")
            if value.numel():
                _require.finite("Seen", name, value)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Tensor | slice) -> Seen:
        return Seen(*(getattr(self, part)[rows] for part in PARTS))

    def to(self, device: torch.device | str) -> Seen:
        """The same on a device."""
        return Seen(*(getattr(self, part).to(device) for part in PARTS))

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(getattr(self, part).nbytes for part in PARTS)

    def state(self) -> Arrays:
        """Everything, as arrays."""
        return {part: array(getattr(self, part)) for part in PARTS}

    @staticmethod
    def of(state: State) -> Seen:
        """What `state` gave."""
        return Seen(*(torch.from_numpy(state[part]) for part in PARTS))


@dataclass(slots=True, eq=False)
class Stretch:
    """Episodes that were added at once, what they weigh in every member (B, M), and the name of their file if there is one."""

    seen: Seen
    weights: Tensor
    name: str | None = None


class Episodes:
    """All that was seen, and for every episode how much it weighs in every member (a bootstrap, Poisson of mean 1).

    Args:
        members: M of the ensemble.
        preference: how much likelier an episode with a reward is drawn than one without; 1: not at all.
        bootstrap: False: every episode weighs 1 in every member, as published.
        capacity: episodes that are kept; the oldest go first, by whole stretches that were added. None: all.
    """

    def __init__(
        self, members: int, *, preference: float = 1.0, bootstrap: bool = True, capacity: int | None = None
    ) -> None:
        self.members = _require.count("Episodes", "members", members)
        self.preference = float(_require.positive("Episodes", "preference", preference))
        self.bootstrap = bootstrap
        self.capacity = None if capacity is None else _require.count("Episodes", "capacity", capacity)
        self.stretches: list[Stretch] = []

    def __len__(self) -> int:
        return sum(len(each.seen) for each in self.stretches)

    def add(self, more: Seen, generator: torch.Generator) -> None:
        """Keeps further episodes, of the same length."""
        if self.stretches and (old := self.stretches[0].seen.images.shape[1:]) != more.images.shape[1:]:
            raise _require.fail("Episodes.add", f"episodes of shape {tuple(old)}", f"{tuple(more.images.shape[1:])}")
        drawn = torch.ones(len(more), self.members, device=generator.device)
        weights = torch.poisson(drawn, generator=generator) if self.bootstrap else drawn
        self.keep(Stretch(more.to(generator.device), weights))

    def keep(self, more: Stretch) -> None:
        """Keeps episodes whose weights are known."""
        self.stretches.append(more)
        while self.capacity is not None and len(self.stretches) > 1 and len(self) > self.capacity:
            self.stretches.pop(0)

    def rows(self, wanted: Sequence[int], generator: torch.Generator, *, length: int | None = None) -> Seen:
        """Episodes by number, or of each a stretch of `length` steps that begins anywhere."""
        return self._taken(wanted, generator, length)[0]

    def sample(self, count: int, generator: torch.Generator, *, length: int | None = None) -> tuple[Seen, Tensor]:
        """Episodes (or parts of them) drawn with replacement, and their weights (M, count)."""
        if not self.stretches:
            raise _require.fail("Episodes.sample", "at least one episode", "none")
        good = torch.cat([(each.seen.reward > 0).any(-1) for each in self.stretches])
        likely = torch.where(good, self.preference, 1.0)
        drawn = torch.multinomial(likely, count, replacement=True, generator=generator)
        return self._taken(drawn.tolist(), generator, length)

    def _taken(self, wanted: Sequence[int], generator: torch.Generator, length: int | None) -> tuple[Seen, Tensor]:
        steps = self.stretches[0].seen.reward.shape[1]
        span = steps if length is None else min(length, steps)
        first = [0] * len(wanted)
        if span < steps:
            ends = torch.randint(steps - span + 1, (len(wanted),), generator=generator, device=generator.device)
            first = ends.tolist()
        at: list[tuple[Stretch, int]] = []
        for row in wanted:
            number = 0
            while row >= len(self.stretches[number].seen):
                row, number = row - len(self.stretches[number].seen), number + 1
            at.append((self.stretches[number], row))
        spans = [(each, i, slice(t, t + span)) for (each, i), t in zip(at, first, strict=True)]
        parts = (torch.stack([getattr(each.seen, part)[i, t] for each, i, t in spans]) for part in PARTS)
        return Seen(*parts), torch.stack([each.weights[i] for each, i in at]).T
