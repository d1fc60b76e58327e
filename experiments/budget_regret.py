"""What a budget buys: a greedy learner behind the account of a certified cost-to-go, episode by episode (SOOPER-type filter).

The 1-D reference plant: more reward lies nearer to the limit, whose crossing costs 1 a step; d = 0.2 an episode. A learner that
knows nothing of budgets proposes the input towards a set-point beyond the limit at some steps and the prior's at others; a
certified prior policy takes over where its input may not pass. After each episode F_n is updated and the cost-to-go made
anew. Four filters see the same noise: the *account* over F_n (a theorem, `gpsafe.safety.budget`); the same after thousands
of observations, what it could earn; the published *pointwise* rule over F_n, which is no theorem with noise; the prior alone.
Regret is counted against the account that knows almost everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from gpsafe import plotting
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost import CostToGo, Grid, RobustDP
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.policies import set_point_policies
from gpsafe.policies.rollout import transitions
from gpsafe.safety.budget import BudgetFilter
from gpsafe.sets import Box
from gpsafe.systems import RKHSTwin, Task, is_violation, reference_1d
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run, Table

from ._report.statistics import Share, mean_interval, plus_minus

ARMS = {
    "account": "account",
    "informed account": "informed-account",
    "pointwise": "pointwise",
    "prior": "prior-policy",
    "unfiltered": "unfiltered",
}
"""Arm → noun of its look."""
NAMES = {
    "account": "account over F_n",
    "informed account": "account, plant known",
    "pointwise": "published rule over F_n",
    "prior": "prior policy",
    "unfiltered": "learner, unfiltered",
}


@dataclass(frozen=True)
class Arguments:
    """Sizes."""

    episodes: int = 25
    """Of each filter."""
    prior: float = 0.2
    """Set-point of the prior policy; the limit is 1."""
    target: float = 1.3
    """Set-point of the learner."""
    cells: int = 400
    """Of the robust program."""
    informed: int = 3000
    """Observations of the filter that knows almost everything."""
    delta: float = 0.1
    """Of F_n."""


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """An arm a piece."""
    torch.set_num_threads(1)
    for i, arm in enumerate(ARMS):
        record.progress(i, len(ARMS), arm)
        record.piece(arm.replace(" ", "-"), lambda arm=arm: Piece(list(_episodes(arguments, arm, seed))))
    record.progress(len(ARMS), len(ARMS), "done")


def _episodes(arguments: Arguments, arm: str, seed: int) -> list[dict[str, Any]]:
    system = reference_1d()
    model, bound = _model(system, arguments)
    confidence = ConfidenceSet(bound).update(model)
    if arm == "informed account":
        model = _informed(system, model, arguments, seed)
        confidence = confidence.update(model)
    rows = []
    for number in range(arguments.episodes):
        row, states, inputs = _fly(system, confidence, arguments, arm, seed, number)
        rows.append({"episode": number, **row})
        if arm in ("account", "pointwise"):
            model = model.condition(transitions(states, inputs))
            confidence = confidence.update(model)
    return rows


def _model(system: RKHSTwin, arguments: Arguments) -> tuple[GP, Mixture]:
    sigma = float(system.noise_std[0])
    model = GP.create(
        system.kernels, sigma**2, nx=1, nu=1, noise_std=system.noise_std, outputs=system.outputs, prior=system.known
    )
    return model, Mixture(rkhs_norm=tuple(system.rkhs_norm.tolist()), subgaussian=sigma, delta=arguments.delta)


def _informed(system: RKHSTwin, model: GP, arguments: Arguments, seed: int) -> GP:
    generator = torch.Generator().manual_seed(900_001 + seed)
    x = system.state_box.sample(arguments.informed, generator)
    u = system.input_box.sample(arguments.informed, generator)
    noise = system.noise_std * torch.randn(len(x), 1, dtype=torch.float64, generator=generator)
    following = system.mean(x, u) + noise
    pairs = torch.stack([x, following], dim=1)
    return model.condition(transitions(pairs, u.unsqueeze(1)))


def _fly(
    system: RKHSTwin, confidence: ConfidenceSet, arguments: Arguments, arm: str, seed: int, number: int
) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
    box, task = system.input_box, Task.of(system)
    prior = set_point_policies(vector(arguments.prior)[:, None], vector(3.0)[:, None], vector(0.0)[:, None], box)
    noise = system.noise_std * torch.randn(
        task.horizon, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(10_007 * seed + number)
    )
    passed, safe, backed, promised = 0, None, True, float("nan")
    if arm not in ("prior", "unfiltered"):
        grid = Grid(Box(vector(-2.0), vector(2.0)), (arguments.cells,))
        to_go = CostToGo.of(RobustDP(grid, task), confidence, prior, box)
        promised = to_go.value(system.initial_state, task.horizon)
        safe = BudgetFilter(to_go, rule="pointwise" if arm == "pointwise" else "account").start()
    x, states, inputs = system.initial_state, [system.initial_state], []
    for t in range(task.horizon):
        wanted = box.clip(3.0 * (arguments.target - x))
        u = prior(x.reshape(1, 1, -1))[0, 0] if arm == "prior" else wanted
        if safe is not None:
            allowed, safe = safe.decide(x, wanted)
            u, passed, backed = allowed.u, passed + (allowed.source == "learner"), allowed.backed
        x = system.mean(x, u) + noise[t]
        states.append(x)
        inputs.append(u)
    path, applied = torch.stack(states), torch.stack(inputs)
    row = {
        "cost": float(system.cost(path[:-1]).sum()),
        "reward": float(system.reward(path[:-1], applied).sum()),
        "passed": passed,
        "backed": backed,
        "prior_bound": promised,
    }
    return row, path, applied


# ------------------------------------------------------------------------------------------------------------ report
def _rows(runs: Sequence[Run]) -> Mapping[str, list[list[dict[str, Any]]]]:
    keys = {arm: arm.replace(" ", "-") for arm in ARMS}
    return {
        arm: [[dict(row) for row in run.pieces[key].rows] for run in runs if key in run.pieces]
        for arm, key in keys.items()
    }


def _table(found: Mapping[str, list[list[dict[str, Any]]]], budget: float) -> Table:
    best = [np.mean([r["reward"] for r in rows]) for rows in found["informed account"]]
    rows = []
    for arm, seeds in found.items():
        every = [row for run in seeds for row in run]
        costs = [row["cost"] for row in every]
        regret = [float(top) * len(run) - sum(r["reward"] for r in run) for top, run in zip(best, seeds, strict=True)]
        late = [row["cost"] for run in seeds for row in run[len(run) // 2 :]]
        rows.append(
            (
                NAMES[arm],
                len(seeds),
                len(every),
                plus_minus(costs),
                plus_minus(late),
                str(Share.of(map(is_violation, costs))),
                str(Share.of(row["backed"] for row in every)) if arm in ("account", "informed account") else "–",
                f"{np.mean([row['passed'] for row in every]):.1f}",
                plus_minus([r["reward"] for run in seeds for r in run[-5:]]),
                plus_minus(regret) if len(regret) > 1 else f"{regret[0]:.1f}",
            )
        )
    columns = (
        "filter",
        "seeds",
        "episodes",
        "cost an episode",
        "the same, later half",
        "episodes with a cost",
        "backed episodes",
        "learner's steps of 20",
        "reward of the last five",
        "regret over all episodes",
    )
    caption = (
        f"d = {budget:g}. Means ± 95 % (normal, over episodes; over seeds for regret), shares with 95 % Clopper–Pearson "
        "intervals; episodes of one seed share F_n and are not quite independent. Expected cost ≤ d is promised for backed "
        "episodes of the account alone."
    )
    return Table(columns=columns, rows=rows, caption=caption)


def _figure(found: Mapping[str, list[list[dict[str, Any]]]], budget: float) -> Figure:
    figure = plotting.figure("screen", 3.4)
    left, right = figure.subplots(1, 2)
    looks = plotting.looks(ARMS.values())
    best = [np.mean([r["reward"] for r in rows]) for rows in found["informed account"]]
    shown = [arm for arm in found if arm not in ("informed account", "unfiltered")]
    regrets = {
        NAMES[arm]: [np.cumsum([top - r["reward"] for r in run]) for top, run in zip(best, found[arm], strict=True)]
        for arm in shown
    }
    at = np.arange(1, 1 + len(found["account"][0]))
    plotting.learning_curves(left, regrets, x=at, styles={NAMES[arm]: looks[ARMS[arm]] for arm in shown})
    for i, (arm, seeds) in enumerate(found.items()):
        mean, half = mean_interval([row["cost"] for run in seeds for row in run])
        right.errorbar([i], [mean], yerr=[half], capsize=3, **looks[ARMS[arm]].points)
    plotting.limit(right, budget, label="d")
    right.set_xticks(range(len(found)), [NAMES[a] for a in found], rotation=20, ha="right")
    right.set_yscale("symlog", linthresh=0.1)
    right.set_ylim(bottom=0)
    right.set_ylabel("cost an episode")
    left.set_xlabel("episodes")
    left.set_ylabel("regret so far")
    return figure


def report(runs: Sequence[Run]) -> Report:
    """The regret curve and its numbers."""
    found, budget = _rows(runs), reference_1d().budget
    return Report(figures={"regret": _figure(found, budget)}, tables={"totals": _table(found, budget)})


EXPERIMENT = Experiment(
    name="budget-regret",
    title="What a budget buys: regret and cost behind an account of certified cost-to-go",
    arguments=Arguments,
    run=run,
    report=report,
    budgets={
        "smoke": Arguments(episodes=2, cells=100, informed=200),
        "quick": Arguments(),
        "full": Arguments(episodes=100, cells=1000),
    },
    seeds={"smoke": 1, "quick": 5, "full": 20},
)
