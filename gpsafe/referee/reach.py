"""How much can be certified with the claimed (k, B, R) and these rows, and why not the rest.

**States.** The box of (x, u) is cut into cells of a grid; a cell counts if |f − μ| ≤ ε for *all* of its points
(`gpsafe.confidence.regions`), ε a tenth of the half-width of the state box. Where it does not, the witness tells why: no row
is near (σ is more than half of what it was before any data), or β is too large for σ as it is (B, R or n).

**Policies.** Of a class, the user's or linear feedback about x_0 from the linearised mean, those whose expected cost stays
within the budget for every f of F_n, by tubes; `gpsafe.algorithms.explain` splits the excess of the rest.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.algorithms.explain import Explanation, explain_cost
from gpsafe.confidence import ConfidenceSet, regions
from gpsafe.cost.base import CostBound
from gpsafe.cost.gaussian_tube import GaussianTube
from gpsafe.cost.scenario_tube import ScenarioTube
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies, PolicyClass, selected
from gpsafe.sets import Box
from gpsafe.systems.base import HalfspaceCost
from gpsafe.systems.task import Task
from gpsafe.tube.gains import lqr_gain

CELLS = 256  # at most
ACCURACY = 0.1  # ε, share of the half-width of each state
PATHS = 2000  # at most
EXPLAINED = 3  # policies whose excess is split
SPREAD = (0.0, 0.25, -0.25, 0.5, -0.5)  # set-points, shares of the state box about x_0


@dataclass(frozen=True, slots=True)
class Region:
    """Cells of (x, u).

    Attributes:
        cells: how many.
        yes, undecided: proved accurate, and neither proved nor contradicted.
        far, loose: contradicted cells without a row near, and with β too large.
        epsilon: accuracy asked for, by state.
    """

    cells: int
    yes: int
    undecided: int
    far: int
    loose: int
    epsilon: tuple[float, ...]


def states(confidence: ConfidenceSet, box: Box) -> Region:
    """The grid of `box`, of (x, u)."""
    model = confidence.model
    per_axis = max(2, int(CELLS ** (1 / box.dim)))
    if per_axis**box.dim > 4096:
        raise _require.fail("reach.states", "at most 12 states and inputs", box.dim)
    edges = [torch.linspace(0, 1, per_axis + 1, dtype=torch.float64)[:-1]] * box.dim
    corner = torch.cartesian_prod(*edges).reshape(-1, box.dim)
    size = (box.upper - box.lower) / per_axis
    lower = box.lower + corner * (box.upper - box.lower)
    epsilon = ACCURACY * box.radius[list(model.outputs)]
    answer = regions.certified(confidence, (lower, lower + size), epsilon=epsilon)
    witness = torch.where(answer.no.unsqueeze(-1), answer.witness, lower)
    wide = model.posterior(witness)[1] > 0.5 * model.prior_variance(witness).sqrt()
    far = int((answer.no & wide.any(-1)).sum())
    return Region(
        len(lower), int(answer.yes.sum()), int(answer.undecided.sum()), far, int(answer.no.sum()) - far,
        tuple(epsilon.tolist()),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Policies:
    """A class of policies.

    Attributes:
        num: P.
        certified: how many.
        bound: name of the cost bound.
        origin: of the class, in words.
        upper: sup of the cost of each, (P,).
        causes: what stands in the way, counted over the explained ones.
        told: the explained ones.
        delta: of the sampled paths of `bound`; 0 where it samples none.
    """

    num: int
    certified: int
    bound: str
    origin: str
    upper: tuple[float, ...]
    causes: Counter[str]
    told: tuple[tuple[int, Explanation], ...]
    delta: float


def policies(
    confidence: ConfidenceSet,
    task: Task,
    inputs: Box,
    box: Box,
    *,
    given: PolicyClass | None = None,
    delta: float = 0.01,
) -> Policies:
    """Those that are certified, under scenario tubes.

    Args:
        inputs: limits of u.
        box: of the states.
        given: a class of one's own.
        delta: of the Monte-Carlo part.
    """
    origin = "the class given"
    if given is None:
        given, origin = about_start(confidence.model, task, inputs, box)
    bound = _bound(task, given.num, delta, 10 * float(box.radius.max()))
    upper = bound.evaluate(confidence, given).upper
    out = torch.nonzero(~(upper <= task.budget)).flatten()
    out = out[upper[out].argsort()]
    causes: Counter[str] = Counter()
    told = []
    for i in out[:EXPLAINED].tolist():
        kept = torch.nonzero(upper <= task.budget).flatten()
        members = selected(given, kept, task.initial_state) if len(out) < given.num else given
        policy = selected(given, torch.tensor([i]), task.initial_state)
        one = explain_cost(bound, confidence, policy, members, crowd=given.num)
        causes.update(one.causes)
        told.append((i, one))
    certified = given.num - len(out)
    sampled = delta if isinstance(bound, ScenarioTube) else 0.0
    return Policies(given.num, certified, bound.name, origin, tuple(upper.tolist()), causes, tuple(told), sampled)


def _bound(task: Task, crowd: int, delta: float, limit: float) -> CostBound:
    """Gaussian tubes for half-space costs; for others scenario tubes, with paths for half of the budget if `PATHS` do."""
    if isinstance(task.cost, HalfspaceCost):
        return GaussianTube(task=task, limit=limit)
    wanted = 2 * task.total_ceiling * math.log(crowd / delta) / max(task.budget, 1e-300)
    samples = int(min(PATHS, max(200.0, wanted)))
    return ScenarioTube(task=task, seed=0, samples=samples, delta=delta, anchors=8, limit=limit)


def about_start(model: GP, task: Task, inputs: Box, box: Box) -> tuple[AffinePolicies, str]:
    """u = u_0 + K(x − r): K of three LQR designs (or none) for the mean linearised at (x_0, u_0), r set-points about x_0."""
    x, u = task.initial_state, inputs.center

    def mean(z: Tensor) -> Tensor:
        return model.predict(z[: model.nx].unsqueeze(0), z[model.nx :].unsqueeze(0)).mean[0]

    slope = torch.func.jacrev(mean)(torch.cat([x, u]))
    a, b = slope[:, : model.nx], slope[:, model.nx :]
    gains, words = [torch.zeros(model.nu, model.nx, dtype=torch.float64)], "no feedback"
    try:
        weight, effort = torch.diag(box.radius.reciprocal().square()), torch.diag(inputs.radius.reciprocal().square())
        gains += [lqr_gain(a, b, state_weight=weight, input_weight=e * effort) for e in (0.1, 1.0, 10.0)]
        words = "linear feedback of three efforts and none"
    except ValueError:
        pass
    targets = _targets(x, box)
    offset = torch.stack([u - gain @ r for gain in gains for r in targets])
    return AffinePolicies(offset, torch.stack([gain for gain in gains for _ in targets]), inputs), (
        f"{words}, about {len(targets)} set-points along the axes from x_0"
    )


def _targets(x: Tensor, box: Box) -> Sequence[Tensor]:
    found = [x]
    for axis in range(len(x)):
        for share in SPREAD[1:]:
            point = x.clone()
            point[axis] += share * box.radius[axis]
            found.append(point)
    return found
