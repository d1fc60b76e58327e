"""Finite policy classes: P policies evaluated together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from gpsafe import _require, linalg
from gpsafe._show import short
from gpsafe.sets import Box

ROUNDING = 1e-13  # of a sum of tens of products, relative to the sum of their sizes: far more than it errs by
# How far away the inputs of a part of a class are compared with those of the whole:
_FAR = torch.logspace(-6, 1, 8, dtype=torch.float64).unsqueeze(-1)
_PROVEN = ("gpsafe.policies.finite", "gpsafe.policies.features")  # whose slopes are theorems


def no_other_policy(cls: type, base: str) -> None:
    """For `__init_subclass__` of policies whose slopes are theorems: refuses a subclass with inputs that bounds do not know."""
    changed = [name for name in ("__call__", "_raw", "basis") if name in cls.__dict__]
    if changed:
        expected = f"a policy class of its own (gpsafe.policies.PolicyClass), with slopes of what it answers, not one of {base}"
        raise _require.fail(cls.__name__, expected, f"another {changed[0]}")


def require_same_box(where: str, one: Box, other: Box) -> None:
    """Refuses to compare policies that are clipped to different boxes: with equal parameters their inputs differ, too."""
    if not (torch.equal(one.lower, other.lower) and torch.equal(one.upper, other.upper)):
        raise _require.fail(where, "policies with the same input box", (one, other))


@runtime_checkable
class PolicyClass(Protocol):
    """P deterministic policies u = π_i(x)."""

    @property
    def num(self) -> int: ...

    def __call__(self, x: Tensor) -> Tensor:
        """Inputs of all policies: x (P or 1, N, nx) → (P, N, nu)."""
        ...

    def select(self, index: Tensor) -> Self:
        """The sub-class of the given indices (m,), which may repeat: its j-th policy is that of index_j."""
        ...

    def slopes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Closed-loop slopes over boxes: (gain, low, high) with π_i(x) − π_i(c) = s ∘ gain_i (x − c), s ∈ [low, high].

        lower, upper: (P or 1, N, nx). gain: (P, nu, nx); low, high: (P, N, nu), between 0 and 1.
        """
        ...


def inputs_at(policies: PolicyClass, x: Tensor) -> Tensor:
    """π_i(x), x (P or 1, N, nx) → (P, N, nu), asked of a copy: a policy of a user's own may write on what it is given, and x
    goes on as the centre of a set, as data, as the task's x_0.
    """
    return policies(x.clone())


def input_at(policy: PolicyClass, x: Tensor) -> Tensor:
    """u (nu,) of a class of one at x (nx,), see `inputs_at`."""
    return inputs_at(policy, x.reshape(1, 1, -1))[0, 0]


Class = TypeVar("Class", bound=PolicyClass)


