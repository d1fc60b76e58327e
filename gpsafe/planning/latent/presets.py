"""The published algorithms as settings of one actor-critic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpsafe.planning.latent.penalties import Barrier, Multiplier, Penalty


@dataclass(frozen=True, slots=True)
class ActorCriticSettings:
    """One algorithm.

    Args:
        name: of it.
        penalty: makes what carries the constraint.
        extrinsic, intrinsic: weights of reward and disagreement.
        alpha: of the bonus on the cost.
        apart: members go apart, the best return and the worst cost over them count.
        horizon, discount, mixing: H, γ, λ.
        hidden, layers: width of the networks, and how many hidden layers.
        starts: posterior states that an update starts from.
        updates: after each iteration.
        critic_rate: Adam's, of the critics.
        least_std, first_std: of the policy before tanh: smallest, and at the start.
    """

    name: str
    penalty: Callable[[], Penalty]
    extrinsic: float = 0.0
    intrinsic: float = 0.0
    alpha: float = 0.0
    apart: bool = False
    horizon: int = 12
    discount: float = 0.99
    mixing: float = 0.95
    hidden: int = 48
    layers: int = 2
    starts: int = 64
    updates: int = 60
    critic_rate: float = 1e-3
    least_std: float = 0.1
    first_std: float = 1.0


PRESETS: dict[str, ActorCriticSettings] = {
    settings.name: settings
    for settings in (
        ActorCriticSettings("actsafe-published", lambda: Barrier(rate=1e-3), intrinsic=1.0, alpha=1.0),
        ActorCriticSettings("actsafe-corrected", Barrier, intrinsic=1.0, alpha=1.0),
        ActorCriticSettings("lambda", Multiplier, extrinsic=1.0, apart=True),
        ActorCriticSettings("bsrp-lag", Multiplier, extrinsic=1.0),
    )
}
"""At the scale of this project: 1e-3 in place of 8e-5 for Adam, and the multipliers of `Multiplier`."""
