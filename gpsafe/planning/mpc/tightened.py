"""Plans for sound tubes of ensembles by the compiled search, without differentiating what makes them sound."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

from torch import Tensor

from gpsafe import _require
from gpsafe.certify.judge import judge
from gpsafe.certify.problem import CertificationProblem, Proposal
from gpsafe.planning.mpc.fast import CondensedSQP
from gpsafe.sets.polytope import Polytope
from gpsafe.tube.ensemble import EnsembleTube


@dataclass(frozen=True, slots=True)
class Tightened:
    """Proposer for `EnsembleTube` in sound mode: the search sees the published recursion with the sound radius.

    Its rows are then tightened by what the sound tube of the found plan reaches further (or loosened by what it reaches less),
    and it searches again. Remainders of network ensembles are interval bounds over cells: differentiating them numerically
    takes a hundred times as long. Not finding a plan does not show that there is none.

    Attributes:
        rounds: searches at most.
        search: see `CondensedSQP`.
    """

    rounds: int = 4
    search: CondensedSQP = field(default_factory=CondensedSQP)

    def __post_init__(self) -> None:
        _require.count("Tightened", "rounds", self.rounds)

    def propose(
        self, problem: CertificationProblem, x0: Tensor, learned: Tensor, *, warm: Tensor | None = None
    ) -> Proposal:
        """See `Proposer`.

        Raises:
            ValueError: if the problem's model is no `EnsembleTube`.
        """
        model = problem.model
        if not isinstance(model, EnsembleTube):
            raise _require.fail("Tightened.propose", "a problem of an EnsembleTube", type(model).__name__)
        if problem not in _PLAIN:
            _PLAIN[problem] = replace(problem, model=replace(model, mode="paper"))
        plain = _PLAIN[problem]
        proposal = self.search.propose(plain, x0, learned, warm=warm)
        for again in range(self.rounds - 1):
            found = judge(problem, x0, learned, proposal).margins
            if found is None or (again and proposal.status == "infeasible"):
                break
            groups = (found.state, found.input, found.terminal, found.certainty)
            if min(float(m.min()) for m in groups if m.numel()) >= -problem.tolerance:
                break
            believed = plain.margins(plain.tube(x0, proposal.inputs))
            stricter = replace(
                plain,
                states=_less(problem.states, believed.state - found.state),
                inputs=_less(problem.inputs, believed.input - found.input),
                terminal=_less(problem.terminal, believed.terminal - found.terminal),
                certainty=_lower(problem.certainty, believed.certainty - found.certainty),
            )
            proposal = self.search.propose(stricter, x0, learned, warm=proposal.inputs)
        return replace(proposal, given_up=False)  # by rows that are not the problem's


_PLAIN: WeakKeyDictionary[CertificationProblem, CertificationProblem] = WeakKeyDictionary()  # one: its arrays are kept


def _less(polytope: Polytope, by: Tensor) -> Polytope:
    """Rows moved inwards by the largest of `by` (*b, k)."""
    return Polytope(polytope.H, polytope.h - by.reshape(-1, polytope.rows).amax(0))


def _lower(levels: Tensor | None, by: Tensor) -> Tensor | None:
    """Levels (T, nx), if there are any, lowered by the largest of `by` (M, T, 2nx), but kept positive."""
    if levels is None:
        return None
    return (levels - by.amax(0).unflatten(-1, (2, -1)).amax(-2)).maximum(1e-3 * levels)
