"""What happens downstream: the bars of any model, recalibrated or not, in ActSafe's set of policies and in X-MPSC's tubes.

What the bars of a model claim, and at which scales, is said in `gpsafe.calibration.bars`.

None of this is a certificate: but for *theory* with a true norm no claim holds everywhere at once, which is what both
algorithms believe. It is where that is held against the true plant, on the same rows, noise and proposals for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from gpsafe._show import short
from gpsafe.assumptions import Assumption, Believed, listed
from gpsafe.calibration.bars import Bars
from gpsafe.comparison import Contest, PolicySet
from gpsafe.comparison.guards import Tubed
from gpsafe.cost.enclosure import Enclosure
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.data import Transitions
from gpsafe.models import DynamicsModel
from gpsafe.policies import AffinePolicies, selected
from gpsafe.policies.rollout import closed_loop, transitions
from gpsafe.safety.flight import fly
from gpsafe.safety.safe_set import SafePolicySet
from gpsafe.systems.base import is_violation, sample_noise
from gpsafe.systems.rkhs_twin import RKHSTwin
from gpsafe.tube.core import Linearisation, Mode

Row = dict[str, Any]


# ------------------------------------------------------------------------------------------- ActSafe, robust program
def tightened(enclosure: Enclosure, claimed: Bars, system: RKHSTwin) -> Enclosure:
    """The claims on f* at the cells of a robust program, cut to ±B√k, which is true of the plant.

    Only the newest: claims that are no theorem need not intersect.
    """
    x, u = enclosure.z[..., : system.nx], enclosure.z[..., system.nx :]
    chosen, known = list(system.outputs), system.known(x, u)
    cap = enclosure.cap
    low, high = ((end - known)[..., chosen].clamp(-cap, cap) for end in claimed.of_function(x, u))
    return replace(enclosure, low=low, high=high)


@short
@dataclass(frozen=True, slots=True, eq=False)
class Exploration:
    """What ActSafe did on somebody's claims.

    Attributes:
        safe: S_n at the end.
        executed: policies, in order.
        violating: episodes with a cost.
        escaped: whether f* left the claims at a probe in some episode.
        data: all transitions.
    """

    safe: SafePolicySet
    executed: tuple[int, ...]
    violating: int
    escaped: bool
    data: Transitions


def explore(
    system: RKHSTwin,
    policies: AffinePolicies,
    program: RobustDP,
    enclosure: Enclosure,
    given: Sequence[int],
    claims: Callable[[Transitions, int], Bars],
    probe: Tensor,
    *,
    episodes: int,
    generator: torch.Generator,
    first: int = 4,
) -> Exploration:
    """ActSafe's expansion phase with the claims of any model in place of F_n.

    S_n takes in the policies whose robust cost over the claims is at most d; flown is the member of which the claims promise
    most uncertainty.

    Args:
        system: the true plant, whose kernel and B bound f* within a cell of the program.
        policies: the class.
        program: the robust program.
        enclosure: of the program for these policies, before data.
        given: S_0.
        claims: of all transitions so far and the number of the episode.
        probe: points z (n, d) at which f* is looked up in the claims.
        episodes: to fly.
        generator: of the noise: the same for all whose executed policies are the same.
        first: episodes with policies of S_0 before the first claim.
    """

    def episode(index: int) -> tuple[Transitions, int]:
        noise = sample_noise(system.noise_std, (system.horizon, 1, 1), generator)
        one = selected(policies, torch.tensor([index]), system.initial_state)
        states, inputs = closed_loop(system.mean, one, system.initial_state, noise)
        return transitions(states[0, 0], inputs[0, 0]), int(is_violation(system.cost(states[0, 0, :-1])).any())

    data, _ = episode(given[0])
    for i in range(1, first):
        data = data + episode(given[i % len(given)])[0]
    safe = SafePolicySet.initial(policies.num, given, budget=system.budget)
    executed, violating, escaped = [], 0, False
    chosen_outputs = list(system.outputs)
    for number in range(1, episodes + 1):
        claimed = claims(data, number)
        escaped |= bool(claimed.misses(system.mean, probe[:, : system.nx], probe[:, system.nx :]).any())
        inside = tightened(enclosure, claimed, system)
        safe = safe.expand(program.upper(inside), episode=number, bound=claimed.scale)
        members = inside.select(safe.members)
        x, u = members.z[..., : system.nx], members.z[..., system.nx :]
        std = claimed.model.predict(x, u).std[..., chosen_outputs]
        index = int(safe.members[program.exploration(members, std.norm(dim=-1)).argmax()])
        seen, violated = episode(index)
        executed.append(index)
        violating += violated
        data = data + seen
    return Exploration(safe, tuple(executed), violating, escaped, data)


# -------------------------------------------------------------------------------------- ActSafe, particles of any plant
def worst_cost(contest: Contest, policies: AffinePolicies, claimed: Bars, *, paths: int = 4, signs: int = 4) -> Tensor:
    """max over η of the mean cost of particles x⁺ = c + ηh + w, (P,): [c − h, c + h] claimed of f*, η ∈ {±1}^nx kept for the
    whole episode, w the plant's noise.

    Hallucinated pessimism (`gpsafe.cost.Hallucinated`) for any model: a lower estimate of the worst case, as in published code.
    """
    plant, outputs = contest.plant, list(contest.outputs)
    corners = torch.tensor(list(product((1.0, -1.0), repeat=len(outputs))), dtype=torch.float64)
    if len(corners) > signs:
        corners = corners[torch.randperm(len(corners), generator=contest.generator(11))[:signs]]
    eta = torch.zeros(len(corners), plant.nx, dtype=torch.float64)
    eta[:, outputs] = corners
    eta = eta.repeat_interleave(paths, 0)
    noise = sample_noise(plant.noise_std, (plant.horizon, 1, paths), contest.generator(12)).repeat(
        1, 1, len(corners), 1
    )
    x = plant.initial_state.expand(policies.num, len(eta), plant.nx)
    total = torch.zeros(x.shape[:-1], dtype=torch.float64)
    for t in range(plant.horizon):
        total = total + plant.cost(x)
        low, high = claimed.of_function(x, policies(x))
        x = 0.5 * (low + high) + 0.5 * eta * (high - low) + noise[t]
    return torch.nan_to_num(total, nan=torch.inf).unflatten(1, (len(corners), paths)).mean(-1).amax(-1)


def policy_set(contest: Contest, claimed: Bars, *, count: int = 7, unsafe: Tensor | None = None) -> Row:
    """One expansion of S_n over the contest's class of policies, judged by the true plant.

    Args:
        contest: the plant.
        claimed: the claims.
        count: the class has count² policies.
        unsafe: which of them are (`PolicySet.unsafe`), (P,), where it was computed before.
    """
    whole = PolicySet.create(contest, count=count)
    safe = ~(whole.unsafe() if unsafe is None else unsafe)
    member = whole.member | (worst_cost(contest, whole.policies, claimed) <= contest.budget)
    return {
        "size": int(member.sum()), "safe_members": int((member & safe).sum()), "unsafe_members": int((member & ~safe).sum()),
        "true_safe": int(safe.sum()), "true_unsafe": int((~safe).sum()), "policies": len(safe),
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------- X-MPSC's tubes
@short
@dataclass(frozen=True, slots=True, eq=False)
class BarsTube:
    """The claims on the next state as a tube model of one member, in paper mode: W = diag(half-width²) about the middle.

    The published tube (`EnsembleTube.paper`, `GPTube` in paper mode) is that of one standard deviation. Jacobians of the
    middle by central differences, for any model.
    """

    claimed: Bars
    step: float = 1e-5

    @property
    def nx(self) -> int:
        """State dimension."""
        return self.claimed.model.nx

    @property
    def nu(self) -> int:
        """Input dimension."""
        return self.claimed.model.nu

    @property
    def num_members(self) -> int:
        """1."""
        return 1

    @property
    def mode(self) -> Mode:
        """Paper: nothing is proved."""
        return "paper"

    @property
    def assumptions(self) -> tuple[Believed, ...]:
        """That the tube contains anything, and what the claims rest on."""
        return listed(Assumption.PAPER_TUBE(), self.claimed.assumptions)

    def mean(self, x: Tensor, u: Tensor) -> Tensor:
        """The middle of the claim on the next state."""
        low, high = self.claimed.of_state(x, u.expand(*x.shape[:-1], self.nu))
        return 0.5 * (low + high)

    def linearise(self, x: Tensor, u: Tensor) -> Linearisation:
        """See `TubeModel`; without a graph."""
        with torch.no_grad():
            z = torch.cat([x, u.expand(*x.shape[:-1], self.nu)], dim=-1)
            moves = self.step * torch.eye(z.shape[-1], dtype=torch.float64)
            moves = torch.cat([torch.zeros_like(moves[:1]), moves, -moves])  # (1 + 2 nz, nz)
            around = z.unsqueeze(-2) + moves
            low, high = self.claimed.of_state(around[..., : self.nx], around[..., self.nx :])
            middle, half = 0.5 * (low + high), 0.5 * (high - low)[..., 0, :]
            ahead, behind = middle[..., 1:, :].chunk(2, dim=-2)
            slope = ((ahead - behind) / (2 * self.step)).mT
        return Linearisation(middle[..., 0, :], slope[..., : self.nx], slope[..., self.nx :], half.square())

    def remainder(self, x: Tensor, u: Tensor, factor: Tensor, gain: Tensor) -> Tensor:
        """0, as published."""
        return torch.zeros_like(x)


@short
@dataclass(frozen=True, slots=True, eq=False)
class BarsBelief:
    """A contestant's belief that does not learn any more: what is compared is what these claims do, on the same rows."""

    claimed: Bars

    @property
    def dynamics(self) -> DynamicsModel:
        """To plan with."""
        return self.claimed.model

    @property
    def certified(self) -> BarsTube:
        """To certify with."""
        return BarsTube(self.claimed)

    @property
    def apart(self) -> None:
        """None: the claims are made."""
        return None

    def told(self, episodes: object) -> BarsBelief:
        """Itself."""
        return self

    def outside(self, contest: Contest, x: Tensor, u: Tensor) -> dict[str, tuple[int, int]]:
        """Where f* is outside the claim on it."""
        return {"f* in the bars": (int(self.claimed.misses(contest.plant.mean, x, u).sum()), len(x))}


