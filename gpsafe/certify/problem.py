"""The certification problem of X-MPSC (paper eq. 8, xmpsc.md §1): what is to be shown, and what a proposer hands in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._lent import lent
from gpsafe._show import short
from gpsafe.assumptions import Assumption, Believed, listed
from gpsafe.sets.polytope import Polytope
from gpsafe.tube.core import MODES, Mode, Tube, TubeModel, gains, propagate


@short
@dataclass(frozen=True, slots=True, eq=False)
class Margins:
    """Offset minus support of every constraint row, in the units of the row; ≥ 0 is satisfied.

    Attributes:
        state: stages 1 … T, (*b, M, T, mx).
        input: stages 0 … T−1, (*b, M, T, mu).
        terminal: stage T, (*b, M, mt).
        certainty: stages 1 … T, (*b, M, T, 2nx), level − (x̄_m − c) and level + (x̄_m − c); (*b, M, T, 0) without levels.
    """

    state: Tensor
    input: Tensor
    terminal: Tensor
    certainty: Tensor

    @property
    def rows(self) -> Tensor:
        """All of them, member by member: stages of states, of inputs, the terminal set, certainty, (*b, M, R)."""
        parts = (self.state.flatten(-2), self.input.flatten(-2), self.terminal, self.certainty.flatten(-2))
        return torch.cat(parts, dim=-1)


@short
@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class CertificationProblem:
    """min (u_L − ū_0)ᵀ weight (u_L − ū_0) over ū_0 … ū_{T−1} such that, for every member's tube from x_0,

        state_support ≤ states at stages 1 … T,   input_support ≤ inputs at 0 … T−1,   last ellipsoid ⊆ terminal,

    and, as an option, |x̄_k − c_k| ≤ certainty_k at stages 1 … T, c_k the mean of the members' x̄_k: members may not disagree
    on where a plan leads by more than is usual (`gpsafe.certify.certainty`). Such a row is no part of what a certificate
    promises: it only refuses plans, against an optimiser that seeks out where the model happens to be wrong.

    Constructing checks what a certificate depends on and keeps its own copies of gain and weight; `check` also solves the small
    linear programs that tell bounded and non-empty sets.

    Args:
        model: gives tubes and the mode.
        states: X, rows on x. Must be bounded.
        inputs: U, rows on u. Must be bounded.
        terminal: X_f, rows on x; may leave dimensions free.
        gain: K, (nu, nx) or (T, nu, nx).
        steps: T ≥ 1 transitions (the published "horizon N" counts states: T = N − 1); not more than those over which the model
            counts its noise events, where it does.
        weight: (nu, nu), symmetric positive definite; identity if None.
        tolerance: excess of a row that still counts as satisfied, in its units; the certificate states it.
        assumptions: listed in every certificate, beside the model's (for example about the terminal set).
        certainty: levels (T, nx) > 0 of disagreement, in units of x; none if None.
    """

    model: TubeModel
    states: Polytope
    inputs: Polytope
    terminal: Polytope
    gain: Tensor
    steps: int
    weight: Tensor | None = None
    tolerance: float = 0.0
    assumptions: tuple[str, ...] = ()
    certainty: Tensor | None = None

    @property
    def believed(self) -> tuple[Believed, ...]:
        """What a certificate for this problem rests on: the model's assumptions, exact state and input, the user's own."""
        return listed(self.model.assumptions, Assumption.EXACT_STATE(), Assumption.EXACT_INPUT(), self.assumptions)

    def __post_init__(self) -> None:
        where, model = "CertificationProblem", self.model
        _require.one_of(where, "mode of the model", model.mode, MODES)
        for name in ("nx", "nu", "num_members"):
            _require.index(where, f"{name} of the model", getattr(model, name), minimum=1)
        nx, nu = model.nx, model.nu
        steps = _require.count(where, "steps", self.steps)
        counted = getattr(model, "steps", None)
        if model.mode == "sound" and counted is not None and counted < steps:
            raise _require.fail(where, f"steps <= {counted}, over which the model counts its noise", steps)
        for name, dim in (("states", nx), ("inputs", nu), ("terminal", nx)):
            polytope = getattr(self, name)
            if not isinstance(polytope, Polytope):
                raise _require.fail(where, f"a Polytope of {name}", type(polytope).__name__)
            _require.last_dim(where, f"{name}.H", polytope.H, dim)
        gain = _require.real(where, "gain", self.gain)
        gains(gain, steps, nx, nu)
        weight = None if self.weight is None else _require.real(where, "weight", self.weight)
        if weight is not None:
            _require.shape(where, "weight", weight, (nu, nu))
            if not bool((weight == weight.mT).all()) or not bool(torch.linalg.eigvalsh(weight).min() > 0):
                raise _require.fail(where, "a symmetric positive definite weight", weight.tolist())
        levels = None if self.certainty is None else _require.finite(where, "certainty", self.certainty)
        if levels is not None:
            _require.shape(where, "certainty", levels, (steps, nx))
            if not bool((levels > 0).all()):
                raise _require.fail(where, "positive levels of certainty", float(levels.min()))
        for name, value in (
            ("gain", gain),
            ("weight", weight),
            ("certainty", levels),
            ("tolerance", _require.number(where, "tolerance", self.tolerance, minimum=0.0)),
            ("assumptions", _require.listing(where, "assumptions", self.assumptions)),
        ):
            object.__setattr__(self, name, value)

    @property
    def mode(self) -> Mode:
        """The model's."""
        return self.model.mode

    @property
    def nx(self) -> int:
        """State dimension."""
        return self.model.nx

    @property
    def nu(self) -> int:
        """Input dimension."""
        return self.model.nu

    @property
    def num_members(self) -> int:
        """M."""
        return self.model.num_members

    def check(self) -> Self:
        """Refuses sets that make every plan, or none, admissible: an empty or unbounded X or U, an X_f that misses X.

        Raises:
            ValueError: naming the set.
        """
        for name, polytope in (("states", self.states), ("inputs", self.inputs)):
            if polytope.is_empty():
                raise _require.fail("CertificationProblem", f"a non-empty polytope of {name}", "an empty one")
            if not polytope.is_bounded():
                raise _require.fail("CertificationProblem", f"a bounded polytope of {name}", "an unbounded one")
        if self.terminal.is_empty():
            raise _require.fail("CertificationProblem", "a non-empty terminal polytope", "an empty one")
        if self.terminal.intersect(self.states).is_empty():
            raise _require.fail("CertificationProblem", "a terminal polytope that meets the states", "a disjoint one")
        return self

    def lent(self) -> CertificationProblem:
        """A deep copy for those who are not believed: whatever they write on, the original stays. The same one every time.

        Raises:
            ValueError: if the model cannot be copied.
        """
        return lent("CertificationProblem", self)

    def asks_as(self, other: CertificationProblem) -> bool:
        """Whether states, inputs and terminal set are those of the other: a plan certified for one then serves the other."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("states", "inputs", "terminal"))
        return self is other or all(torch.equal(a.H, b.H) and torch.equal(a.h, b.h) for a, b in pairs)

    def distance(self, learned: Tensor, action: Tensor) -> Tensor:
        """The objective, (*b,) for u_L and ū_0 (*b, nu)."""
        gap = learned - action
        return gap.square().sum(-1) if self.weight is None else (gap * (gap @ self.weight.to(gap.device))).sum(-1)

    def tube(self, x0: Tensor, inputs: Tensor, path: Tensor | None = None) -> Tube:
        """Of plans (*b, T, nu) from x_0; a claimed nominal path (*b, M, T+1, nx) saves time, see `propagate`."""
        return propagate(self.model, x0, inputs, self.gain, path)

    def margins(self, tube: Tube) -> Margins:
        """Of a tube; differentiable where the tube is."""
        both = tube.state_support(torch.cat([self.states.H, self.terminal.H]))
        reach, last = both[..., 1:, : self.states.rows], both[..., -1, self.states.rows :]
        sure = tube.center[..., 1:, :0]
        if self.certainty is not None:
            apart = (tube.center - tube.reference.unsqueeze(-3))[..., 1:, :]
            sure = torch.cat([self.certainty - apart, self.certainty + apart], dim=-1)
        pushed = tube.input_support(self.inputs.H)
        return Margins(self.states.h - reach, self.inputs.h - pushed, self.terminal.h - last, sure)


@short
@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """A plan by someone who is not believed: only `inputs` counts, the rest is information or checked.

    Attributes:
        inputs: ū, (T, nu).
        status: in the solver's words.
        iterations: of the solver.
        seconds: it took.
        proposer: name.
        slack: the largest violation the solver believes to have, ≤ 0 if it believes to be feasible.
        reason: why there is no better one, in words, if the solver can say.
        path: nominal states of all members under the plan, (M, T+1, nx), as the solver has them: a claim, which saves the judge
            time where it is right (`gpsafe.tube.core.propagate`).
        given_up: the proposer found no plan, these inputs violate least: a filter refuses them without a judgement, which would
            take as long as one of a plan.
    """

    inputs: Tensor
    status: str
    iterations: int
    seconds: float
    proposer: str
    slack: float
    reason: str = ""
    path: Tensor | None = None
    given_up: bool = False


class Proposer(Protocol):
    """Searches a plan. Whatever it returns or raises, nothing more than its plan is lost (`gpsafe.safety.filter`).

    It may also have `prepare(problem)`, called at the start of an episode: what raises there reaches the user.
    """

    def propose(
        self, problem: CertificationProblem, x0: Tensor, learned: Tensor, *, warm: Tensor | None = None
    ) -> Proposal:
        """A plan from x_0 (nx,) close to u_L (nu,), started from `warm` (T, nu) if given.

        Never raises on numeric failure: the least-violating plan found is returned.
        """
        ...
