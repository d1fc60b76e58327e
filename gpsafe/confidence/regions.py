"""Questions about whole regions: is the model right to ε, and does the plant stay in X, for every z of a box (theory §5.9)?

    answer = regions.certified(confidence, (lower, upper), epsilon=0.05, within=Box([-1, -1], [1, 1]))
    answer.yes        # proved for all z of the box, on the event of the confidence set
    answer.no         # at answer.witness, a point of the box, F_n does not give it
    regions.largest(confidence, z, shape, epsilon=0.05)     # the largest certified box z ± s·shape that was found

**Accuracy.** |f − μ_n| ≤ ε_j for every learned output, by the interval of the newest posterior: β_nσ_n ≤ ε_j. "No" says that
this interval is wider than ε at the witness. Of boxes beyond what the theorem covers
(`ConfidenceBound.covers`) neither is said.

**Next states.** p(z) + f(z) ∈ X for all f with l_n ≤ f ≤ h_n: the next *mean*; bounded noise is added by shrinking X. The known
part p is enclosed by its linearisation and its `hessian_bound` (theory §5.5), the band by `gpsafe.confidence.ranges`, and boxes
are halved until they are decided or have used up `pieces` parts. "No" says that at the witness p + l_n or p + h_n leaves X.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.confidence import ranges
from gpsafe.confidence.rounding import Rounding
from gpsafe.confidence.set import ConfidenceSet
from gpsafe.models._prior import known_part, prior_jacobian
from gpsafe.models.gp import GP
from gpsafe.sets import Box
from gpsafe.systems.base import KnownPart, known_with_bound

GROW = 1e-12  # outward rounding of the known part, relative


@short
@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """Per box, (*b,): `yes` is proved, `no` has a witness (*b, d) (NaN elsewhere); neither: undecided."""

    yes: Tensor
    no: Tensor
    witness: Tensor

    @property
    def undecided(self) -> Tensor:
        """Neither, (*b,)."""
        return ~(self.yes | self.no)


@short
@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The largest certified box of each family that was found, not the largest there is.

    Attributes:
        scale: s, (*b,); −1 if not even s = 0 was certified.
        lower, upper: its ends, (*b, d), NaN where there is none. Every z between them was certified.
    """

    scale: Tensor
    lower: Tensor
    upper: Tensor


def certified(
    confidence: ConfidenceSet,
    box: Box | tuple[Tensor, Tensor],
    *,
    epsilon: Tensor | float | None = None,
    within: Box | None = None,
    pieces: int = 64,
) -> Answer:
    """Whether all z of each box are accurate to `epsilon` (scalar or (p,)) and lead into the box `within` of states.

    A box with NaN, infinities or lower > upper is undecided, and so is one in which F_n is empty at a point that was looked
    at: an assumption is false then (`ConfidenceSet.empty`), and what no member contradicts is not proved.

    Raises:
        ValueError: if nothing is asked; for kernels or bounds without ranges (`gpsafe.confidence.ranges`); for `within`, if the
            known part states no bound on its second derivatives.
    """
    if epsilon is None and within is None:
        raise _require.fail("regions.certified", "epsilon or within", "neither")
    _require.count("regions.certified", "pieces", pieces)
    model = confidence.model
    lower, upper = ranges.ends("regions.certified", box, model.nx + model.nu)
    shape = lower.shape[:-1]
    low, high = lower.detach().reshape(-1, lower.shape[-1]).cpu(), upper.detach().reshape(-1, lower.shape[-1]).cpu()
    good = torch.isfinite(low).all(-1) & torch.isfinite(high).all(-1) & (low <= high).all(-1)
    if bool(good.any()):
        good[good.clone()] = ~confidence.empty(torch.stack([low, 0.5 * low + 0.5 * high, high], dim=1)[good]).any(-1)
    yes, no, witness = good.clone(), torch.zeros_like(good), torch.full_like(low, torch.nan)
    for part in _questions(confidence, epsilon, within, pieces):
        ask = torch.nonzero(good & ~no).flatten()
        found = part(low[ask], high[ask])
        yes[ask] &= found.yes
        no[ask], witness[ask] = found.no, found.witness
    fields = (yes, no, witness)
    return Answer(*(field.to(lower.device).reshape((*shape, *field.shape[1:])) for field in fields))


