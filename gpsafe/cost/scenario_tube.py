"""Scenario tubes: a sound upper bound of sup_{f ∈ F_n} J_c(π, f) for any state dimension (theory §3.5).

For each of N sampled noise paths (w_t), a tube of zonotopes with X_0 = {x₀} and

    X_{t+1} ⊇ {f(x, π(x)) + w_t : x ∈ X_t, f ∈ F_n, ‖f‖_k ≤ B}.

Then for every such f the trajectory under that path is inside, so Y = Σ_{t<T} sup_{X_t} c ≥ Z(f) = Σ c(x_t) on every
path. For a fixed f (f*, or one that attains sup_f J_c) the Z are i.i.d. with mean J_c(π, f); the Y are not independent
(the anchors below are chosen from all paths together), so the Monte-Carlo limit must be one that grows with every sample:
`monte_carlo.dominating_mean_upper`. Then limit(Y) ≥ limit(Z) ≥ J_c but with probability δ. (f may even depend on the
noise path: that is what is given away.)

One step is that of `gpsafe.cost._closed_loop`, with the residual enclosed around the nearest of `anchors` points. Paths of one
policy stay together, so a few dozen anchors serve thousands of paths: the posterior is evaluated P·anchors·T times.

With `pieces` a second tube of boxes goes along: each is cut into pieces, whose images are enclosed one by one, and the next is
the hull of these within that of the zonotope. The residual's gradient and curvature, which are bounded by B where there are
no data, then act over a piece only; what is lost is the correlation between states.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.assumptions import Assumption
from gpsafe.confidence.set import ConfidenceSet
from gpsafe.cost import monte_carlo
from gpsafe.cost._closed_loop import Inputs, image
from gpsafe.cost._pieces import common, cut, hull, take
from gpsafe.cost._task import MonteCarloBound
from gpsafe.cost.base import CostInterval
from gpsafe.cost.local_affine import LocalAffine
from gpsafe.policies import PolicyClass, inputs_at, selected
from gpsafe.rkhs import kernels
from gpsafe.sets.zonotope import HUGE, Zonotope
from gpsafe.systems.base import Cost, HalfspaceCost, known_with_bound

SLACK = 1e-9  # share of its terms by which a reach is rounded outwards before it is compared: they err by some 1e-14
_NOISE = 4


def charge_upper(cost: Cost, tube: Zonotope) -> Tensor:
    """≥ sup of c over each set, (*b,): by support functions for half-space costs, else over the interval hull; C where the set
    or its cost is not a number.
    """
    if isinstance(cost, HalfspaceCost):
        normals = cost.directions.to(tube.center.device)
        charge = cost.of_reach(tube.support(normals) + SLACK * tube.terms(normals))
    else:
        radius = tube.radius + SLACK * (tube.center.abs() + tube.radius)
        charge = cost.upper(tube.center - radius, tube.center + radius)
    return torch.where(tube.within(HUGE) & (charge <= cost.ceiling), charge, cost.ceiling)


def farthest_points(z: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Anchors by farthest-first traversal: indices (P, K) into the N points z (P, N, d), and nearest anchor (P, N)."""
    policies, points, _ = z.shape
    count = min(count, points)
    chosen = torch.zeros(policies, count, dtype=torch.long, device=z.device)
    nearest = torch.zeros(policies, points, dtype=torch.long, device=z.device)
    center = z.mean(1, keepdim=True)
    distance = torch.full((policies, points), torch.inf, dtype=z.dtype, device=z.device)
    candidate = (z - center).square().sum(-1).argmin(-1)
    rows = torch.arange(policies, device=z.device)
    for k in range(count):
        chosen[:, k] = candidate
        away = (z - z[rows, candidate].unsqueeze(1)).square().sum(-1)
        closer = away < distance
        distance = torch.where(closer, away, distance)
        nearest[closer] = k
        candidate = distance.argmax(-1)
    return chosen, nearest


