"""The rollout value as a BoTorch acquisition function, and its constrained optimisation by BoTorch's own multi-start step."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from botorch.acquisition import AcquisitionFunction
from botorch.exceptions.warnings import OptimizationWarning
from botorch.generation import gen_candidates_scipy
from botorch.models.deterministic import GenericDeterministicModel
from torch import Tensor

from gpsafe import _require
from gpsafe.planning.search.problem import Problem, Proposals, check_starts, value_and_gradients


class RolloutAcquisition(AcquisitionFunction):
    """X (b, 1, d) in the unit cube ↦ objective (b,); `slack` is −constraint − margin.

    SLSQP asks for the objective, the constraint and both gradients at one point in separate calls: they come from one
    differentiated rollout, remembered for the last point.
    """

    def __init__(self, problem: Problem, margin: float = 0.0) -> None:
        super().__init__(GenericDeterministicModel(lambda x: x[..., :1]))  # BoTorch asks for a model; it is not used
        self.problem = problem
        self.margin = margin
        self.evaluations = 0
        self._last: tuple[Tensor, tuple[Tensor, ...]] | None = None

    def _expand(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Objective and constraint at x (b, d), with their values and first derivatives."""
        point = x.detach()
        if self._last is None or not torch.equal(self._last[0], point):
            self._last = (point.clone(), value_and_gradients(self.problem, point))
            self.evaluations += len(point)
        objective, constraint, up, out = self._last[1]
        step = x - point  # zero, but it carries the gradient
        return objective + (up * step).sum(-1), constraint + (out * step).sum(-1)

    def forward(self, X: Tensor) -> Tensor:
        """Objective at X (b, 1, d)."""
        return self._expand(X.squeeze(-2))[0]

    def slack(self, x: Tensor) -> Tensor:
        """−constraint − margin at one point (d,); ≥ 0 is feasible."""
        return -self._expand(x.unsqueeze(0))[1].squeeze(0) - self.margin


@dataclass(frozen=True, slots=True)
class BotorchSearch:
    """BoTorch's `gen_candidates_scipy` from every start: SLSQP with the nonlinear constraint on the unit cube.

    This is what `optimize_acqf` runs inside. `optimize_acqf` itself raises as soon as one end point is infeasible beyond a
    tolerance, which an SLSQP stopped early often is; here an infeasible end point is a proposal like any other (and its
    estimate says so). Infeasible starts are returned unchanged. SLSQP takes starts one after another, not as a batch.

    Args:
        iterations: of SLSQP per start. It leaves the feasible set on its way: stopped early it may end outside.
        margin: constraint ≤ −margin is asked for, more than the 1e-7 by which a converged SLSQP oversteps.
    """

    iterations: int = 12
    margin: float = 1e-3

    def __post_init__(self) -> None:
        _require.count("BotorchSearch", "iterations", self.iterations)
        _require.nonnegative("BotorchSearch", "margin", self.margin)

    def __call__(self, problem: Problem, starts: Tensor, generator: torch.Generator) -> Proposals:
        """See :class:`Search`. Deterministic: the generator is not used."""
        starts = check_starts("BotorchSearch", starts)
        with torch.no_grad():
            _, constraint = problem(starts)
        acquisition, points = RolloutAcquisition(problem, self.margin), starts.clone()
        for i in torch.nonzero(constraint <= 0).flatten().tolist():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", OptimizationWarning)  # an unfinished search still proposes
                found, _ = gen_candidates_scipy(
                    starts[i].reshape(1, 1, -1),
                    acquisition,
                    lower_bounds=0.0,
                    upper_bounds=1.0,
                    nonlinear_inequality_constraints=[(acquisition.slack, True)],
                    options={"maxiter": self.iterations},
                )
            points[i] = found.detach().reshape(-1).clamp(0.0, 1.0)
        with torch.no_grad():
            value, constraint = problem(points)
        return Proposals(points, value, constraint, acquisition.evaluations + 2 * len(starts))
