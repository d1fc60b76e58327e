"""The certification problem of X-MPSC (paper eq. 8, xmpsc.md §1): what is to be shown, and what a proposer hands in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.assumptions import Assumption, Believed, listed
from gpsafe.sets.polytope import Polytope
from gpsafe.tube.core import Mode, Tube, TubeModel, gains, propagate


@dataclass(frozen=True, slots=True, eq=False)
class Margins:
    """Offset minus support of every constraint row, in the units of the row; ≥ 0 is satisfied.

    Attributes:
        state: stages 1 … T, (*b, M, T, mx).
        input: stages 0 … T−1, (*b, M, T, mu).
        terminal: stage T, (*b, M, mt).
    """

    state: Tensor
    input: Tensor
    terminal: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class CertificationProblem:
    """min (u_L − ū_0)ᵀ weight (u_L − ū_0) over ū_0 … ū_{T−1} such that, for every member's tube from x_0,

        state_support ≤ states at stages 1 … T,   input_support ≤ inputs at 0 … T−1,   last ellipsoid ⊆ terminal.

    Constructing checks shapes; `check` also solves the small linear programs that tell bounded and non-empty sets.

    Args:
        model: gives tubes and the mode.
        states: X, rows on x. Must be bounded.
        inputs: U, rows on u. Must be bounded.
        terminal: X_f, rows on x; may leave dimensions free.
        gain: K, (nu, nx) or (T, nu, nx).
        steps: T ≥ 1 transitions (the published "horizon N" counts states: T = N − 1).
        weight: (nu, nu), symmetric positive definite; identity if None.
        tolerance: excess of a row that still counts as satisfied, in its units; the certificate states it.
        assumptions: listed in every certificate, beside the model's (for example about the terminal set).
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

    @property
    def believed(self) -> tuple[Believed, ...]:
        """What a certificate for this problem rests on: the model's assumptions, exact state and input, the user's own."""
        return listed(self.model.assumptions, Assumption.EXACT_STATE(), Assumption.EXACT_INPUT(), self.assumptions)

    def __post_init__(self) -> None:
        where, nx, nu = "CertificationProblem", self.model.nx, self.model.nu
        _require.count(where, "steps", self.steps)
        for name, dim in (("states", nx), ("inputs", nu), ("terminal", nx)):
            _require.last_dim(where, f"{name}.H", getattr(self, name).H, dim)
        gains(self.gain, self.steps, nx, nu)
        _require.nonnegative(where, "tolerance", self.tolerance)
        if self.weight is not None:
            weight = _require.shape(where, "weight", _require.finite(where, "weight", self.weight), (nu, nu))
            if not bool((weight == weight.mT).all()) or not bool(torch.linalg.eigvalsh(weight).min() > 0):
                raise _require.fail(where, "a symmetric positive definite weight", weight.tolist())

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

    def distance(self, learned: Tensor, action: Tensor) -> Tensor:
        """The objective, (*b,) for u_L and ū_0 (*b, nu)."""
        gap = learned - action
        return gap.square().sum(-1) if self.weight is None else (gap * (gap @ self.weight.to(gap.device))).sum(-1)

    def tube(self, x0: Tensor, inputs: Tensor) -> Tube:
        """Of plans (*b, T, nu) from x_0."""
        return propagate(self.model, x0, inputs, self.gain)

    def margins(self, tube: Tube) -> Margins:
        """Of a tube; differentiable where the tube is."""
        reach = tube.state_support(self.states.H)[..., 1:, :]
        last = tube.center[..., -1, :] @ self.terminal.H.mT + (self.terminal.H @ tube.factor[..., -1, :, :]).norm(
            dim=-1
        )
        return Margins(self.states.h - reach, self.inputs.h - tube.input_support(self.inputs.H), self.terminal.h - last)


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """A plan by someone who is not believed: only `inputs` counts, the rest is information.

    Attributes:
        inputs: ū, (T, nu).
        status: in the solver's words.
        iterations: of the solver.
        seconds: it took.
        proposer: name.
        slack: the largest violation the solver believes to have, ≤ 0 if it believes to be feasible.
    """

    inputs: Tensor
    status: str
    iterations: int
    seconds: float
    proposer: str
    slack: float


class Proposer(Protocol):
    """Searches a plan."""

    def propose(
        self, problem: CertificationProblem, x0: Tensor, learned: Tensor, *, warm: Tensor | None = None
    ) -> Proposal:
        """A plan from x_0 (nx,) close to u_L (nu,), started from `warm` (T, nu) if given.

        Never raises on numeric failure: the least-violating plan found is returned.
        """
        ...
