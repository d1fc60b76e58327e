"""S_n of a continuous policy class: certified parameter vectors with witnesses, and certified boxes around them.

The only guarantee of a continuous search is made here. A vector θ is a member if
 - it was given (S_0, by assumption), or
 - a *sound* cost bound gave UCB_n(π_θ) ≤ d, or
 - UCB_m(π_θ′) + D(π_θ, π_θ′) ≤ d for a member θ′ that the bound certified at some m ≤ n (its value stays valid: F_n ⊆ F_m).
Boxes around members are certified by `box_upper` (the robust program for all parameters of a box at once) or by D
(`lipschitz_boxes`). On the event f* ∈ F_n for all n, every member, and every θ of a certified box, has J_c ≤ d. How a vector
was proposed plays no role.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import brief, short, table
from gpsafe.confidence.set import ConfidenceSet
from gpsafe.cost._task import MonteCarloBound
from gpsafe.cost.base import CostBound
from gpsafe.cost.enclosure import grow, input_matrix, residual_reach
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.policies import AffinePolicies
from gpsafe.policies.parametric import ParametricPolicies
from gpsafe.safety.safe_set import PolicyGap, Rule, Witness, through
from gpsafe.systems.base import known_with_bound

Upper = Callable[[Tensor], Tensor]  # θ (m, d) → sound UCB_n, (m,)
Distance = Callable[[AffinePolicies, AffinePolicies], Tensor | PolicyGap]  # D, (P, Q)


@short
@dataclass(frozen=True, slots=True, eq=False)
class SafeParameters:
    """Members of S_n: frozen and monotone.

    Args:
        theta: (m, d), physical units.
        witnesses: why each is in; `neighbour` is an index into `theta`.
        radius: half-widths of a certified box around each, (m, d); 0 for the point alone.
        budget: d of the cost.
    """

    theta: Tensor
    witnesses: tuple[Witness, ...]
    radius: Tensor
    budget: float

    @staticmethod
    def initial(theta: Tensor, *, budget: float) -> SafeParameters:
        """S_0, assumed safe."""
        theta = _require.finite("SafeParameters", "theta", theta).clone()
        if theta.ndim != 2:
            raise _require.fail("SafeParameters", "theta of shape (m, d)", f"shape {tuple(theta.shape)}")
        budget = _require.number("SafeParameters", "budget", budget, minimum=0.0)
        given = tuple(Witness(0, "given", math.nan, "assumption") for _ in theta)
        return SafeParameters(theta, given, torch.zeros_like(theta), budget)

    def __len__(self) -> int:
        return len(self.witnesses)

    def _repr_html_(self) -> str:
        rows = [
            (brief(t), w.episode, w.rule, w.value, w.bound)
            for t, w in list(zip(self.theta, self.witnesses, strict=True))[:20]
        ]
        rows += [(f"and {len(self) - 20} more", "", "", "", "")] if len(self) > 20 else []
        title = f"SafeParameters({len(self)} members, budget={self.budget:.6g})"
        return table(title, rows, head=("parameters", "since episode", "rule", "value", "bound"))

    @property
    def values(self) -> Tensor:
        """Certified upper bounds of the members' costs (nan for S_0), (m,)."""
        return torch.tensor([w.value for w in self.witnesses], dtype=torch.float64)

    def add(
        self, theta: Tensor, values: Tensor, *, episode: int, bound: str, rule: Rule, neighbours: Tensor | None = None
    ) -> SafeParameters:
        """S_n with the vectors θ (m, d) whose `values` (m,) are at most the budget; the others are refused."""
        values, theta = (
            _require.floats("SafeParameters.add", name, v) for name, v in (("values", values), ("theta", theta))
        )
        _require.index("SafeParameters.add", "episode", episode)
        if not bool(((values > -torch.inf) & (values <= self.budget)).all()):
            raise _require.fail("SafeParameters.add", f"values <= {self.budget}, above -inf", values.tolist())
        sources = [None] * len(theta) if neighbours is None else neighbours.tolist()
        new = tuple(Witness(episode, rule, v, bound, s) for v, s in zip(values.tolist(), sources, strict=True))
        radius = torch.cat([self.radius, torch.zeros_like(theta)])
        return replace(self, theta=torch.cat([self.theta, theta]), witnesses=(*self.witnesses, *new), radius=radius)

    def with_boxes(self, radius: Tensor) -> SafeParameters:
        """Certified boxes (m, d): each replaces the one of its member only if it contains it, so that no point is lost.

        Of two boxes neither of which contains the other the old one is kept: the box around both is not certified.
        """
        _require.shape("SafeParameters.with_boxes", "radius", radius, tuple(self.theta.shape))
        _require.finite("SafeParameters.with_boxes", "radius", radius)
        larger = (radius >= self.radius).all(-1, keepdim=True)
        return replace(self, radius=torch.where(larger, radius, self.radius))

    def covers(self, theta: Tensor) -> Tensor:
        """Whether θ (m, d) lies in a certified box, (m,)."""
        away = (theta.unsqueeze(-2) - self.theta).abs()
        return (away <= self.radius).all(-1).any(-1)

    def nearest(self, theta: Tensor, scale: Tensor) -> Tensor:
        """Index of the member nearest to each θ (m, d), in units of `scale` (d,)."""
        return torch.cdist(theta / scale, self.theta / scale).argmin(-1)