def selected(policies: Class, index: Tensor, about: Tensor) -> Class:
    """`policies.select(index)`. Of a class of a user's own its inputs are compared with those of the whole class, at drawn
    states near to `about` (nx,) and far: bounds of some policies would else be taken for those of others, and others be flown.
    None found wrong is no proof; a class that cannot be asked there is not checked.

    Raises:
        ValueError: where they are not those of the policies `index`.
    """
    part = policies.select(index)
    if type(policies).__module__ in _PROVEN:
        return part
    away = torch.randn(len(_FAR), about.numel(), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = (about + (_FAR * away).to(about)).unsqueeze(0)
    try:
        with torch.no_grad():
            whole, own = inputs_at(policies, x)[index], inputs_at(part, x)
    except Exception:
        return part
    if part.num != len(whole) or not linalg.alike(own, whole):
        expected = f"a {type(policies).__name__} whose select(index) has the policies of these indices, in their order"
        raise _require.fail("select", expected, f"other inputs, for index {index.tolist()}")
    return part


@short
@dataclass(frozen=True, slots=True, eq=False)
class Feedback:
    """Closed-loop changes over boxes: π_i(x) − π_i(c) = s ∘ (gain (x − c) + e), s ∈ [low, high], |e| ≤ remainder.

    c is the middle of the box and x any point of it.

    Attributes:
        gain: (P, N or 1, nu, nx).
        low, high: (P, N, nu), between 0 and 1.
        remainder: (P, N or 1, nu), not negative; 0 for affine policies.
    """

    gain: Tensor
    low: Tensor
    high: Tensor
    remainder: Tensor


@runtime_checkable
class CurvedPolicyClass(PolicyClass, Protocol):
    """A policy class whose gain changes with the state."""

    def feedback(self, lower: Tensor, upper: Tensor) -> Feedback:
        """See :class:`Feedback`; lower, upper: (P or 1, N, nx)."""
        ...


def feedback(policies: PolicyClass, lower: Tensor, upper: Tensor) -> Feedback:
    """Closed-loop changes of any policy class over boxes (P or 1, N, nx): its own, or `slopes` with remainder 0.

    What a class of a user's own says of itself is tried at a drawn point of every box. None found wrong is no proof.

    Raises:
        ValueError: where the inputs there are not as stated.
    """
    if isinstance(policies, CurvedPolicyClass):
        found = policies.feedback(lower, upper)
    else:
        gain, low, high = policies.slopes(lower, upper)
        found = Feedback(gain.unsqueeze(1), low, high, torch.zeros_like(low[:, :1]))
    if type(policies).__module__ not in _PROVEN:
        _try(policies, lower, upper, found)
    return found


def _try(policies: PolicyClass, lower: Tensor, upper: Tensor, stated: Feedback) -> None:
    """See `feedback`. What is not a number accuses nobody."""
    share = torch.rand(lower.shape, dtype=lower.dtype, generator=torch.Generator().manual_seed(0)).to(lower.device)
    x, center = lower + share * (upper - lower), 0.5 * (lower + upper)
    ends = inputs_at(policies, x), inputs_at(policies, center)
    one = slice(x.shape[1] // 2, x.shape[1] // 2 + 1)
    if not linalg.alike(inputs_at(policies, x[:, one]), ends[0], np.s_[:, one]):
        expected = f"a {type(policies).__name__} of each state for itself"
        raise _require.fail(
            "feedback", expected, "states that depend on each other (a sum or norm over the whole batch?)"
        )
    moved = (stated.gain @ (x - center).unsqueeze(-1)).squeeze(-1)
    raw = moved - stated.remainder, moved + stated.remainder
    change, corners = ends[0] - ends[1], torch.stack([s * v for s in (stated.low, stated.high) for v in raw])
    size = torch.stack([ends[0].abs(), ends[1].abs(), moved.abs()]).amax(0)
    # Of a policy's largest: its smaller inputs may be rounding.
    room = 1e-7 * size.nan_to_num(0.0).amax(1, keepdim=True)
    wrong = (change < corners.amin(0) - room) | (change > corners.amax(0) + room)
    if bool(wrong.any()):
        p, n, i = torch.nonzero(wrong)[0].tolist()
        told = f"u_{i} moves by {float(change[p, n, i]):.4g} in a box where {type(policies).__name__} states "
        told += f"{float(corners[:, p, n, i].amin()):.4g} to {float(corners[:, p, n, i].amax()):.4g}"
        raise _require.fail("feedback", "policies that move over boxes as their own slopes state", told)


@short
@dataclass(frozen=True, slots=True, eq=False)
class AffinePolicies:
    """π_i(x) = clip(offset_i + gain_i x, input box): set-point and linear-feedback families.

    Args:
        offset: (P, nu).
        gain: (P, nu, nx).
        input_box: limits of u.
    """

    offset: Tensor
    gain: Tensor
    input_box: Box

    if TYPE_CHECKING:  # lists and arrays become tensors

        def __init__(self, offset: _require.Numbers, gain: _require.Numbers, input_box: Box) -> None: ...

    def __init_subclass__(cls) -> None:
        no_other_policy(cls, "AffinePolicies")

    def __post_init__(self) -> None:
        offset = _require.finite("AffinePolicies", "offset", self.offset).clone()  # its own: what was certified stays
        gain = _require.finite("AffinePolicies", "gain", self.gain).clone()
        if gain.ndim != 3 or offset.shape != gain.shape[:2] or offset.shape[-1] != self.input_box.dim:
            expected = f"offset (P, {self.input_box.dim}) and gain (P, {self.input_box.dim}, nx)"
            raise _require.fail("AffinePolicies", expected, f"{tuple(offset.shape)} and {tuple(gain.shape)}")
        object.__setattr__(self, "offset", offset)
        object.__setattr__(self, "gain", gain)

    @property
    def num(self) -> int:
        """P."""
        return self.offset.shape[0]

    def select(self, index: Tensor) -> AffinePolicies:
        """Sub-class of the given indices."""
        return AffinePolicies(self.offset[index], self.gain[index], self.input_box)

    def _raw(self, x: Tensor) -> Tensor:
        return self.offset.unsqueeze(-2) + x @ self.gain.transpose(-1, -2)

    def _rounding(self, x: Tensor) -> Tensor:
        """≥ what `_raw` errs by: a share of its terms, which may cancel."""
        return ROUNDING * (self.offset.abs().unsqueeze(-2) + x.abs() @ self.gain.abs().transpose(-1, -2))

    def __call__(self, x: Tensor) -> Tensor:
        """Inputs, x (P or 1, N, nx) → (P, N, nu)."""
        return self.input_box.clip(self._raw(_require.points("AffinePolicies", "x", x, self.gain.shape[-1])))

    def slopes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`PolicyClass`: 1 where no point of the box saturates, 0 where all do, between them see `secants`."""
        reach = 0.5 * (upper - lower) @ self.gain.abs().transpose(-1, -2)
        return (self.gain, *self.secants(0.5 * (lower + upper), reach))

    def secants(self, x: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        """Range of the secant slopes s = (clip(v′) − clip(v))/(v′ − v), v = offset + gain x, over |v′ − v| ≤ reach.

        From a free v the smallest secant goes to an end of the range; from a v beyond a limit the largest goes to the
        free end or to the other limit, whichever is nearer, and 0 is always attained. Rounded outwards.

        Args:
            x: (P or 1, N, nx).
            reach: (P, N, nu).

        Returns:
            low, high: (P, N, nu), between 0 and 1.
        """
        return secants(self._raw(x), reach + self._rounding(x), self.input_box)

    def chords(self, x: Tensor, reach: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """π_i(x′) = middle + slope∘gain_i (x′ − x) + e, |e| ≤ half, for |gain_i (x′ − x)| ≤ reach: see :func:`chords`."""
        rounding = self._rounding(x)
        middle, slope, half = chords(self._raw(x), reach + rounding, self.input_box)
        return middle, slope, half + rounding


def secants(v: Tensor, reach: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """Range of (clip(v′) − clip(v))/(v′ − v) over |v′ − v| ≤ reach, see :meth:`AffinePolicies.secants`; all (*b, nu)."""
    least, most = box.lower, box.upper
    tiny = torch.finfo(torch.float64).tiny
    reach = reach + 1e-12 * (box.clip(v).abs() + v.abs() + reach)  # of rounding in v and reach
    above, below = v >= most, v <= least  # at or beyond a limit: clip is flat on one side
    room = torch.minimum(most - v, v - least)
    low = (room / reach.clamp_min(tiny) - 1e-12).clamp(0.0, 1.0)
    low = torch.where(room >= reach, torch.ones_like(v), torch.where(above | below, torch.zeros_like(v), low))
    excess = torch.where(above, v - most, least - v)
    travel = torch.minimum(reach, excess + (most - least))
    high = (travel - excess).clamp_min(0.0) / travel.clamp_min(tiny)
    high = torch.where(above | below, high, torch.ones_like(v))
    return low, torch.where(high > 0, high + 1e-12, high).clamp(0.0, 1.0)


def chords(v: Tensor, reach: Tensor, box: Box) -> tuple[Tensor, Tensor, Tensor]:
    """clip(v′) ∈ middle + slope (v′ − v) ± half for |v′ − v| ≤ reach, all (*b, nu): the narrowest such strip along the chord.

    The slope is that of the chord over [v − reach, v + reach]. clip(v′) − slope (v′ − v) is linear between the ends and the
    limits of the box, so its extremes are at these. Where clip bends once, half is from half (at the bend) to all of what
    secants from v leave open. Rounded outwards.
    """
    size = box.clip(v).abs() + v.abs() + reach
    reach = reach + 1e-12 * size  # of rounding in v and reach
    ends = v - reach, v + reach
    clipped = [box.clip(end) for end in ends]
    slope = ((clipped[1] - clipped[0]) / (2 * reach).clamp_min(torch.finfo(torch.float64).tiny)).clamp(0.0, 1.0)
    turns = [torch.minimum(torch.maximum(limit.expand_as(v), ends[0]), ends[1]) for limit in (box.lower, box.upper)]
    gaps = torch.stack([box.clip(at) - slope * (at - v) for at in (*ends, *turns)])
    least, most = gaps.amin(0), gaps.amax(0)
    return 0.5 * (least + most), slope, 0.5 * (most - least) + 1e-14 * size


def set_point_policies(targets: Tensor, gain: Tensor, feedforward: Tensor, input_box: Box) -> AffinePolicies:
    """u = clip(feedforward_i + gain (targets_i − x)).

    Args:
        targets: (P, nx).
        gain: (nu, nx).
        feedforward: (P, nu).
    """
    targets = _require.finite("set_point_policies", "targets", targets)
    offset = feedforward + targets @ gain.T
    return AffinePolicies(offset, (-gain).expand(targets.shape[0], *gain.shape).clone(), input_box)
