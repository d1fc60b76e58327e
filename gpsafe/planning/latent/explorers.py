"""What a planner in latent space seeks and fears: the published family of explorers as weights of one objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpsafe import _require

Pessimism = Literal["none", "mean", "worst", "bonus"]


@dataclass(frozen=True, slots=True)
class LatentExplorer:
    """What is sought and what is feared.

    Args:
        name: of the explorer.
        extrinsic: weight of the reward.
        intrinsic: weight of the disagreement.
        pessimism: "none": no constraint; "mean": mean over members; "worst": the worst member's; "bonus": mean + alpha · D, as
            published for the actor-critic.
        alpha: of "bonus" (0.001 and 50 are published).
        uniform: inputs drawn uniformly from their box, without any plan.
    """

    name: str
    extrinsic: float = 0.0
    intrinsic: float = 0.0
    pessimism: Pessimism = "none"
    alpha: float = 1.0
    uniform: bool = False

    def __post_init__(self) -> None:
        _require.one_of("LatentExplorer", "pessimism", self.pessimism, ("none", "mean", "worst", "bonus"))
        _require.nonnegative("LatentExplorer", "alpha", self.alpha)


LATENT_EXPLORERS: dict[str, LatentExplorer] = {
    explorer.name: explorer
    for explorer in (
        LatentExplorer("uniform", uniform=True),
        LatentExplorer("greedy", extrinsic=1.0),
        LatentExplorer("optimistic", extrinsic=1.0, intrinsic=1.0),
        LatentExplorer("opax", intrinsic=1.0),
        LatentExplorer("actsafe", intrinsic=1.0, pessimism="worst"),
        LatentExplorer("actsafe-mean", intrinsic=1.0, pessimism="mean"),
        LatentExplorer("actsafe-bonus", intrinsic=1.0, pessimism="bonus"),
        LatentExplorer("safe-greedy", extrinsic=1.0, pessimism="worst"),
    )
}
"""The published family, as planners. "uniform" draws from all of the input box, not from its upper corner as published."""