def sound_upper(bound: CostBound, confidence: ConfidenceSet, family: ParametricPolicies) -> Upper:
    """θ ↦ UCB_n(π_θ) by a sound cost bound.

    Monte-Carlo bounds draw noise of their own for every call, because later candidates depend on earlier answers; their
    `calls` must be at least the number of calls made at one stage, or their δ is overspent: that is refused.

    Raises:
        ValueError: if the bound or the confidence set is not sound.
    """
    if not (bound.sound and confidence.sound):
        raise _require.fail("sound_upper", "a sound cost bound on a sound confidence set", bound.name)
    made = 0

    def upper(theta: Tensor) -> Tensor:
        nonlocal made
        judge = bound
        if isinstance(bound, MonteCarloBound):
            made += 1
            if made > bound.calls:
                raise _require.fail("sound_upper", f"at most {bound.calls} calls at a stage", made)
            judge = replace(bound, seed=bound.seed + 1_000_003 * (made - 1))
        return judge.evaluate(confidence, family(theta)).upper

    return upper


@short
@dataclass(frozen=True, slots=True, eq=False)
class Decisions:
    """What the certifier said about m proposals.

    Attributes:
        theta: the proposals, (m, d).
        upper: UCB_n of the proposals, (m,).
        rule: "bound", "lipschitz" or "" (refused), per proposal.
        fallback: the last certified point on the segment to the nearest member, (m, d); that member if none.
        fraction: how far along it is: 1 accepted, 0 no progress, (m,).
        calls: number of policies the certifier looked at.
    """

    theta: Tensor
    upper: Tensor
    rule: tuple[str, ...]
    fallback: Tensor
    fraction: Tensor
    calls: int

    @property
    def accepted(self) -> Tensor:
        """(m,) booleans."""
        return torch.tensor([r != "" for r in self.rule], dtype=torch.bool)


def admit(
    safe: SafeParameters,
    proposals: Tensor,
    upper: Upper,
    *,
    family: ParametricPolicies,
    episode: int,
    bound: str,
    rounds: int = 5,
    distance: Distance | None = None,
) -> tuple[SafeParameters, Decisions]:
    """Accepts what is certified; backs off from the rest by bisection towards the nearest member.

    A refused proposal θ with nearest member θ′ gives `rounds` bisection steps on s ∈ [0, 1], θ′ + s(θ − θ′): the last
    certified point enters. (The certified part of a segment need not be an interval; each point is judged on its own.)

    Args:
        proposals: θ, (m, d), inside the family's box.
        upper: see `sound_upper`.
        rounds: bisection steps; 0: refused proposals are dropped.
        distance: D, or None to leave the Lipschitz rule out.
    """
    if len(proposals) == 0:
        none = torch.zeros(0, dtype=torch.float64)
        return safe, Decisions(proposals, none, (), proposals, none, 0)
    width = family.box.upper - family.box.lower
    values = _require.floats("admit", "upper(θ)", upper(proposals))
    calls = len(proposals)
    good = values <= safe.budget
    neighbour = safe.nearest(proposals, width)
    rule = ["bound" if ok else "" for ok in good.tolist()]
    grown = safe.add(proposals[good], values[good], episode=episode, bound=bound, rule="bound")
    if distance is not None:
        usable = torch.nonzero(~torch.isnan(safe.values)).flatten()
        refused = torch.nonzero(~good).flatten()
        if len(usable) and len(refused):
            gap = distance(family(safe.theta[usable]), family(proposals[refused]))
            best, source = through(safe.values[usable], gap).min(0)
            near = best <= safe.budget
            grown = grown.add(
                proposals[refused[near]], best[near], episode=episode, bound=bound, rule="lipschitz",
                neighbours=usable[source[near]],
            )  # fmt: skip
            for i in refused[near].tolist():
                rule[i] = "lipschitz"
    low = torch.tensor([1.0 if r else 0.0 for r in rule], dtype=torch.float64)
    left = torch.nonzero(low == 0).flatten()
    base, target = safe.theta[neighbour[left]], proposals[left]
    low_left, high_left = torch.zeros(len(left)).double(), torch.ones(len(left)).double()
    found = torch.full((len(left),), math.inf, dtype=torch.float64)
    for _ in range(rounds if len(left) else 0):
        middle = 0.5 * (low_left + high_left)
        value = _require.floats("admit", "upper(θ)", upper(base + middle.unsqueeze(-1) * (target - base)))
        calls += len(left)
        ok = value <= safe.budget
        low_left, high_left = torch.where(ok, middle, low_left), torch.where(ok, high_left, middle)
        found = torch.where(ok, value, found)
    moved = low_left > 0
    retreat = base + low_left.unsqueeze(-1) * (target - base)
    grown = grown.add(retreat[moved], found[moved], episode=episode, bound=bound, rule="bound")
    low[left] = low_left
    fallback = proposals.clone()
    fallback[left] = retreat
    return grown, Decisions(proposals, values, tuple(rule), fallback, low, calls)


