"""Bounds of the worst-case cost sup_{f ∈ F_n} J_c(π, f): one interface (theory §3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from gpsafe._show import short
from gpsafe.confidence.set import ConfidenceSet
from gpsafe.policies import PolicyClass
from gpsafe.systems.task import Task


@short
@dataclass(frozen=True, slots=True, eq=False)
class CostInterval:
    """What one method says about the robust cost v_i of P policies.

    v_i is the supremum of E Σ c over plants that pick f_t with l_n ≤ f_t ≤ h_n at every step (and may change with time),
    so v_i ≥ sup_{f ∈ F_n} J_c(π_i, f) ≥ J_c(π_i, f*). Upper ends that also use ‖f‖_k ≤ B and the ellipsoids of F_n between
    points (theory §2.9) dominate sup_{f ∈ F_n} J_c, which is what safety needs, and v_i up to the second order in the size
    of their cells or tubes.

    Args:
        lower, upper: (P,), lower ≤ v and sup_{f ∈ F_n} J_c ≤ upper (lower may be 0, upper may be T·C: then it says
            nothing on that side).
        sound_upper: whether v ≤ upper is a theorem under `assumptions` (False for sampled and hallucinated bounds).
        delta: probability with which a Monte-Carlo part may fail (0 for deterministic bounds), for all P together.
        method: name of the bound.
        assumptions: what is believed.
        vacuous: (P,) booleans: the upper end has saturated at T·C.
    """

    lower: Tensor
    upper: Tensor
    sound_upper: bool
    method: str
    delta: float = 0.0
    assumptions: tuple[str, ...] = ()
    vacuous: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))


@runtime_checkable
class CostBound(Protocol):
    """A way to bound sup_{f ∈ F_n} J_c(π, f). Implementations hold the task that they speak of."""

    @property
    def name(self) -> str: ...

    @property
    def task(self) -> Task:
        """x₀, T, c, d and σ of the plant that it speaks of."""
        ...

    @property
    def sound(self) -> bool:
        """Whether its upper ends are theorems (given the confidence set's assumptions)."""
        ...

    def evaluate(self, confidence: ConfidenceSet, policies: PolicyClass) -> CostInterval:
        """Interval for every policy of the class."""
        ...