def against(contest: Contest) -> Callable[[Tensor], Tensor]:
    """x ↦ the corner of the inputs that lies away from the safe controller's input."""
    box = contest.plant.input_box

    def push(x: Tensor) -> Tensor:
        return torch.where(contest.plant.backup(x) > box.center, box.lower, box.upper)

    return push


def filtered(contest: Contest, claimed: Bars | None, *, episodes: int = 1, pairs: int = 30) -> list[Row]:
    """Flights behind X-MPSC's filter with the claims as its tubes, or behind none; a row an episode, and one of what is let
    through.

    Half of the episodes propose uniform inputs, half `against` the safe controller. The noise, proposals and pairs are those of
    the contest's seed, the same for all.

    Args:
        contest: the plant.
        claimed: the claims; None: no filter.
        episodes: of each kind.
        pairs: recoverable states with inputs, of which it is known whether the next state is recoverable.
    """
    plant, rows = contest.plant, []
    guard = None if claimed is None else Tubed.create(contest, BarsBelief(claimed), "paper")
    push = against(contest)
    for proposed in ("uniform", "against"):
        for number in range(episodes):

            def propose(x: Tensor, generator: torch.Generator, kind: str = proposed) -> Tensor:
                drawn = plant.input_box.sample(1, generator)[0]
                return drawn if kind == "uniform" else push(x)

            generator = contest.generator(13, number)
            flight = fly(
                plant, None if guard is None else guard.fresh, propose, steps=plant.horizon, generator=generator
            )
            rows.append({"proposed": proposed, "episode": number, **flight.row()})
    if guard is not None:
        x, u, good = contest.pairs(pairs)
        passed = []
        for state, asked in zip(x, u, strict=True):
            guard.start(state)
            passed.append(guard.decide(state, asked).passed)
        let = torch.tensor(passed, dtype=torch.bool)
        rows.append(
            {
                "proposed": "pairs", "accepted_of_safe": int((let & good).sum()), "safe_pairs": int(good.sum()),
                "accepted_of_unsafe": int((let & ~good).sum()), "unsafe_pairs": int((~good).sum()),
            }
        )  # fmt: skip
    return rows
