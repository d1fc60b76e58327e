"""Theory §4 on a pendulum: the robust dynamic program in two dimensions drives ActSafe from 6 set-points to most of S*."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import plotting
from gpsafe.algorithms.actsafe import ActSafe
from gpsafe.confidence import Constant, Mixture
from gpsafe.cost.grid import Grid
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.models import GP
from gpsafe.policies.rollout import closed_loop
from gpsafe.sets import Box
from gpsafe.systems.base import sample_noise
from gpsafe.systems.reference import reference_pendulum, reference_pendulum_policies
from gpsafe.systems.rkhs_twin import RKHSTwin
from gpsafe.systems.task import Task
from gpsafe.testbed.check import Budget, Check, Evidence, Sample
from gpsafe.verdict import Verdict, bernstein_radius, clopper_pearson_upper, worst_of

DELTA = 0.1
FAILURE = 0.01  # of the Monte-Carlo truth on either side, split over pieces and policies: these share their noise
PATHS = 3_000
SHARDS: Mapping[Budget, int] = {"quick": 1, "full": 10}


@lru_cache(maxsize=1)
def _system() -> RKHSTwin:
    return reference_pendulum()


def _truth(system: RKHSTwin, which: Tensor, seed: int, push: float) -> tuple[Tensor, Tensor, Tensor]:
    """Violation counts among PATHS paths, mean and variance of the cost of the chosen policies under the true plant, pushed by
    `push`.
    """
    policies = reference_pendulum_policies()[0].select(which)
    noise = sample_noise(system.noise_std, (system.horizon, 1, PATHS), torch.Generator().manual_seed(seed))
    disturbance = torch.tensor([0.0, push], dtype=torch.float64)
    states, _ = closed_loop(lambda x, u: system.mean(x, u) + disturbance, policies, system.initial_state, noise)
    cost = system.cost(states[..., :-1, :]).sum(-1)
    return (cost > 0).sum(-1), cost.mean(-1), cost.var(-1)


def _sample(shard: int, budget: Budget, broken: bool) -> Sample:
    system = _system()
    policies, initial = reference_pendulum_policies()
    norm = tuple(system.rkhs_norm.tolist())
    model = GP.create(
        system.kernels, 1e-4, nx=2, nu=1, noise_std=system.noise_std, outputs=system.outputs, prior=system.known
    )
    if broken:
        bound = Constant(rkhs_norm=norm, subgaussian=0.01, delta=DELTA, value=1e-6)
    else:
        bound = Mixture(rkhs_norm=norm, subgaussian=0.01, delta=DELTA)
    box = Box(torch.tensor([-1.0, -4.5], dtype=torch.float64), torch.tensor([1.6, 4.5], dtype=torch.float64))
    cells = (156, 108) if budget == "quick" else (260, 180)
    dp = RobustDP(Grid(box, cells), Task.of(system))
    episodes = 1 if broken else {"quick": 3, "full": 8}[budget]
    algorithm = ActSafe(system, policies, initial.tolist(), model, bound, dp, episodes=episodes, unchecked=broken)
    run = algorithm.run(torch.Generator().manual_seed(70 + shard))
    members = run.safe_set.members
    violations, cost, var = _truth(system, members, 900 + shard, 0.6 if broken else 0.0)
    failure = FAILURE / (SHARDS[budget] * len(members))
    share = [clopper_pearson_upper(int(k), PATHS, failure) for k in violations]
    below = [bernstein_radius(PATHS, system.horizon, float(v), failure) for v in var]
    return {
        "upper": float(system.horizon * worst_of(share)),  # J_c ≤ T · P(any violation)
        "lower": float((cost - torch.tensor(below, dtype=torch.float64)).max()),
        "estimate": float(cost.max()),
        "sizes": [len(s) for s in run.safe_sets],
        "executed": [e.policy for e in run.episodes],
        "realised": sum(e.cost for e in run.episodes),
        "entered": [run.safe_set.witnesses[i].episode if i in run.safe_set else -1 for i in range(policies.num)],
        "paths": [e.states.tolist() for e in run.episodes],
    }


def _judge(samples: Sequence[Sample], broken: bool) -> Evidence:
    upper, lower = worst_of(s["upper"] for s in samples), worst_of(0.0, worst_of(s["lower"] for s in samples))
    sizes = [s["sizes"] for s in samples]
    realised = sum(s["realised"] for s in samples)
    witness = f"|S_n| by episode: {sizes[0]}; realised cost while learning {realised:g}"
    data = {"sizes": sizes, "paths": samples[0]["paths"], "entered": samples[0]["entered"]}
    n = PATHS * sum(s["sizes"][-1] for s in samples)
    return Evidence(
        n, worst_of(s["estimate"] for s in samples), Verdict(lower, worst_of(lower, upper), 0.2, witness=witness), data
    )


def _plot(figure: Figure, claim: Mapping[str, Any], control: Mapping[str, Any]) -> None:
    figure.set_size_inches(10, 4)
    growth, phase = figure.subplots(1, 2, width_ratios=(1, 1.6))
    length = max(len(sizes) for sizes in claim["sizes"])
    table = [np.pad(sizes, (0, length - len(sizes)), mode="edge") for sizes in claim["sizes"]]
    plotting.growth(growth, {"actsafe": table}, safe=36)
    growth.set(title="growth of $S_n$ inside S*", ylim=(0, 46))
    plotting.phase(phase, claim["paths"], names=[f"episode {k}" for k in range(1, len(claim["paths"]) + 1)])
    plotting.limit(phase, 1.2, upright=True, label="θ = 1.2")
    phase.set(xlabel="θ (rad, 0 hangs)", ylabel="ω (rad/s)", title="closed-loop phase portrait while learning")
    phase.legend()


CHECKS = (
    Check(
        name="actsafe-pendulum",
        claim="On the pendulum twin every policy in S_n is safe: J_c(π, f*) ≤ d = 0.2.",
        source="ActSafe, Theorem 4.6; theory §3.3 and §4 (i)",
        assumptions=("rkhs_norm<=B (exact twin)", "gaussian noise of known variance", "S_0 safe"),
        statistic="largest J_c(π, f*) in S_n, Monte Carlo: T times a Clopper–Pearson limit from above, empirical Bernstein "
        "from below, 99 % each, union over policies and runs",
        control="the plant is pushed by 0.6 rad/s a step, which ‖f‖ ≤ B excludes, and the prior mean is taken for the truth",
        shards=SHARDS,
        control_shards={"quick": 1, "full": 2},
        sample=_sample,
        judge=_judge,
        plot=_plot,
    ),
)
