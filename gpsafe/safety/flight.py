"""Episodes of a plant behind a safety filter, whatever is proposed: what was applied, on whose word, and what came of it.

flight = fly(plant, safe, lambda seen, g: plant.input_box.sample(1, g)[0], steps=100, generator=g)
flight.violated, flight.counts["plan"], flight.row()
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.safety.filter import Decision, SafetyFilter, Source
from gpsafe.systems.episodic import Episodic

__all__ = ["Flight", "capture", "fly", "tally"]

Propose = Callable[[Tensor, torch.Generator], Tensor]
SOURCES: tuple[str, ...] = get_args(Source)
CORRECTED = 1e-6  # |u_L − u| from which an input counts as corrected


@dataclass(frozen=True, slots=True, eq=False)
class Flight:
    """One episode of t steps.

    Attributes:
        states: true states, (t + 1, nx).
        seen: what was measured before each step, (t, nx).
        proposed, inputs: u_L and the u that was applied, (t, nu).
        decisions: of the filter, one a step; none without one.
        seconds: CPU time of each decision.
        violated: whether the last true state is outside the limits, which ended the episode.
        refuted: the first refutation of the filter's assumptions, in words; the measurement of the last state counts.
    """

    states: Tensor
    seen: Tensor
    proposed: Tensor
    inputs: Tensor
    decisions: tuple[Decision, ...]
    seconds: tuple[float, ...]
    violated: bool
    refuted: str | None = None

    @property
    def counts(self) -> Counter[str]:
        """How many inputs came from where; "unfiltered" without a filter."""
        return _sources(self.decisions, len(self.inputs))

    def row(self) -> dict[str, Any]:
        """For a table: steps, violated, what `tally` and `capture` count, corrected, mean change, refuted, median CPU ms."""
        change = (self.inputs - self.proposed).abs().amax(-1)
        return {
            "steps": len(self.inputs),
            "violated": self.violated,
            **tally(self.decisions, len(self.inputs)),
            "corrected": int((change > CORRECTED).sum()),
            "change": float(change.mean()),
            **capture(self.decisions),
            "refuted": self.refuted is not None,
            "ms": 1e3 * float(np.median(self.seconds)) if self.seconds else 0.0,
        }


def tally(decisions: Sequence[Decision], steps: int) -> dict[str, int]:
    """Of the decisions of an episode, one a step, or of none: `from_*`, which sum to `steps`, and `backed`."""
    sources = _sources(decisions, steps)
    return {f"from_{name}": sources[name] for name in SOURCES} | {"backed": sum(d.backed for d in decisions)}


def capture(decisions: Sequence[Decision]) -> dict[str, int]:
    """`captured` of `captured_of`: measured states in the tube of some member, of those at which a plan had a stage left."""
    told = [bool(d.contained.any()) for d in decisions if d.contained is not None]
    return {"captured": sum(told), "captured_of": len(told)}


def _sources(decisions: Sequence[Decision], steps: int) -> Counter[str]:
    return Counter(d.source for d in decisions) if decisions else Counter(unfiltered=steps)


def fly(
    system: Episodic,
    safe: SafetyFilter | None,
    propose: Propose,
    *,
    steps: int,
    generator: torch.Generator,
    start: Tensor | None = None,
) -> Flight:
    """One episode from the plant's own start, or a given one, until T steps are over or the true state leaves the limits.

    Args:
        system: draws starts, measurements and noise from the generator.
        safe: the filter, started anew; None: what is proposed is applied, clipped to the inputs.
        propose: (measured state (nx,), generator) ↦ u_L (nu,).
        steps: T.
        generator: of everything that is drawn, in the order measurement, proposal, noise.
        start: true state (nx,).
    """
    _require.kind("fly", "system", system, Episodic)
    filter = None if safe is None else safe.start()
    x = system.initial(1, generator) if start is None else _require.shape("fly", "start", start, (system.nx,))[None]
    states, seen, proposed, inputs, decisions, seconds = [x[0]], [], [], [], [], []
    for _ in range(_require.count("fly", "steps", steps)):
        seen.append(system.observe(x, generator)[0])
        # Who proposes may write on what he is given, which an exact measurement is the state of, and use his answer again.
        wanted = propose(seen[-1].clone(), generator)
        proposed.append(_require.shape("fly", "proposed input", wanted, (system.nu,)).clone())
        u = system.input_box.clip(proposed[-1])
        if filter is not None:
            begun = time.process_time()
            decision, filter = filter.decide(seen[-1], proposed[-1])
            seconds.append(time.process_time() - begun)
            decisions.append(decision)
            u = decision.u
        inputs.append(u)
        x = system.advance(x, u.unsqueeze(0), generator)
        states.append(x[0])
        if bool(system.terminated(x)[0]):
            break
    parts = torch.stack(states), torch.stack(seen), torch.stack(proposed), torch.stack(inputs)
    # Measured with randomness of its own: nobody's later numbers depend on it.
    last = None if filter is None else filter.arrived(system.observe(x, generator.clone_state())[0])
    refuted = None if last is None else last.falsified
    return Flight(*parts, tuple(decisions), tuple(seconds), bool(system.terminated(x)[0]), refuted)