def box_upper(
    dp: RobustDP, confidence: ConfidenceSet, family: ParametricPolicies, center: Tensor, radius: Tensor
) -> Tensor:
    """≥ sup over |θ − center| ≤ radius and f ∈ F_n of J_c(π_θ, f), (P,): the robust program with uncertain parameters.

    Per cell, π_θ(x) = π_center(x) + Δ with |Δ| ≤ `family.spread`; p changes by at most |∂p/∂u|·|Δ|, and the kernel metric
    is taken over inputs that reach that much further. The adversary may even change θ at every step. As sound as
    `RobustDP`, under the same assumptions. Needs p affine in u with a constant input matrix.

    Args:
        center, radius: (P, d).
    """
    known = confidence.model.prior
    nx = confidence.model.nx
    if bool((known.hessian_bound[:, :, nx:] != 0).any()):  # type: ignore[attr-defined]
        raise _require.fail("box_upper", "a known part affine in u with a constant input matrix", "curvature in u")
    step = max(1, dp.chunk // dp.grid.num)
    parts = [
        _box_upper(dp, confidence, family, c, r) for c, r in zip(center.split(step), radius.split(step), strict=True)
    ]
    return torch.cat(parts)


def _box_upper(
    dp: RobustDP, confidence: ConfidenceSet, family: ParametricPolicies, center: Tensor, radius: Tensor
) -> Tensor:
    model, policies = confidence.model, family(center)
    enclosure = dp.enclosure(confidence, policies)
    x, r = enclosure.centers, enclosure.radius
    spread = family.spread(center, radius, x=x, x_radius=r)  # (P, N, nu)
    matrix = input_matrix(known_with_bound("box_upper", model.prior), model.nx, model.nu).abs()
    gain, _, high = policies.slopes((x - r).unsqueeze(0), (x + r).unsqueeze(0))
    reach = high * torch.einsum("pux,nx->pnu", gain.abs(), r) + spread
    dz = torch.cat([r.expand(policies.num, *r.shape), reach], dim=-1)
    metric, slack, cap = residual_reach(confidence, enclosure.z, dz)
    known_radius = grow(enclosure.known_radius + spread @ matrix.T, 1e-12)
    wide = replace(enclosure, known_radius=known_radius, metric=metric, slack=slack, cap=cap, spread=spread)
    return dp.upper(wide.refine(confidence))


def certified_boxes(
    safe: SafeParameters,
    dp: RobustDP,
    confidence: ConfidenceSet,
    *,
    family: ParametricPolicies,
    index: Tensor,
    shapes: Tensor,
) -> tuple[SafeParameters, int]:
    """The largest certified box of the list `shapes` (half-widths (s, d), largest first) around the members `index`.

    Returns:
        the set with its boxes, and how many boxes the program looked at.
    """
    if not confidence.sound:
        raise _require.fail("certified_boxes", "a sound confidence set", type(confidence.bound).__name__)
    center = safe.theta[index].unsqueeze(1).expand(-1, len(shapes), -1)
    radius = shapes.expand(len(index), -1, -1)
    value = box_upper(dp, confidence, family, center.reshape(-1, family.dim), radius.reshape(-1, family.dim))
    fine = (value <= safe.budget).reshape(len(index), len(shapes))
    first = fine.double().argmax(-1)
    chosen = torch.where(fine.any(-1, keepdim=True), shapes[first], torch.zeros_like(shapes[first]))
    radius = torch.zeros_like(safe.theta)
    radius[index] = chosen
    return safe.with_boxes(radius), center.shape[0] * center.shape[1]


def lipschitz_boxes(
    safe: SafeParameters, family: ParametricPolicies, distance: Distance, *, shape: Tensor, rounds: int = 30
) -> Tensor:
    """Half-widths r·shape, r ≤ 1, of boxes around members in which UCB + D ≤ d, (m, d); 0 for S_0 (no value).

    For every state the raw input of θ lies between those of the box's vertices, and clipping is monotone; so
    sup_x |Δu| over a box is attained at a vertex, and D, which grows with |Δu|, too (one input).
    """
    if family.input_box.dim != 1:
        raise _require.fail("lipschitz_boxes", "one input", family.input_box.dim)
    family.require_multiaffine("lipschitz_boxes")
    members = torch.arange(len(safe))
    low, high = torch.zeros(len(safe)).double(), torch.ones(len(safe)).double()
    for _ in range(rounds):
        middle = 0.5 * (low + high)
        corners = family.vertices(safe.theta, middle.unsqueeze(-1) * shape)
        all_pairs = through(safe.values, distance(family(safe.theta), family(corners.reshape(-1, family.dim))))
        worst = all_pairs.reshape(len(safe), *corners.shape[:2])[members, members].amax(-1)
        ok = worst <= safe.budget
        low, high = torch.where(ok, middle, low), torch.where(ok, high, middle)
    return low.unsqueeze(-1) * shape