@short
@dataclass(frozen=True, slots=True, eq=False)
class Tubes:
    """X_0 … X_{T−1} for P policies and N paths.

    Attributes:
        sets: one batch (P, N) of zonotopes for each t.
        lost: (P, N) step at which a tube was given up (it grew beyond `limit` or met an empty F_n); T if never.
    """

    sets: tuple[Zonotope, ...]
    lost: Tensor

    def contains_hull(self, states: Tensor, *, tol: float = SLACK) -> Tensor:
        """Whether trajectories (P, N, T or T + 1, nx) stay in the interval hulls (necessary for containment), (P, N).

        They may leave one by the share `tol` of its size, |center| + radius.
        """
        tol = _require.tolerance("Tubes.contains_hull", tol)
        inside = torch.ones_like(self.lost, dtype=torch.bool)
        for t, part in enumerate(self.sets):
            gap, size = (states[..., t, :] - part.center).abs() - part.radius, part.center.abs() + part.radius
            inside &= (gap <= tol * size).all(-1) | (self.lost <= t)
        return inside

    def widths(self) -> Tensor:
        """Half-widths of the interval hulls, (P, N, T, nx); inf where lost."""
        radius = torch.stack([part.radius for part in self.sets], dim=-2)
        steps = torch.arange(radius.shape[-2], device=radius.device)
        return radius.masked_fill((steps >= self.lost.unsqueeze(-1)).unsqueeze(-1), torch.inf)