def largest(
    confidence: ConfidenceSet,
    z: Tensor,
    shape: Tensor,
    *,
    epsilon: Tensor | float | None = None,
    within: Box | None = None,
    limit: float = 1.0,
    rounds: int = 12,
    pieces: int = 64,
) -> Found:
    """The largest s ≤ `limit` found by bisection with z ± s·shape certified (`certified`), for points z (*b, d) at once.

    Being certified is monotone in s (a part of a certified box is one), the search for a proof need not be: s is a scale whose
    own box was certified, and the next larger one that was tried was not.
    """
    where = "regions.largest"
    model = confidence.model
    z = _require.points(where, "z", z, model.nx + model.nu)
    shape = _require.nonnegative(where, "shape", _require.points(where, "shape", shape, z.shape[-1])).expand(z.shape)
    flat, step = z.detach().reshape(-1, z.shape[-1]), shape.reshape(-1, z.shape[-1]).to(z.device)
    best, out = torch.full_like(flat[:, 0], -1.0), torch.full_like(flat[:, 0], float(limit))
    ends = torch.full_like(flat, torch.nan), torch.full_like(flat, torch.nan)
    _require.positive(where, "limit", limit)
    tries = [torch.zeros_like(out), out.clone()]
    for i in range(_require.count(where, "rounds", rounds) + 2):
        scale = tries[i] if i < 2 else 0.5 * (best + out)
        low, high = flat - scale.unsqueeze(-1) * step, flat + scale.unsqueeze(-1) * step
        ask = torch.nonzero((best >= 0) & (best < out)).flatten() if i else torch.arange(len(flat))
        if not len(ask):
            break
        held = certified(confidence, (low[ask], high[ask]), epsilon=epsilon, within=within, pieces=pieces).yes
        best[ask[held]] = scale[ask[held]]
        ends[0][ask[held]], ends[1][ask[held]] = low[ask[held]], high[ask[held]]
        if i:
            out[ask[~held]] = scale[ask[~held]]
    return Found(best.reshape(z.shape[:-1]), ends[0].reshape(z.shape), ends[1].reshape(z.shape))


# ------------------------------------------------------------------------------------------------ inside
_Question = Callable[[Tensor, Tensor], Answer]


def _questions(
    confidence: ConfidenceSet, epsilon: Tensor | float | None, within: Box | None, pieces: int
) -> list[_Question]:
    found: list[_Question] = []
    if epsilon is not None:
        allowed = _require.nonnegative("regions.certified", "epsilon", epsilon)
        allowed = allowed.expand(confidence.model.num_outputs) if allowed.ndim == 0 else allowed
        _require.shape("regions.certified", "epsilon", allowed, (confidence.model.num_outputs,))
        found.append(lambda low, high: _accurate(confidence, low, high, allowed))
    if within is not None:
        _require.kind("regions.certified", "within", within, Box)
        _require.last_dim("regions.certified", "within", within.lower, confidence.model.nx)
        known = known_with_bound("regions.certified", confidence.model.prior)
        found.append(lambda low, high: _inside(confidence, known, low, high, within, pieces))
    return found


def _accurate(confidence: ConfidenceSet, low: Tensor, high: Tensor, epsilon: Tensor) -> Answer:
    newest = ConfidenceSet(confidence.bound).update(confidence.model)
    bound, model = newest.bound, newest.model
    found = ranges.std(model, (low, high))
    beta = bound.beta(model).cpu()
    slack = bound.slack(model)
    added = torch.zeros_like(beta) if slack is None else slack.cpu()
    epsilon = epsilon.cpu()
    carried = Rounding.of(model).mean(found.upper.square(), model.prior_variance(low))  # of μ_n as it is computed
    above = (beta * found.upper + added + carried) * (1 + GROW)
    below = (beta * found.attained_high + added) * (1 - GROW)
    over, spoken = below > epsilon, bound.covers(low, high)
    no = over.any(-1) & spoken
    worst = torch.where(over, below - epsilon, -torch.inf).argmax(-1)
    point = found.argmax[torch.arange(len(low)), worst]
    return Answer((above <= epsilon).all(-1) & spoken, no, torch.where(no.unsqueeze(-1), point, torch.nan))


