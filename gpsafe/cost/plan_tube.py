"""Tubes of plans: does a sequence of feedback laws keep a hard constraint for every f ∈ F_n? (theory §6.9)

A plan is u_t(x) = clip(offset_t + gain_t x) for t < h (gain 0: an open-loop input), then a fallback policy. With noise in a
box, |w| ≤ w̄ (componentwise), from a measured state or a set X_0,

    X_{t+1} ⊇ {f(x, u_t(x)) + w : x ∈ X_t, f ∈ F_n with ‖f‖_k ≤ B, |w| ≤ w̄}.

f may differ from step to step, which is what is given away. A plan is admitted when every X_t lies in the polytope
{x : normals x ≤ offsets} up to the last step, or up to a step at which X_t lies in a *landing set*: a box from which the
fallback was certified for at least as many steps as remain. The plan then ends there, and the fallback takes over.

One step is that of `gpsafe.cost._closed_loop`, with the residual enclosed around anchors tabulated on a grid (`AnchorGrid`)
or at the tube's own centre.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._sealed import Seal, sealed
from gpsafe._show import short
from gpsafe.assumptions import Assumption, Believed, listed
from gpsafe.confidence.set import ConfidenceSet
from gpsafe.cost._closed_loop import Inputs, image, sizes
from gpsafe.cost._task import check_task
from gpsafe.cost.anchor_grid import AnchorGrid
from gpsafe.cost.curvature import wide_axes
from gpsafe.cost.enclosure import jacobians
from gpsafe.cost.local_affine import LocalAffine
from gpsafe.policies import AffinePolicies, PolicyClass, selected
from gpsafe.rkhs import kernels
from gpsafe.sets import Box
from gpsafe.sets.zonotope import HUGE, Zonotope
from gpsafe.systems.base import IndicatorCost, KnownPart, known_with_bound
from gpsafe.systems.task import Task

SLACK = 1e-9  # share of its terms by which a support is rounded outwards before it is compared: they err by some 1e-14


@short
@dataclass(frozen=True, slots=True, eq=False)
class Plans:
    """P plans: u_t(x) = clip(offset_t + gain_t x) for t < lengths, then a fallback until the end.

    Laws with NaN or infinite entries may be handed in: a plan that has one, at any step, is refused, and no other notices.

    Attributes:
        offset: (P, H, nu); H may be 0.
        gain: (P, H, nu, nx).
        lengths: (P,), integers in 0..H.
        fallback: (P,), indices into the fallback policies.
        commit: (P,), steps before which the plan may not end in a landing set (a proposer wants its inputs used).
    """

    offset: Tensor
    gain: Tensor
    lengths: Tensor
    fallback: Tensor
    commit: Tensor

    @staticmethod
    def of_fallbacks(fallback: Tensor, nx: int, nu: int) -> Plans:
        """Fallbacks (P,) from the first step on."""
        empty = torch.zeros(len(fallback), 0, nu, nx, dtype=torch.float64, device=fallback.device)
        none = torch.zeros_like(fallback)
        return Plans(empty[..., 0], empty, none, fallback, none)

    @staticmethod
    def open_loop(inputs: Tensor, lengths: Tensor, fallback: Tensor, nx: int) -> Plans:
        """The first `lengths` of the inputs (P, H, nu), without feedback."""
        return Plans(inputs, inputs.new_zeros(*inputs.shape, nx), lengths, fallback, lengths)

    def owned(self, nx: int, nu: int, fallbacks: int) -> Plans:
        """The same plans on tensors of their own, float64 and int64: what is verified is then what is followed.

        Whole numbers of another kind would not do: unsigned ones wrap where a plan is shifted, so that laws beyond its length
        come back, and Booleans index as masks.

        Raises:
            ValueError: on other shapes or kinds of numbers, lengths outside 0..H, or fallbacks that there are not.
        """
        where, num = "Plans", len(self.lengths)
        offset, gain = (
            _require.floats(where, name, getattr(self, name)).detach().clone() for name in ("offset", "gain")
        )
        horizon = offset.shape[1] if offset.ndim == 3 else 0
        _require.shape(where, "offset", offset, (num, horizon, nu))
        _require.shape(where, "gain", gain, (num, horizon, nu, nx))
        counts = []
        for name, most in (("lengths", horizon), ("fallback", fallbacks - 1), ("commit", None)):
            value = _require.shape(where, name, _require.whole(where, name, getattr(self, name)), (num,))
            if bool((value < 0).any()) or (most is not None and bool((value > most).any())):
                raise _require.fail(where, f"{name} in 0..{'' if most is None else most}", value.tolist())
            counts.append(value)
        return Plans(offset, gain, *counts)

    @property
    def num(self) -> int:
        """P."""
        return self.lengths.shape[0]

    @property
    def finite(self) -> Tensor:
        """Whether a plan has numbers only, (P,)."""
        return torch.isfinite(self.offset).flatten(1).all(-1) & torch.isfinite(self.gain).flatten(1).all(-1)

    def select(self, index: Tensor) -> Plans:
        """The plans of the given indices or mask."""
        fields = (self.offset, self.gain, self.lengths, self.fallback, self.commit)
        return Plans(*(field[index] for field in fields))

    def shifted(self) -> Plans:
        """What remains after one step."""
        lengths, commit = ((steps - 1).clamp_min(0) for steps in (self.lengths, self.commit))
        return Plans(self.offset[:, 1:], self.gain[:, 1:], lengths, self.fallback, commit)

    def law(self, time: int, fallbacks: PolicyClass, input_box: Box) -> list[tuple[Tensor, PolicyClass]]:
        """The policies in force at step `time`: pairs of a mask (P,) and policies for those plans."""
        planned = self.lengths > time
        parts: list[tuple[Tensor, PolicyClass]] = []
        if bool(planned.any()):
            laws = AffinePolicies(self.offset[planned, time], self.gain[planned, time], input_box)
            parts.append((planned, laws))
        if not bool(planned.all()):
            parts.append(
                (~planned, selected(fallbacks, self.fallback[~planned], self.gain.new_zeros(self.gain.shape[-1])))
            )
        return parts

    def act(self, x: Tensor, fallbacks: PolicyClass, input_box: Box) -> Tensor:
        """u_0(x) of every plan at its own state x (P, nx), (P, nu)."""
        u = x.new_zeros(self.num, input_box.dim)
        for mask, policies in self.law(0, fallbacks, input_box):
            u[mask] = policies(x[mask].unsqueeze(1)).squeeze(1)
        return u


@short
@dataclass(frozen=True, slots=True, eq=False)
class Verification:
    """What the tubes of P plans showed.

    Attributes:
        admitted: (P,), the constraint holds at every step for every member of F_n and every noise in the box.
        margin: (P,), min over the steps followed and half-spaces of offset − support of X_t; −inf for a tube that was given up.
        steps: (P,), number of steps followed: until refused, landed or finished.
        landed: (P,), whether the tube was followed into a landing set; an admitted plan then ends at `steps`.
    """

    admitted: Tensor
    margin: Tensor
    steps: Tensor
    landed: Tensor

    def trimmed(self, plans: Plans) -> Plans:
        """The plans that were verified: those that landed switch to their fallback there."""
        ends = torch.where(self.landed, torch.minimum(self.steps, plans.lengths), plans.lengths)
        return replace(plans, lengths=ends)


@short
@dataclass(frozen=True, kw_only=True, slots=True, eq=False, weakref_slot=True)
class PlanTube:
    """The judge of plans, for one confidence set. It trusts no proposer: it re-propagates what it is given.

    Args:
        fallbacks: F policies a plan may end in.
        task: its cost is the indicator of the states that are forbidden; its horizon is that of an episode.
        noise_radius: w̄, (nx,) ≥ 0.
        input_box: to which the laws of a plan are clipped.
        anchors: grid at which F_n is tabulated; None: evaluated at every tube's own centre (slower, sharper).
        landing: boxes proposed as landing sets.
        order: number of generators at which a tube is reduced.
        limit: a tube whose interval hull gets wider than this in any state is given up (refused).

    Attributes:
        confidence: F_n, see `refine`.
        certified: the steps for which a fallback is certified from a landing set, −1 if for none, (F, boxes); by `refine`.
        axes: states that may have an error, likewise. Both are about this judge and this F_n: where `refine` did not find them,
            and after `dataclasses.replace`, nothing is certified to land in and all states may have one.
    """

    fallbacks: PolicyClass
    task: Task
    noise_radius: Tensor
    input_box: Box
    anchors: AnchorGrid | None = None
    landing: tuple[Box, ...] = ()
    order: int = 16
    limit: float = 1e2
    confidence: ConfidenceSet | None = field(default=None)
    certified: Tensor | None = None
    axes: tuple[int, ...] = ()
    _seal: Seal | None = field(default=None)

    def __post_init__(self) -> None:
        noise = _require.nonnegative("PlanTube", "noise_radius", self.noise_radius).clone()
        if not isinstance(self.task.cost, IndicatorCost):
            raise _require.fail("PlanTube", "a task whose cost is an IndicatorCost", type(self.task.cost).__name__)
        nx = self.task.nx
        object.__setattr__(self, "noise_radius", _require.shape("PlanTube", "noise_radius", noise, (nx,)))
        _require.count("PlanTube", "order", self.order)
        _require.positive_number("PlanTube", "limit", self.limit)
        for box in self.landing:
            if box.dim != nx:
                raise _require.fail("PlanTube", f"landing boxes of dimension {nx}", box.dim)
        if self._seal is None or self._seal.broken(self) is not None:  # what `refine` found is about another judge
            for name, value in (("certified", None), ("axes", tuple(range(nx))), ("_seal", None)):
                object.__setattr__(self, name, value)

    @property
    def constraint(self) -> IndicatorCost:
        """The polytope; states outside it cost."""
        return cast(IndicatorCost, self.task.cost)  # checked above

    def believed(self) -> tuple[Believed, ...]:
        """What an admitted plan rests on. The noise event is one of the whole episode."""
        confidence, sigma, steps = self._confidence(), self.task.noise_std, self.task.horizon
        radius = self.noise_radius
        outside = torch.special.erfc(torch.where(sigma > 0, radius / sigma, torch.inf) / math.sqrt(2.0)).sum()
        chance = min(1.0, steps * float(outside) * (1 + 1e-9))
        return listed(
            confidence.assumptions,
            [] if confidence.sound else [Assumption.IN_SET(f" ({confidence.bound.name} is no theorem here)")],
            confidence.unlearned,
            Assumption.TASK(),
            Assumption.NOISE_BOX(
                f"<={radius.tolist()} at every step of the episode (fails with probability ≤ {chance:.3g} for the task's noise)"
            ),
            Assumption.KNOWN_DERIVATIVES(),
            Assumption.EXACT_STATE(),
            Assumption.EXACT_INPUT(),
            Assumption.ROUNDING(),
        )

    def refine(self, confidence: ConfidenceSet) -> PlanTube:
        """The judge for a new F_n: refills the grid and certifies the landing sets for the task's horizon."""
        known = known_with_bound("PlanTube", confidence.model.prior)
        check_task("PlanTube", self.task, confidence)
        horizon = self.task.horizon
        anchors = None if self.anchors is None else self.anchors.refine(confidence)
        noisy = torch.nonzero(self.noise_radius).flatten().tolist()
        axes = sorted({*wide_axes(known, confidence.model.outputs), *noisy})
        bare = replace(self, anchors=anchors, confidence=confidence)
        bare = _refined(bare, None, axes)
        if not self.landing:
            return bare
        count, boxes = self.fallbacks.num, len(self.landing)
        centers = torch.stack([box.center for box in self.landing]).repeat(count, 1)
        radii = torch.stack([box.radius for box in self.landing]).repeat(count, 1)
        which = torch.arange(count, device=centers.device).repeat_interleave(boxes)
        plans = Plans.of_fallbacks(which, centers.shape[-1], self.input_box.dim)
        found = bare.verify(Zonotope(centers, torch.diag_embed(radii)), plans, horizon)
        steps = torch.where(found.admitted, torch.full_like(found.steps, horizon), torch.full_like(found.steps, -1))
        return _refined(replace(bare), steps.reshape(count, boxes), axes)

    # ------------------------------------------------------------------ one step
    def reach(self, tube: Zonotope, plans: Plans, time: int) -> tuple[Zonotope, Tensor]:
        """X_{t+1} of P plans from X_t (P,) at step `time` of the plans, and where F_n came out empty (P,)."""
        confidence, usable = self._confidence(), plans.finite
        if not bool(usable.all()):
            offset, gain = (torch.nan_to_num(law, 0.0, 0.0, 0.0) for law in (plans.offset, plans.gain))
            plans = replace(plans, offset=offset, gain=gain)  # so that the laws can be formed; given up below
        inputs = self._inputs(tube, plans, time)
        z = torch.cat([tube.center, inputs.u], dim=-1)
        if self.anchors is None:
            local, offset = LocalAffine.at(confidence, z), torch.zeros_like(z)
        else:
            local, offset = self.anchors.around(z)
        first = time == 0
        found = image(confidence, tube.center, tube.generators, inputs, local, offset, every=first)
        center = torch.where(usable.unsqueeze(-1), found.center, torch.nan)
        error = found.error + self.noise_radius * (1 + 1e-12)
        axes = found.axes if first else self.axes
        return Zonotope(center, found.linear).plus_box(error, axes).reduce_outer(self.order), found.empty

    def _inputs(self, tube: Zonotope, plans: Plans, time: int) -> Inputs:
        """Of P plans over their sets, all (P, …)."""
        parts = plans.law(time, self.fallbacks, self.input_box)
        if len(parts) == 1:
            return _over(parts[0][1], tube)
        shape = (plans.num, self.input_box.dim)
        u, kink, feed = (tube.center.new_zeros(*shape, *rest) for rest in ((), (), (tube.order,)))
        for mask, policies in parts:
            found = _over(policies, tube.select(mask))
            u[mask], feed[mask], kink[mask] = found.u, found.feed, found.kink
        return Inputs(u, feed, kink)

    def sizes(self, x: Tensor, u: Tensor) -> Tensor:
        """What the step from x (nx,) under u (nu,) computes with, (1, nx), see `_closed_loop.sizes`."""
        model, bound = self._confidence().model, self._confidence().bound
        known, x, u = cast(KnownPart, model.prior), x.unsqueeze(0), u.unsqueeze(0)
        variance = torch.stack(
            [kernels.diagonal(kernel, torch.cat([x, u], dim=-1)) for kernel in model.kernels], dim=-1
        )
        residual = bound.norms(model.num_outputs).to(x.device) * variance.sqrt()
        return sizes(x, u, known(x, u), *jacobians(known, x, u), model.embed(residual))

    # -------------------------------------------------------------- whole plans
    def verify(self, start: Zonotope, plans: Plans, steps: int) -> Verification:
        """Follows P plans from the sets `start` (P,) for `steps` steps; X_0 itself must satisfy the constraint.

        Plans that are settled leave the batch where F_n is tabulated; otherwise they stay to the end, because posteriors at one
        point differ by rounding with the number of points evaluated together, and no plan is to notice another.

        Raises:
            ValueError: see `Plans.owned`.
        """
        _require.index("PlanTube.verify", "steps", steps)
        plans = Plans.owned(plans, self.task.nx, self.input_box.dim, self.fallbacks.num)
        margin = torch.where(plans.finite, self.slack(start), -torch.inf)
        followed = torch.zeros_like(plans.lengths)
        landed = self._inside_landing(start, plans, 0, steps) & (margin >= 0)
        alive, rows = (margin >= 0) & ~landed, torch.arange(plans.num, device=margin.device)
        tube, part = start, plans
        for t in range(steps):
            if not bool(alive.any()):
                break
            if self.anchors is not None and not bool(alive[rows].all()):
                keep = alive[rows]
                tube, part, rows = tube.select(keep), part.select(keep), rows[keep]
            tube, empty = self.reach(tube, part, t)
            live = alive[rows]
            room = torch.where(tube.within(self.limit) & ~empty, self.slack(tube), -torch.inf)
            margin[rows] = torch.where(live, torch.minimum(margin[rows], room), margin[rows])
            followed[rows] += live
            down = live & (room >= 0) & self._inside_landing(tube, part, t + 1, steps)
            landed[rows] |= down
            alive[rows] = live & (room >= 0) & ~down
        return Verification(margin >= 0, margin, followed, landed)

    def slack(self, tube: Zonotope) -> Tensor:
        """min_i offset_i − sup_{X} normal_i x, rounded down, (P,); −inf for sets that are not numbers."""
        normals, offsets = (v.to(tube.center.device) for v in (self.constraint.normals, self.constraint.offsets))
        room = (offsets - tube.support(normals) - SLACK * (offsets.abs() + tube.terms(normals))).amin(-1)
        return torch.where(tube.within(HUGE) & (room >= -HUGE), room, -torch.inf)

    def _inside_landing(self, tube: Zonotope, plans: Plans, time: int, steps: int) -> Tensor:
        """Tubes at step `time` that lie in a landing set certified for what remains under the plan's fallback, (P,)."""
        done = torch.zeros(plans.num, dtype=torch.bool, device=tube.center.device)
        if self.certified is None or not plans.num:
            return done
        radius = tube.radius + SLACK * (tube.center.abs() + tube.radius)
        for j, box in enumerate(self.landing):
            inside = ((tube.center - radius >= box.lower) & (tube.center + radius <= box.upper)).all(-1)
            done |= inside & (self.certified[plans.fallback, j] >= steps - time)
        return done & (plans.commit <= time)

    def _confidence(self) -> ConfidenceSet:
        if self.confidence is None:
            raise _require.fail("PlanTube", "refine with a confidence set before use", "none")
        return self.confidence


def _refined(judge: PlanTube, certified: Tensor | None, axes: Sequence[int]) -> PlanTube:
    """One that was just made, with what was found of it."""
    object.__setattr__(judge, "certified", certified)
    object.__setattr__(judge, "axes", tuple(axes))
    return sealed(judge, watched=("noise_radius", "input_box", "landing"))


def _over(policies: PolicyClass, tube: Zonotope) -> Inputs:
    """Of P policies, each over one set, all (P, …)."""
    found = Inputs.over(policies, tube.center.unsqueeze(1), tube.generators.unsqueeze(1))
    return Inputs(found.u.squeeze(1), found.feed.squeeze(1), found.kink.squeeze(1))
