"""A Gymnasium wrapper with the safety filter inside (public name: `gpsafe.safety.SafetyFilterWrapper`)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import gymnasium
import numpy as np
import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.sets.polytope import Polytope
from gpsafe.systems.actions import Array, Channel, observation_kept

if TYPE_CHECKING:
    from gpsafe.safety.filter import Decision, SafetyFilter

_log = logging.getLogger(__name__)


class SafetyFilterWrapper(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Filters the actions of any agent: `env = SafetyFilterWrapper(env, filter)`.

    The state is `info["state"]` where the environment gives it (as `gpsafe.systems.envs` does), else the observation, if
    all wrappers inside are known to hand it on; `state` overrides that. The theorem needs u to be applied exactly, so the
    wrappers inside are read (`gpsafe.systems.actions`): one that may change actions in an unknown way is refused, and so is a
    U that something on the way would clip. What cannot be read is listed in `assumptions`: among it that actions are rounded,
    if an action space is float32, and states, if they came so. An environment that tells the input that its plant got as
    `info["applied"]` (as `gpsafe.systems.envs` does) is held to it.

    The info of each step, and of a reset with the source "reset", gets "filter", whose entries keep their types, so that vector
    environments can stack them:

        source, reason          str;
        backed                  bool;
        contained               float: 1 if x was in a member's stored tube, 0 if it was in none, NaN if nothing is known;
        falsified               str: the assumption that is refuted, by the state that the step leads to if not before; empty if
                                none is;
        proposed, applied       (nu,), in the units of the problem; NaN at a reset;
        action                  (nu,), the action that has this effect without the filter: what an off-policy learner should
                                store, see `gpsafe.safety.replay`.

    `decision` is the last one in full; `falsified` the first refutation since the wrapper was made, also after resets, at which
    the filter starts anew.

    Args:
        env: with a Box action space.
        safety_filter: started anew at every reset.
        state: from observation and info to x (nx,).
        units: of the problem's inputs, needed where actions are rescaled inside: "plant", what the innermost environment gets,
            or "action", what is given to `env.step`, if the model was made of such actions.
        passing: classes of wrappers inside that hand actions on as they are, on your word.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        safety_filter: SafetyFilter,
        *,
        state: Callable[[Any, dict[str, Any]], Any] | None = None,
        units: Literal["plant", "action"] | None = None,
        passing: Sequence[type] = (),
    ) -> None:
        super().__init__(env)
        where, inputs = "SafetyFilterWrapper", safety_filter.problem.inputs
        channel = Channel.through(env, passing)
        if channel.scale.shape != (inputs.dim,):
            raise _require.fail(where, f"actions of shape ({inputs.dim},)", channel.scale.shape)
        if units is None and not channel.identity:
            raise _require.fail(where, 'units "plant" or "action" of the problem, as actions are rescaled inside', None)
        self._plant = _require.one_of(where, "units", units or "action", ("plant", "action")) == "plant"
        box = _bounds(inputs)
        if not channel.allows(*box, plant=self._plant):
            limits = (channel.low, channel.high)
            limits = [(channel.input(end) if self._plant else end).tolist() for end in limits]
            told = f"inputs in {[end.tolist() for end in box]} where {limits} pass"
            raise _require.fail(where, "a U whose inputs all reach the plant unclipped", told)
        self._channel = channel
        ends = box if self._plant else tuple(channel.input(end) for end in box)
        self._largest = np.maximum(*(np.abs(end) for end in ends))  # of what the plant gets
        self.safety_filter = safety_filter
        self.decision: Decision | None = None
        self.falsified: str | None = None
        self._state = state
        self._x: Tensor | None = None
        self._coarse = False  # whether states came in fewer digits than float64 has

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What `backed` rests on here: the filter's, and what is believed of the environment."""
        rounded = (("actions", not self._channel.exact), ("states", self._coarse))
        told = (f"rounding of {what} to float32 does not matter" for what, coarse in rounded if coarse)
        return (*self.safety_filter.assumptions, *self._channel.believed, *told)

    def _note(self, safety_filter: SafetyFilter) -> None:
        """Goes on with this filter; its refutation is kept and logged if it is the first."""
        self.safety_filter, falsified = safety_filter, safety_filter.falsified
        if falsified is not None and self.falsified is None:
            self.falsified = falsified
            _log.warning("an assumption of the safety filter is false: %s", falsified)

    def _measure(self, observation: Any, info: dict[str, Any]) -> Tensor:
        if self._state is not None:
            measured = self._state(observation, info)
        elif "state" in info:
            measured = info["state"]
        elif not observation_kept(self.env):
            expected = 'info["state"], or a function `state`, as a wrapper changes the observation or may'
            raise _require.fail("SafetyFilterWrapper", expected, "neither")
        else:
            measured = observation
        self._coarse |= str(getattr(measured, "dtype", "")).endswith(("float16", "float32"))
        try:
            x = torch.as_tensor(np.array(measured, dtype=np.float64))
        except (TypeError, ValueError) as error:  # a dictionary of observations, say
            expected = 'numbers as the state, info["state"], or a function `state`'
            raise _require.fail("SafetyFilterWrapper", expected, f"{type(measured).__name__}: {error}") from error
        self._x = _require.shape("SafetyFilterWrapper", "state", x, (self.safety_filter.problem.nx,))
        return self._x

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Resets both."""
        self._x = None
        observation, info = self.env.reset(seed=seed, options=options)
        self.safety_filter, self.decision = self.safety_filter.start(), None
        self._measure(observation, info)
        nothing = np.full(self._channel.scale.shape, math.nan)
        return observation, {**info, "filter": _told("reset", False, None, "", None, nothing, nothing, nothing)}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One step with the filtered action.

        Raises:
            ResetNeeded: before the first reset, and after a step or a reset that broke off.
        """
        if self._x is None:
            raise gymnasium.error.ResetNeeded("SafetyFilterWrapper.step: expected a call of reset first, got none")
        channel, plant = self._channel, self._plant
        given = _require.floats("SafetyFilterWrapper.step", "action", action).detach().cpu().numpy().copy()
        if given.shape != channel.scale.shape:
            raise _require.fail("SafetyFilterWrapper.step", f"action of shape {channel.scale.shape}", given.shape)
        proposed = channel.input(given) if plant else given
        decision, self.safety_filter = self.safety_filter.decide(self._x, torch.from_numpy(proposed.copy()))
        self._x = None  # until it is measured again: where a step breaks off, nobody knows where the plant is
        applied = decision.u.cpu().numpy().copy()
        sent = np.clip(
            channel.action(applied) if plant else applied, channel.low, channel.high
        )  # of rounding, see `allows`
        observation, reward, terminated, truncated, info = self.env.step(sent.astype(self.env.action_space.dtype))
        due = applied if plant else channel.input(applied)
        got = np.asarray(info.get("applied", due), np.float64)
        got = got.reshape(due.shape) if got.size == due.size else got  # of one input often a bare number
        close = 1e-12 if channel.exact else 1e-6  # the share by which tubes are widened; float32
        if got.shape != due.shape or not bool((np.abs(got - due) <= close * (self._largest + np.abs(due))).all()):
            why = f"the environment applied {got.tolist()}, not {due.tolist()}"
            self._note(self.safety_filter.refuted(why))
        self._note(self.safety_filter.arrived(self._measure(observation, info)))
        falsified = self.safety_filter.falsified
        self.decision = replace(decision, backed=decision.backed and falsified is None, falsified=falsified)
        told = _told(
            decision.source,
            self.decision.backed,
            decision.contained,
            decision.reason,
            falsified,
            proposed,
            applied,
            sent,
        )
        return observation, reward, terminated, truncated, {**info, "filter": told}


