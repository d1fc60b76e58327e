"""The pessimistic safe-policy set S_n, policy distances and reachable sets (theory §4)."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe import _require
from gpsafe._pinned import Pinned, pinned_policies
from gpsafe._show import short, table
from gpsafe.confidence.lineage import fingerprint
from gpsafe.cost.drift import drift_gap, drifted, push
from gpsafe.cost.enclosure import input_matrix
from gpsafe.policies import AffinePolicies
from gpsafe.policies.features import FeaturePolicies
from gpsafe.policies.parametric import input_gap
from gpsafe.rkhs import kernels
from gpsafe.systems.base import KnownPart

Rule = Literal["given", "bound", "lipschitz"]


@dataclass(frozen=True, slots=True)
class Witness:
    """Why a policy is in S_n.

    Args:
        episode: n at which it entered.
        rule: "given" (S_0), "bound" (UCB_n(π) ≤ d) or "lipschitz" (UCB_n(π′) + D(π, π′) ≤ d).
        value: the number that was compared with d (nan for S_0).
        bound: name of the cost bound.
        neighbour: π′ of the Lipschitz rule.
    """

    episode: int
    rule: Rule
    value: float
    bound: str
    neighbour: int | None = None


@dataclass(frozen=True, slots=True)
class SafePolicySet:
    """S_n over a finite class of `num` policies: frozen and monotone, every member with its witness."""

    num: int
    budget: float
    witnesses: Mapping[int, Witness]

    def __post_init__(self) -> None:
        _require.count("SafePolicySet", "num", self.num)
        budget = _require.number("SafePolicySet", "budget", self.budget, minimum=0.0)
        object.__setattr__(self, "budget", budget)
        strangers = [i for i in self.witnesses if type(i) is not int or not 0 <= i < self.num]
        if strangers:
            raise _require.fail("SafePolicySet", f"members in 0..{self.num - 1}", strangers)
        reason = unfounded(self.witnesses, self.witnesses, budget)
        if reason is not None:
            raise _require.fail("SafePolicySet", "members that entered within the budget", reason)

    @staticmethod
    def initial(num: int, members: Sequence[int] | Tensor | slice, *, budget: float) -> SafePolicySet:
        """S_0, assumed safe: `members` picks from 0..num − 1 as an index of an array would (`_require.indices`)."""
        _require.count("SafePolicySet", "num", num)
        chosen = _require.indices("SafePolicySet", "S_0", members, num)
        if not chosen:
            raise _require.fail("SafePolicySet", f"a non-empty S_0 of indices in 0..{num - 1}", members)
        return SafePolicySet(num, budget, {i: Witness(0, "given", math.nan, "assumption") for i in chosen})

    def __len__(self) -> int:
        return len(self.witnesses)

    def __repr__(self) -> str:
        return f"SafePolicySet({len(self)} of {self.num} policies, budget={self.budget:.6g})"

    def _repr_html_(self) -> str:
        shown = sorted(self.witnesses.items())
        rows = [(str(i), w.episode, w.rule, w.value, w.bound) for i, w in shown[:20]]
        rows += [(f"and {len(shown) - 20} more", "", "", "", "")] if len(shown) > 20 else []
        return table(repr(self), rows, head=("policy", "since episode", "rule", "value", "bound"))

    def __contains__(self, index: int) -> bool:
        return index in self.witnesses

    @property
    def members(self) -> Tensor:
        """Sorted indices, (|S_n|,)."""
        return torch.tensor(sorted(self.witnesses), dtype=torch.long)

    @property
    def outsiders(self) -> Tensor:
        """Indices not in S_n."""
        return torch.tensor([i for i in range(self.num) if i not in self.witnesses], dtype=torch.long)

    def expand(
        self, upper: Tensor, *, episode: int, bound: str, distance: Tensor | PolicyGap | None = None
    ) -> SafePolicySet:
        """S_n from S_{n−1}: adds UCB_n(π) ≤ d, and UCB_n(π′) + D(π, π′) ≤ d with π′ ∈ S_{n−1} (or what `through` makes of it).

        Args:
            upper: sound UCB_n of all policies, (num,); inf where it was not computed.
            episode: n.
            bound: name of the cost bound, for the witness.
            distance: D, (num, num), the class's `PolicyGap`, or None to skip the Lipschitz rule.
        """
        where = "SafePolicySet.expand"
        upper = _require.shape(where, "upper", _require.floats(where, "upper", upper), (self.num,))
        _require.index(where, "episode", episode)
        if not bool((upper > -torch.inf).all()):
            raise _require.fail(
                "SafePolicySet.expand", "upper without NaN or -inf", upper[~(upper > -torch.inf)].tolist()
            )
        grown = dict(self.witnesses)
        for i in torch.nonzero(upper <= self.budget).flatten().tolist():
            grown.setdefault(i, Witness(episode, "bound", float(upper[i]), bound))
        if distance is not None:
            table = distance.distance if isinstance(distance, PolicyGap) else distance
            _check_distance("SafePolicySet.expand", table, self.num)
            members = self.members
            value, source = through(upper[members], distance[members]).min(0)
            for i in torch.nonzero(value <= self.budget).flatten().tolist():
                grown.setdefault(i, Witness(episode, "lipschitz", float(value[i]), bound, int(members[source[i]])))
        return SafePolicySet(self.num, self.budget, grown)

    def to_json(self) -> dict[str, Any]:
        """JSON-able form (nan of S_0 becomes null)."""
        rows = {}
        for i, witness in sorted(self.witnesses.items()):
            row = asdict(witness)
            row["value"] = None if math.isnan(witness.value) else witness.value
            rows[str(i)] = row
        return {"num": self.num, "budget": self.budget, "witnesses": rows}

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> SafePolicySet:
        """Inverse of `to_json`.

        Raises:
            ValueError: if a member is there without a reason, see `unfounded`.
        """
        witnesses = {}
        for key, row in record["witnesses"].items():
            value = math.nan if row["value"] is None else row["value"]
            witnesses[int(key)] = Witness(row["episode"], row["rule"], value, row["bound"], row["neighbour"])
        return SafePolicySet(record["num"], record["budget"], witnesses)


def unfounded(witnesses: Mapping[int, Witness], members: Container[int], budget: float) -> str | None:
    """Which member of a set that was read did not enter within the budget, or entered by one that was not there; or None."""
    for index, witness in witnesses.items():
        if witness.rule == "given":
            fine = math.isnan(witness.value)
        else:
            fine = witness.rule in ("bound", "lipschitz") and -math.inf < witness.value <= budget
        if not fine or witness.episode < 0 or (witness.rule == "lipschitz") != (witness.neighbour is not None):
            return f"member {index} by {witness}"
        if witness.neighbour is not None and witness.neighbour not in members:
            return f"member {index} by {witness}, whose neighbour is no member"
    settled: set[int | None] = {None}  # who follows neighbours comes to a member that has none
    while more := {index for index, witness in witnesses.items() if witness.neighbour in settled} - settled:
        settled |= more
    circle = sorted(witnesses.keys() - settled)
    return f"members {circle} by each other" if circle else None


def kernels_of(outputs: Sequence[int], kernel: Sequence[Kernel]) -> tuple[Any, ...]:
    """What is equal for equal kernels of the same outputs."""
    return tuple((int(output), fingerprint(each)) for output, each in zip(outputs, kernel, strict=False))


@short
@dataclass(frozen=True, slots=True, eq=False)
class PolicyGap:
    """How far the closed loops of two policies are apart, for all f with ‖f_j‖ ≤ B_j.

    Attributes:
        push: a = sup_x ‖Σ_w^{-1/2}δ‖ per step, see `policy_gap`, (P, Q).
        horizon: T.
        ceiling: C.
        noise_std: σ for which the push was computed, (nx,); None if nothing is said of it.
        rkhs_norm: B_j likewise, (p,).
        kernels: of each output and its k_j likewise.
        reaction: |∂p/∂u| of the known part likewise, (nx, nu).
        pinned: the classes of π and of π′ likewise.
    """

    push: Tensor
    horizon: int
    ceiling: float
    noise_std: Tensor | None = None
    rkhs_norm: Tensor | None = None
    kernels: tuple[Any, ...] | None = None
    reaction: Tensor | None = None
    pinned: tuple[Pinned, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "push", _require.floats("PolicyGap", "push", self.push))
        _require.count("PolicyGap", "horizon", self.horizon)
        _require.positive_number("PolicyGap", "ceiling", self.ceiling)
        for name in ("noise_std", "rkhs_norm"):
            value = getattr(self, name)
            if value is not None and len(value):  # no norms where nothing is learned
                _require.nonnegative("PolicyGap", name, value)

    @property
    def distance(self) -> Tensor:
        """D ≥ |J_c(π, f) − J_c(π′, f)| whatever the costs are, (P, Q), at most T·C."""
        table = drift_gap(self.push.unsqueeze(-1).expand(*self.push.shape, self.horizon), self.ceiling)
        return table.clamp_max(self.horizon * self.ceiling)

    def __getitem__(self, index: Tensor) -> PolicyGap:
        """Rows."""
        return replace(self, push=self.push[index])

    def upper(self, value: Tensor) -> Tensor:
        """≥ J_c(π_j, f) for all f with J_c(π_i, f) ≤ value_i, (P,) → (P, Q): the smaller of value + D and TC·Φ(Φ⁻¹(value/TC) +
        a√(T−1)) (theory §4.2); inf where value is no number ≥ 0.
        """
        value = _require.floats("PolicyGap.upper", "value", value).unsqueeze(-1)
        total = self.horizon * self.ceiling
        moved = torch.minimum(value + self.distance, drifted(value, self.push * math.sqrt(self.horizon - 1), total))
        return torch.where((value >= 0) & (self.push >= 0), moved, torch.inf)


def through(value: Tensor, distance: Tensor | PolicyGap) -> Tensor:
    """value_i + D_ij, (m, num), or `PolicyGap.upper`; inf for a pair whose value or distance is no number ≥ 0: not admitted."""
    if isinstance(distance, PolicyGap):
        return distance.upper(value)
    value, distance = (_require.floats("through", "value, distance", given) for given in (value, distance))
    total = value.unsqueeze(-1) + distance
    return torch.where((value >= 0).unsqueeze(-1) & (distance >= 0), total, torch.inf)


def _check_distance(where: str, distance: Tensor, num: int) -> None:
    """D: (num, num), no entry negative (inf and NaN say that nothing is known: see `through`)."""
    _require.shape(where, "distance", distance, (num, num))
    if bool((distance < 0).any()):
        raise _require.fail(where, "distance >= 0", f"{int((distance < 0).sum())} negative entries")


def policy_distance(
    policies: AffinePolicies | FeaturePolicies,
    known: KnownPart,
    kernel: Sequence[Kernel],
    *,
    rkhs_norm: Tensor,
    outputs: Sequence[int],
    noise_std: Tensor,
    horizon: int,
    ceiling: float,
    others: AffinePolicies | FeaturePolicies | None = None,
) -> Tensor:
    """D(π, π′) of `policy_gap`: (P, P), symmetric, zero diagonal, at most T·C; with `others` (Q policies): (P, Q)."""
    return policy_gap(
        policies, known, kernel, rkhs_norm=rkhs_norm, outputs=outputs, noise_std=noise_std, horizon=horizon,
        ceiling=ceiling, others=others,
    ).distance  # fmt: skip


def policy_gap(
    policies: AffinePolicies | FeaturePolicies,
    known: KnownPart,
    kernel: Sequence[Kernel],
    *,
    rkhs_norm: Tensor,
    outputs: Sequence[int],
    noise_std: Tensor,
    horizon: int,
    ceiling: float,
    others: AffinePolicies | FeaturePolicies | None = None,
) -> PolicyGap:
    """How far apart π and π′ are for state costs, all f = known + residual with ‖residual_j‖ ≤ B_j.

    At one state the next means differ by at most δ_i = |∂p_i/∂u|·|Δu| + B_i d_k: *both* the known mean and the residual change
    with the input, so both enter (theory §4.2; the second alone is right for a zero known mean). The supremum over
    all states is that of `parametric.input_gap` or of `FeaturePolicies.input_change`. d_k must depend on Δu alone, as it does
    for sums of RBF, Matérn and linear kernels (others are refused); p must be affine in u with a constant input matrix
    (Hessian bound zero in every entry that involves u). Seen as a push of one loop, `gpsafe.cost.drift` says what it does.

    Returns:
        of (P, P) pairs; with `others` (Q policies): (P, Q).
    """
    where = "policy_distance"
    noise_std = _require.positive(where, "noise_std", noise_std)
    nx, nu = noise_std.numel(), policies.input_box.dim
    outputs = _require.positions(where, "outputs", outputs, nx) if len(outputs) else ()
    if len(kernel) != len(outputs):
        raise _require.fail(where, f"{len(outputs)} kernels, one per output", len(kernel))
    norm = _require.nonnegative(where, "rkhs_norm", rkhs_norm) if outputs else torch.zeros(0, dtype=torch.float64)
    _require.shape(where, "rkhs_norm", norm, (len(outputs),))
    if bool((known.hessian_bound[:, :, nx:] != 0).any()):
        raise _require.fail(
            "policy_distance", "a known part affine in u with a constant input matrix", "curvature in u"
        )
    matrix = input_matrix(known, nx, nu).abs()
    classes = (policies,) if others is None else (policies, others)
    change = _input_change(classes[0], classes[-1])  # (P, Q, nu)
    shift = change @ matrix.T
    step = torch.cat([torch.zeros(*change.shape[:-1], nx, dtype=torch.float64), change], dim=-1)
    for j, output in enumerate(outputs):
        sup = kernels.metric_over_box(kernel[j], step)
        if sup is None:
            expected = "kernels whose metric depends on z − z′ (sums of RBF, Matérn and linear kernels)"
            raise _require.fail("policy_distance", expected, kernels.describe(kernel[j]))
        shift[..., output] += norm[j] * sup
    about = noise_std.clone(), norm.clone(), kernels_of(outputs, kernel), matrix
    pinned = tuple(pinned_policies(each, torch.zeros_like(noise_std)) for each in classes)
    return PolicyGap(push(shift, noise_std), horizon, ceiling, *about, pinned)


def _input_change(policies: AffinePolicies | FeaturePolicies, others: AffinePolicies | FeaturePolicies) -> Tensor:
    if isinstance(policies, AffinePolicies) and isinstance(others, AffinePolicies):
        return input_gap(policies, others)
    if isinstance(policies, FeaturePolicies) and isinstance(others, FeaturePolicies):
        return policies.input_change(others)
    raise _require.fail("policy_distance", "two classes of one kind", f"{type(policies)} and {type(others)}")


def reachable(
    initial: Sequence[int] | Tensor | slice,
    true_cost: Tensor,
    distance: Tensor,
    *,
    budget: float,
    epsilon: float,
    rounds: int | None = None,
) -> set[int]:
    """R_ε^H(S_0): H rounds of S ∪ {π : ∃π′ ∈ S, J_c(π′, f*) + D(π, π′) ≤ d − ε} (until it stops growing if None).

    Args:
        true_cost: J_c(π, f*) or an upper bound of it (which makes the set smaller), (P,).
    """
    where, true_cost = "reachable", _require.floats("reachable", "true_cost", true_cost)
    num, distance = len(true_cost), _require.floats(where, "distance", distance)
    _check_distance(where, distance, num)
    epsilon = _require.number(where, "epsilon", epsilon, minimum=0.0)
    budget = _require.number(where, "budget", budget, minimum=0.0)
    current = set(_require.indices(where, "initial", initial, num))
    if not current:
        raise _require.fail(where, "a non-empty initial set", initial)
    for _ in range(num if rounds is None else _require.index(where, "rounds", rounds)):
        members = torch.tensor(sorted(current))
        value = through(true_cost[members], distance[members]).min(0).values
        grown = current | set(torch.nonzero(value <= budget - epsilon).flatten().tolist())
        if grown == current:
            break
        current = grown
    return current