@short
@dataclass(frozen=True, kw_only=True, eq=False)
class ScenarioTube(MonteCarloBound):
    """E Y ≥ sup_{f ∈ F_n} J_c(π, f) with the Monte-Carlo limit of `monte_carlo.dominating_mean_upper`; see the module.

    Sound with probability ≥ 1 − delta over a run (`monte_carlo` has the accounting), on the event f* ∈ F_n.

    Args:
        anchors: points per policy and step at which F_n is evaluated; None: at every tube's own centre.
        order: number of generators at which a tube is reduced.
        limit: a tube whose interval hull gets wider than this (in any state) is given up: charged C at every
            later step.
        give_up: a cost at which a policy no longer matters, such as the budget: policies that clearly exceed it are not
            followed further (upper = T·C).
        pilot: number of paths that decide which policies clearly exceed `give_up`.
        gradients: use gradients of the posterior (False: kernel metric only).
        pieces: a power of two. Beside the zonotopes a tube of boxes is followed, each cut into so many pieces for the next
            step; the smaller charge counts. 1: no boxes. Costs about as many times as much.
        chunk: number of policy-paths worked on at a time (memory).
    """

    samples: int = 2000
    anchors: int | None = 16
    order: int = 24
    limit: float = 1e3
    give_up: float = math.inf
    pilot: int = 64
    gradients: bool = True
    pieces: int = 1
    chunk: int = 40_000
    name: str = field(default="scenario-tube", init=False)
    sound: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.anchors is not None:
            _require.count("ScenarioTube", "anchors", self.anchors)
        _require.count("ScenarioTube", "order", self.order)
        _require.count("ScenarioTube", "pilot", self.pilot, minimum=2)
        _require.positive_number("ScenarioTube", "limit", self.limit)
        _require.level("ScenarioTube", "give_up", self.give_up)
        _require.count("ScenarioTube", "chunk", self.chunk)
        if _require.count("ScenarioTube", "pieces", self.pieces) & (self.pieces - 1):
            raise _require.fail("ScenarioTube", "a power of two of pieces", self.pieces)

    def evaluate(self, confidence: ConfidenceSet, policies: PolicyClass) -> CostInterval:
        """[0, upper] for every policy; upper ≥ sup_{f ∈ F_n} J_c for all of them but with probability delta_n."""
        share = self.stage_delta(confidence) / policies.num
        noise = self.noise(confidence, _NOISE)
        ceiling = self.total_ceiling
        upper = torch.full((policies.num,), ceiling, dtype=torch.float64, device=noise.device)
        plausible = self._plausible(confidence, policies, noise)
        for part in plausible.split(max(1, self.chunk // (self.samples * self.pieces))):
            if part.numel() == 0:
                break
            charges = self.charges(confidence, selected(policies, part, self.initial_state), noise)
            upper[part] = monte_carlo.dominating_mean_upper(charges, ceiling, share)
        return CostInterval(
            torch.zeros_like(upper),
            upper,
            sound_upper=confidence.sound,
            method=self.name,
            delta=self.stage_delta(confidence),
            assumptions=self.believed(
                confidence,
                Assumption.KNOWN_DERIVATIVES(),
                Assumption.COST_RANGE(),
                Assumption.MONTE_CARLO_SEED(),
            ),
            vacuous=upper >= ceiling * (1 - 1e-9),
        )

    def _plausible(self, confidence: ConfidenceSet, policies: PolicyClass, noise: Tensor) -> Tensor:
        """Policies worth all N paths: those that the first `pilot` paths do not show to cost more than `give_up`.

        Dropping a policy sets its bound to T·C, which is true and no smaller; the others' bound uses all N paths. So
        screening by the same paths costs no δ.
        """
        everything = torch.arange(policies.num, device=noise.device)
        if math.isinf(self.give_up) or self.pilot >= self.samples:
            return everything
        kept = []
        for part in everything.split(max(1, self.chunk // (self.pilot * self.pieces))):
            charges = self.charges(confidence, selected(policies, part, self.initial_state), noise[:, :, : self.pilot])
            kept.append(part[monte_carlo.mean_lower(charges, self.total_ceiling, 0.05) <= self.give_up])
        return torch.cat(kept)

    def charges(self, confidence: ConfidenceSet, policies: PolicyClass, noise: Tensor) -> Tensor:
        """Y = Σ_t sup_{X_t} c per policy and path, (P, N); T·C for policies that were given up."""
        self.check(confidence)
        paths = noise.shape[2]
        total = torch.full((policies.num, paths), self.total_ceiling, dtype=torch.float64, device=noise.device)
        alive = torch.arange(policies.num, device=noise.device)
        walk = _Walk.start(self, policies, paths)
        running = walk.charge(self.cost)
        for t in range(1, self.horizon):
            keep = running.mean(-1) <= self.give_up
            if not bool(keep.any()):
                return total
            if not bool(keep.all()):
                alive, running, walk = alive[keep], running[keep], walk.select(keep)
            walk = walk.step(self, confidence, noise[t - 1])
            running = running + walk.charge(self.cost)
        total[alive] = running
        return total

    def tubes(self, confidence: ConfidenceSet, policies: PolicyClass, noise: Tensor) -> Tubes:
        """The sets themselves for noise paths (T, 1, N, nx); with pieces, the boxes."""
        self.check(confidence)
        walk = _Walk.start(self, policies, noise.shape[2])
        sets, lost = [walk.tube], torch.full_like(walk.lost, self.horizon, dtype=torch.long)
        for t in range(1, self.horizon):
            walk = walk.step(self, confidence, noise[t - 1])
            told = walk if walk.boxes is None else walk.boxes
            lost = torch.where(told.lost & (lost == self.horizon), torch.full_like(lost, t), lost)
            sets.append(told.tube)
        return Tubes(tuple(sets), lost)

    def with_(self, **changes: object) -> ScenarioTube:
        """A copy with some arguments replaced."""
        return replace(self, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, eq=False)
class _Walk:
    """X_t for P policies and N paths, and which tubes are lost.

    `boxes`, with pieces: within the interval hulls of X_t, lost only together with them.
    """

    policies: PolicyClass
    tube: Zonotope
    lost: Tensor
    boxes: _Walk | None = None

    @staticmethod
    def start(task: ScenarioTube, policies: PolicyClass, paths: int) -> _Walk:
        x0 = task.initial_state.expand(policies.num, paths, -1)
        lost = torch.zeros(policies.num, paths, dtype=torch.bool, device=x0.device)
        walk = _Walk(policies, Zonotope.point(x0), lost)
        return walk if task.pieces == 1 else replace(walk, boxes=walk)

    def select(self, keep: Tensor) -> _Walk:
        part = Zonotope(self.tube.center[keep], self.tube.generators[keep])
        boxes = None if self.boxes is None else self.boxes.select(keep)
        policies = selected(self.policies, torch.nonzero(keep).flatten(), self.tube.center[0, 0])
        return _Walk(policies, part, self.lost[keep], boxes)

    def charge(self, cost: Cost) -> Tensor:
        """sup of c over X_t, C where lost, (P, N)."""
        own = torch.where(
            self.lost, torch.full_like(self.tube.center[..., 0], cost.ceiling), charge_upper(cost, self.tube)
        )
        return own if self.boxes is None else torch.minimum(own, self.boxes.charge(cost))

    def step(self, task: ScenarioTube, confidence: ConfidenceSet, noise: Tensor) -> _Walk:
        """X_{t+1}; noise (1, N, nx)."""
        groups = _Groups.of(task, confidence, self.policies, self.tube.center)
        following, empty = _image(task, confidence, self.policies, self.tube, noise, groups)
        found = self._landed(task, following, self.lost | empty)
        if self.boxes is None:
            return found
        return replace(found, boxes=self.boxes._in_pieces(task, confidence, noise, found, empty))

    def _in_pieces(
        self, task: ScenarioTube, confidence: ConfidenceSet, noise: Tensor, whole: _Walk, empty: Tensor
    ) -> _Walk:
        """The boxes at the next step: hulls of the images of their pieces, cut to those of the sets of `whole`; where F_n came
        out empty, in either, nothing is claimed.
        """
        count = task.pieces
        groups = _Groups.of(task, confidence, self.policies, self.tube.center)
        sides = groups.lent(self.tube.radius) / _scales(confidence, self.tube.center)[: self.tube.center.shape[-1]]
        repeated = noise.repeat_interleave(count, dim=1)
        pieces = cut(self.tube, count, sides)
        parts, void = _image(task, confidence, self.policies, pieces, repeated, groups.repeated(count), every=True)
        boxes, void = hull(parts, count), void.unflatten(1, (-1, count)).any(-1)
        gone = self.lost | ~boxes.within(task.limit)
        return self._landed(task, common(boxes, gone, whole.tube, whole.lost), (gone & whole.lost) | void | empty)

    def _landed(self, task: ScenarioTube, following: Zonotope, lost: Tensor) -> _Walk:
        """With lost tubes parked at x₀: they are charged C whatever they hold."""
        lost = lost | ~following.within(task.limit)
        if bool(lost.any()):
            center = torch.where(lost.unsqueeze(-1), task.initial_state, following.center)
            rays = torch.where(lost[..., None, None], torch.zeros_like(following.generators), following.generators)
            following = Zonotope(center, rays)
        return _Walk(self.policies, following, lost)


@dataclass(frozen=True, slots=True, eq=False)
class _Groups:
    """Which paths lend their sets' centres as anchors, (P, A), and whose each path uses, (P, N) into A."""

    chosen: Tensor
    nearest: Tensor

    @staticmethod
    def of(task: ScenarioTube, confidence: ConfidenceSet, policies: PolicyClass, x: Tensor) -> _Groups:
        if task.anchors is None or task.anchors >= x.shape[1]:
            own = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
            return _Groups(own, own)
        z = torch.cat([x, inputs_at(policies, x)], dim=-1)
        return _Groups(*farthest_points(z / _scales(confidence, z), task.anchors))

    def repeated(self, count: int) -> _Groups:
        """For sets cut into `count` pieces each, one after the other: a piece uses the same piece of its path's anchor."""
        part = torch.arange(count, device=self.chosen.device)
        return _Groups(*((index.unsqueeze(-1) * count + part).flatten(1) for index in (self.chosen, self.nearest)))

    def lent(self, value: Tensor) -> Tensor:
        """Values of the paths (P, N, d) → those of each path's anchor, (P, N, d)."""
        return take(take(value, self.chosen), self.nearest)


def _image(
    task: ScenarioTube,
    confidence: ConfidenceSet,
    policies: PolicyClass,
    tube: Zonotope,
    noise: Tensor,
    groups: _Groups,
    *,
    every: bool = False,
) -> tuple[Zonotope, Tensor]:
    """⊇ {f(x, π(x)) + w : x in the set, f ∈ F_n} for sets (P, N) and w (1, N, nx), and where F_n came out empty, (P, N)."""
    known_with_bound("ScenarioTube", confidence.model.prior)
    inputs = Inputs.over(policies, tube.center, tube.generators)
    local, offset = _anchored(task, confidence, torch.cat([tube.center, inputs.u], dim=-1), groups)
    found = image(confidence, tube.center, tube.generators, inputs, local, offset, every=every or tube.order == 0)
    following = Zonotope(found.center + noise, found.linear)
    following = following.plus_box(found.error, found.axes)
    return following.reduce_outer(task.order), found.empty


def _anchored(task: ScenarioTube, confidence: ConfidenceSet, z: Tensor, groups: _Groups) -> tuple[LocalAffine, Tensor]:
    """F_n around each z (P, N, d), and z minus its anchor."""
    anchors = take(z, groups.chosen)
    local = LocalAffine.at(confidence, anchors, gradients=task.gradients, multipliers=True).gather(groups.nearest)
    return local, z - take(anchors, groups.nearest)


def _scales(confidence: ConfidenceSet, like: Tensor) -> Tensor:
    """Smallest length-scale per input dimension (1 for inactive ones), (d,): only chooses anchors and cuts."""
    model = confidence.model
    scales = torch.full((model.nx + model.nu,), torch.inf, dtype=like.dtype, device=like.device)
    for kernel in model.kernels:
        form = kernels.stationary(kernel)
        if form is not None:
            active = slice(None) if form.dims is None else form.dims.to(like.device)
            scales[active] = torch.minimum(scales[active], form.lengthscale.to(like.device).expand_as(scales[active]))
    return torch.where(torch.isfinite(scales), scales, torch.ones_like(scales))