def _inside(confidence: ConfidenceSet, known: KnownPart, low: Tensor, high: Tensor, within: Box, pieces: int) -> Answer:
    """Halving; a box is yes when all its parts are, no at the first part with a witness."""
    model, count = confidence.model, len(low)
    witness, no = torch.full_like(low, torch.nan), torch.zeros(count, dtype=torch.bool)
    given_up, used = torch.zeros_like(no), torch.zeros(count, dtype=torch.long)
    box = torch.arange(count)
    while len(box):
        used.index_add_(0, box, torch.ones_like(box))
        band = ranges.band(confidence, (low, high), tol=0.1, cells=256)
        middle, half = _known_over(model, known, low, high)
        least, most = middle - half, middle + half
        columns, size = list(model.outputs), middle.abs() + half
        least[:, columns] += band.lower
        most[:, columns] += band.upper
        size[:, columns] += torch.maximum(band.lower.abs(), band.upper.abs())
        least, most = least - GROW * size, most + GROW * size
        inside = ((least >= within.lower) & (most <= within.upper)).all(-1)
        center = 0.5 * low + 0.5 * high
        tried = torch.cat([center.unsqueeze(1), band.argmin, band.argmax], dim=1)
        outside = _leaves(confidence, tried, within)
        hit = outside.any(-1) & ~no[box]
        point = tried[torch.arange(len(box)), outside.to(torch.int8).argmax(-1)]
        for i in torch.nonzero(hit).flatten().tolist():  # the first of a box is kept
            if not no[box[i]]:
                no[box[i]], witness[box[i]] = True, point[i]
        small = ~((high - low) > 0).any(-1)
        stuck = (~inside & (small | (used[box] >= pieces))) | confidence.empty(tried).any(-1)
        given_up[box[stuck]] = True
        go = ~(inside | no[box] | given_up[box])
        low, high, box = low[go], high[go], box[go]
        reach = _reach(model, known, low, high)
        axis, line = reach.argmax(-1), torch.arange(len(box))
        cut = 0.5 * low[line, axis] + 0.5 * high[line, axis]
        left, right = high.clone(), low.clone()
        left[line, axis], right[line, axis] = cut, cut
        low, high, box = torch.cat([low, right]), torch.cat([left, high]), torch.cat([box, box])
    return Answer(~(no | given_up), no, witness)


def _known_over(model: GP, known: KnownPart, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """p(c) and ≥ |p(z) − p(c)| over boxes, (N, nx) ×2."""
    center = 0.5 * low + 0.5 * high
    radius = torch.maximum(high - center, center - low)
    x, u = center[:, : model.nx], center[:, model.nx :]
    slope = prior_jacobian("regions.certified", model.prior, x, u).expand(len(low), model.nx, low.shape[-1])
    local = getattr(known, "hessian_over", None)
    hessian = known.hessian_bound.expand(len(low), model.nx, low.shape[-1], low.shape[-1])
    if local is not None:
        hessian = local(low, high)
    half = (slope.abs() @ radius.unsqueeze(-1)).squeeze(-1) + 0.5 * torch.einsum(
        "bijk,bj,bk->bi", hessian, radius, radius
    )
    middle = known_part("regions.certified", model.prior, x, u)
    terms = (slope.abs() @ (center.abs() + radius).unsqueeze(-1)).squeeze(-1)  # not their sum: they may cancel
    return middle, half * (1 + GROW) + GROW * (middle.abs() + terms)


def _leaves(confidence: ConfidenceSet, z: Tensor, within: Box) -> Tensor:
    """Whether p + l_n or p + h_n is outside X at z (N, m, d), by more than rounding, (N, m)."""
    model = confidence.model
    low, high = confidence.bounds(z)
    center = known_part("regions.certified", model.prior, z[..., : model.nx], z[..., model.nx :])
    least, most = center + model.embed(low), center + model.embed(high)
    room = 1e-9 * (center.abs() + model.embed(torch.maximum(low.abs(), high.abs())))
    return ((least < within.lower - room) | (most > within.upper + room)).any(-1) & (low <= high).all(-1)


def _reach(model: GP, known: KnownPart, low: Tensor, high: Tensor) -> Tensor:
    """What each axis contributes: radius in length-scales of the finest kernel, plus the known part's slope, (N, d)."""
    center, radius = 0.5 * low + 0.5 * high, 0.5 * (high - low)
    scale = ranges.finest_scale(model)
    slope = prior_jacobian("regions.certified", model.prior, center[:, : model.nx], center[:, model.nx :])
    slope = slope.expand(len(low), model.nx, low.shape[-1]).abs().amax(-2)
    weight = scale + slope + 1e-300
    return torch.where(high > low, radius * weight, -1.0)