def _told(
    source: str,
    backed: bool,
    contained: Tensor | None,
    reason: str,
    falsified: str | None,
    proposed: Array,
    applied: Array,
    action: Array,
) -> dict[str, Any]:
    """See `SafetyFilterWrapper`: types that do not depend on the values."""
    return {
        "source": str(source),
        "backed": bool(backed),
        "contained": math.nan if contained is None else float(contained.any()),
        "reason": reason,
        "falsified": falsified or "",
        "proposed": proposed,
        "applied": applied,
        "action": action,
    }


def _bounds(inputs: Polytope) -> tuple[Array, Array]:
    """Lower and upper bounds of U, (nu,): exact where rows bound one input alone, else as `Polytope.support_outer`."""
    eye = torch.eye(inputs.dim, dtype=torch.float64, device=inputs.H.device)
    ends = []
    for sign in (-1.0, 1.0):
        alone = ((inputs.H != 0).sum(1) == 1).unsqueeze(-1) & (sign * inputs.H > 0)
        rows = torch.where(alone, inputs.h.unsqueeze(-1) / inputs.H.abs().clamp_min(1e-300), torch.inf).amin(0)
        ends.append(sign * torch.minimum(rows, inputs.support_outer(sign * eye)).cpu().numpy())
    return ends[0], ends[1]
