"""Terminal sets: hulls of certified states, and the certificate that a set is invariant under a backup law (theory §6.7).

A hull of states that were certified is not invariant for that reason. Either `certify_invariance` shows it, or "the terminal
set is invariant under the backup" is an assumption, and the filter lists it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._sealed import Seal, edited, require_unbroken, sealed
from gpsafe._show import short
from gpsafe.assumptions import Assumption, listed
from gpsafe.certify.problem import CertificationProblem
from gpsafe.sets.box import Box
from gpsafe.sets.polytope import Polytope, convex_hull
from gpsafe.tube.core import TubeModel, sizes
from gpsafe.verdict import Outcome, Verdict

_FAT = (
    1e-4  # least distance of a facet from the middle, as a share of the extent along it, at which facets are believed
)
ROUNDING = 1e-12  # share of all sizes in a row by which its excess is raised: more than the rounding of its evaluation


@short
@dataclass(frozen=True, slots=True, eq=False)
class AffineLaw:
    """κ(x) = offset + K x, (*b, nx) → (*b, nu)."""

    gain: Tensor
    offset: Tensor

    def __post_init__(self) -> None:
        gain = _require.real("AffineLaw", "gain", self.gain)
        if gain.ndim != 2:
            raise _require.fail("AffineLaw", "gain of shape (nu, nx)", f"shape {tuple(gain.shape)}")
        object.__setattr__(self, "gain", gain)
        offset = _require.real("AffineLaw", "offset", self.offset)
        object.__setattr__(self, "offset", _require.shape("AffineLaw", "offset", offset, gain.shape[:1]))

    @staticmethod
    def about(gain: Tensor, x: Tensor, u: Tensor) -> AffineLaw:
        """κ(y) = u + K(y − x), for example about a set-point x with its input u."""
        return AffineLaw(gain, u - gain @ x)

    def __call__(self, x: Tensor) -> Tensor:
        """κ(x)."""
        return x @ self.gain.mT + self.offset


@short
@dataclass(frozen=True, slots=True, eq=False)
class TerminalSet:
    """Convex hull of certified states in chosen coordinates, ℓ updates old. It only grows, up to rounding (1e-12).

    The delay keeps states that were certified with today's model from serving as today's target. Make one with `start`.

    Attributes:
        nx: state dimension.
        dims: constrained coordinates, d ≥ 1 of them; the others are free.
        delay: ℓ ≥ 0.
        points: those that span the newest hull, (n, d).
        hulls: of the last ℓ + 1 updates, oldest first, in the chosen coordinates.
    """

    nx: int
    dims: tuple[int, ...]
    delay: int
    points: Tensor
    hulls: tuple[Polytope, ...]

    def __post_init__(self) -> None:
        where = "TerminalSet"
        nx, delay = _require.index(where, "nx", self.nx, minimum=1), _require.index(where, "delay", self.delay)
        chosen = _require.listing(where, "dims", self.dims)
        # A Boolean or a float among them would index something else than what it says.
        dims = tuple(_require.index(where, "coordinate", j) for j in chosen)
        if not dims or len(set(dims)) != len(dims) or not all(j < nx for j in dims):
            raise _require.fail(where, f"distinct coordinates in 0..{nx - 1}", chosen)
        if not 1 <= len(self.hulls) <= delay + 1 or any(hull.dim != len(dims) for hull in self.hulls):
            raise _require.fail(where, f"1..{delay + 1} hulls in {len(dims)} coordinates", [h.dim for h in self.hulls])
        _require.last_dim(where, "points", self.points, len(dims))
        object.__setattr__(self, "dims", dims)

    @staticmethod
    def start(initial: Tensor, *, dims: tuple[int, ...] | None = None, delay: int = 0) -> TerminalSet:
        """The hull of initial states (n, nx), used until ℓ updates have passed.

        Args:
            initial: (n, nx), n ≥ 1. Fewer than d + 1 give a flat set, which no tube of positive width can enter.
            dims: constrained coordinates, all by default.
            delay: ℓ.
        """
        initial = _require.real("TerminalSet", "initial", initial)
        if initial.ndim != 2:
            raise _require.fail("TerminalSet", "initial of shape (n, nx)", f"shape {tuple(initial.shape)}")
        nx = initial.shape[1]
        listed = tuple(range(nx)) if dims is None else _require.listing("TerminalSet", "dims", dims)
        chosen = [_require.index("TerminalSet", "coordinate", j) for j in listed]
        if not chosen or not all(j < nx for j in chosen):
            raise _require.fail("TerminalSet", f"distinct coordinates in 0..{nx - 1}", listed)
        points, hull = _spanning(initial[:, chosen])
        return TerminalSet(nx, tuple(chosen), delay, points, (hull,))

    @property
    def polytope(self) -> Polytope:
        """The set in use as rows on x, (k, nx): zero columns where a coordinate is free."""
        hull = self.hulls[0]
        H = hull.H.new_zeros(hull.rows, self.nx)
        H[:, list(self.dims)] = hull.H
        return Polytope(H, hull.h)

    def update(self, certified: Tensor) -> TerminalSet:
        """One update, with the states (n, nx) certified since the last one; n may be 0."""
        if not isinstance(certified, Tensor) or certified.ndim != 2 or certified.shape[1] != self.nx:
            got = f"shape {tuple(certified.shape)}" if isinstance(certified, Tensor) else type(certified).__name__
            raise _require.fail("TerminalSet.update", f"certified of shape (n, {self.nx})", got)
        points, hull = self.points, self.hulls[-1]
        if certified.numel():
            points = _require.real("TerminalSet.update", "certified", certified)[:, list(self.dims)]
            points, hull = _spanning(torch.cat([self.points, points]))
        return replace(self, points=points, hulls=(*self.hulls, hull)[-self.delay - 1 :])


def _spanning(points: Tensor) -> tuple[Tensor, Polytope]:
    """The points on the boundary of their hull, and the hull."""
    hull = convex_hull(points)
    gap = hull.violation(points)
    return points[gap >= -1e-12 * (1.0 + float(points.abs().max()))], hull


# ------------------------------------------------------------------------------------------------------- invariance
@short
@dataclass(frozen=True, slots=True, eq=False)
class Invariance:
    """Whether S = X_f ∩ X is invariant under κ and κ(S) ⊆ U, for all members, disturbances and remainders of the model.

    Attributes:
        verdict: of "the largest excess of a row is ≤ 0", with its interval.
        region: S.
        inputs: U.
        model: whose disturbances and remainders were counted.
        law: κ.
        cells: how many cells were evaluated.
        witness: a state of S with the largest excess known, (nx,).
        assumptions: what it rests on.

    The verdict is about these parts: `dataclasses.replace` refuses others, and one that was written on certifies nothing.
    """

    verdict: Verdict
    region: Polytope
    inputs: Polytope
    model: TubeModel
    law: AffineLaw
    cells: int
    witness: Tensor
    assumptions: tuple[str, ...] = field(default=())
    _seal: Seal | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        require_unbroken("Invariance", self)

    @property
    def edited(self) -> str | None:
        """What is no longer as it was certified; None if all is. Of the model ask `TubeModel.edited`."""
        return edited(self)

    @property
    def certified(self) -> bool:
        """Whether the verdict HOLDS, of the parts as they are now."""
        return self.verdict.outcome is Outcome.HOLDS and self.edited is None

    def concerns(self, problem: CertificationProblem) -> bool:
        """Whether S, U and the model (the same object) are those of the problem."""
        pairs = ((problem.terminal.intersect(problem.states), self.region), (problem.inputs, self.inputs))
        same = all(torch.equal(a.H, b.H) and torch.equal(a.h, b.h) for a, b in pairs)
        return same and problem.model is self.model


def certify_invariance(problem: CertificationProblem, law: AffineLaw, *, budget: int = 4096) -> Invariance:
    """κ(x) ∈ U and f(x, κ(x)) + w ∈ S for every x ∈ S = X_f ∩ X, every member, by one-step tubes over cells of S.

    For x = c + e in a box cell of half-widths r, which lies in E(c, nx·diag r²), (1) of `gpsafe.tube.core` gives
    x⁺ ∈ μ(c, κ(c)) + F e + E(0, diag W) + {|r_i| ≤ R_i}, F = A + BK, so that row H_i of S takes at most

        H_i μ + min(|H_i F| r, max_{x ∈ S} H_i F (x − c)) + ‖H_i diag √W‖ + |H_i| R.

    The maximum over S is that over its vertices, widened by what they may have missed (`_Hull`). κ(S) ⊆ U and the box of all
    cells rest on `Polytope.support_outer`. Cells that miss S are dropped, cells that fail are halved. For a linear plant the
    first cell decides, exactly. If (1) is claimed for *one* member that need not be known, then the check of all members
    serves.

    The disturbance is the model's at *every* step for which the backup runs: a Gaussian noise is in its ellipsoids for a
    stated number of steps only. That is listed among the assumptions.

    Returns:
        HOLDS; VIOLATED with a state of S from which the nominal step and the disturbance ellipsoid leave S, or whose input
        leaves U; INCONCLUSIVE when the budget of cells is spent.

    Raises:
        ValueError: in paper mode, where (1) is not claimed; for an empty or unbounded S; for a law of other dimensions.
    """
    return sealed(_examined(problem, law, budget), watched=("region", "inputs", "law"))


def _examined(problem: CertificationProblem, law: AffineLaw, budget: int) -> Invariance:
    """See `certify_invariance`."""
    where, model = "certify_invariance", problem.model
    if problem.mode != "sound":
        raise _require.fail(where, "a model in sound mode", problem.mode)
    if not isinstance(law, AffineLaw):
        raise _require.fail(where, "an AffineLaw", type(law).__name__)
    _require.shape(where, "law.gain", law.gain, (problem.nu, problem.nx))
    _require.count(where, "budget", budget)
    region = problem.terminal.intersect(problem.states)
    vertices = region.vertices()
    told = listed(problem.believed, Assumption.NOISE_ELLIPSOID(" for as long as the backup runs"))

    inputs = problem.inputs
    pushed = law(vertices)
    computed = pushed @ inputs.H.mT - inputs.h
    terms = vertices.abs() @ law.gain.abs().mT + law.offset.abs()  # not their sum: they may cancel
    rounding = ROUNDING * (terms @ inputs.H.abs().mT + inputs.h.abs())
    lower = float((computed - rounding).max())
    highest = region.support_outer(inputs.H @ law.gain) + inputs.H @ law.offset - inputs.h
    upper = float((highest + rounding.amax(0)).max())
    witness = vertices[int(computed.amax(-1).argmax())]

    at_vertices = _excess(problem, law, region, vertices)
    if float(at_vertices.max()) > lower:
        lower, witness = float(at_vertices.max()), vertices[int(at_vertices.argmax())]
    if lower > 0.0:
        return Invariance(Verdict(lower, max(lower, upper), 0.0), region, inputs, model, law, 0, witness, told)

    hull, eye = _Hull.of(region, vertices), torch.eye(problem.nx, dtype=torch.float64, device=vertices.device)
    high, low = region.support_outer(eye), -region.support_outer(-eye)
    if not bool((torch.isfinite(high) & torch.isfinite(low) & (low <= high)).all()):
        return Invariance(Verdict(lower, torch.inf, 0.0), region, inputs, model, law, 0, witness, told)
    box, reach = Box(low, high), torch.maximum(low.abs(), high.abs())
    centers, radii, used = box.center.unsqueeze(0), box.radius.unsqueeze(0), 0
    settled = upper
    while centers.shape[0]:
        least = centers @ region.H.mT - radii @ region.H.abs().mT
        meets = (least - ROUNDING * ((centers.abs() + radii) @ region.H.abs().mT) <= region.h).all(-1)
        centers, radii = centers[meets], radii[meets]
        if not centers.shape[0]:
            break
        used += centers.shape[0]
        found = _excess(problem, law, region, centers, _Cells(radii, hull, reach))
        failed = ~(found <= 0.0)
        if bool((~failed).any()):
            settled = max(settled, float(found[~failed].max()))
        if bool(failed.any()) and used + 2 * int(failed.sum()) > budget:
            worst = float(found.nan_to_num(nan=torch.inf).max())
            place = centers[int(found.nan_to_num(nan=torch.inf).argmax())]
            upper = max(worst, settled)
            return Invariance(Verdict(lower, upper, 0.0), region, inputs, model, law, used, place, told)
        centers, radii = _halved(centers[failed], radii[failed], box.radius)
    return Invariance(Verdict(min(lower, settled), settled, 0.0), region, inputs, model, law, used, witness, told)


@dataclass(frozen=True, slots=True, eq=False)
class _Hull:
    """S ⊆ p + (1 + τ)(conv V − p) for the computed vertices V, about their mean p.

    τ is what the facets of conv V miss of S by `Polytope.support_outer`, relative to their distance from p, and at least
    1e-9 for the rounding of those facets: in coordinates in which V fills a cube, facets turned by 1e-14 miss conv V by
    about that over their least distance from p. Where this is below `_FAT`, S is too thin for them to be believed: inf.
    """

    vertices: Tensor
    middle: Tensor
    growth: float

    @staticmethod
    def of(region: Polytope, vertices: Tensor) -> _Hull:
        facets, middle = convex_hull(vertices), vertices.mean(0)
        room = facets.h - facets.H @ middle
        extent = (vertices - middle).abs().amax(0) @ facets.H.abs().mT
        size = facets.h.abs() + vertices.abs().amax(0) @ facets.H.abs().mT
        missed = region.support_outer(facets.H) - facets.h + ROUNDING * size
        growth = float(torch.where(room > _FAT * extent, missed.clamp_min(0.0) / room, torch.inf).max())
        return _Hull(vertices, middle, max(growth, 1e-9) if growth < 1.0 else torch.inf)

    def highest(self, normals: Tensor, x: Tensor) -> Tensor:
        """≥ max over S of n·(y − x), (*b, k), for n (*b, k, nx), x (*b, nx)."""
        if self.growth == torch.inf:
            return torch.full(normals.shape[:-1], torch.inf, dtype=normals.dtype, device=normals.device)
        beyond = (normals @ (self.vertices - self.middle).mT).amax(-1)
        return (normals @ (self.middle - x).unsqueeze(-1)).squeeze(-1) + (1.0 + self.growth) * beyond


@dataclass(frozen=True, slots=True, eq=False)
class _Cells:
    """Half-widths r (n, nx) of cells of S, S itself, and the largest |x| in it, (nx,)."""

    radii: Tensor
    hull: _Hull
    reach: Tensor


def _excess(
    problem: CertificationProblem, law: AffineLaw, region: Polytope, centers: Tensor, cells: _Cells | None = None
) -> Tensor:
    """Largest excess of the rows of S after one step, (n,): from above over cells, or else from below, of μ + W at points."""
    model, H = problem.model, region.H
    x = centers.unsqueeze(-2).expand(-1, problem.num_members, -1)
    u = law(x)
    with torch.no_grad():
        local = model.linearise(x, u)
        reach = local.mean @ H.mT + (H * local.variance.sqrt().unsqueeze(-2)).norm(dim=-1)
        far = x.abs() if cells is None else cells.reach.expand_as(x)
        size = sizes(model, local, far, u, law.gain) @ H.abs().mT + region.h.abs()
        if cells is None:
            return (reach - region.h - ROUNDING * size).amax(-1).amax(-1)
        radii = cells.radii
        moved = H @ (local.A + local.B @ law.gain)  # (n, M, k, nx)
        boxed = (moved.abs() @ radii.unsqueeze(-2).unsqueeze(-1)).squeeze(-1)
        most = cells.hull.highest(moved, x)
        factor = torch.diag_embed(radii * centers.shape[-1] ** 0.5 * (1 + 1e-12)).unsqueeze(-3)
        rest = model.remainder(x, u, factor.expand(-1, problem.num_members, -1, -1), law.gain)
        reach = reach + torch.minimum(boxed, most) + rest @ H.abs().mT
        return (reach - region.h + ROUNDING * (size + boxed)).amax(-1).amax(-1)


def _halved(centers: Tensor, radii: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Each cell cut in two across its longest side, measured in units of `scale`."""
    axis = (radii / scale.clamp_min(1e-300)).argmax(-1, keepdim=True)
    radii = torch.where(torch.arange(radii.shape[-1], device=radii.device) == axis, 0.5 * radii, radii)
    shift = torch.zeros_like(radii).scatter(-1, axis, radii.gather(-1, axis))
    return torch.cat([centers - shift, centers + shift]), torch.cat([radii, radii])
