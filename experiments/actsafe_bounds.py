"""How many episodes each confidence bound needs before ActSafe's safe set covers S* (first reference system).

python -m experiments.actsafe_bounds [--seeds 3] [--episodes 30] [--out results/actsafe_bounds]
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
import tyro

from gpsafe import store
from gpsafe.algorithms.actsafe import ActSafe
from gpsafe.confidence import ConfidenceSet, make_bound
from gpsafe.cost.robust_dp import Grid, RobustDP
from gpsafe.models import GP
from gpsafe.sets import Box
from gpsafe.systems.reference import reference_1d, reference_1d_policies

matplotlib.use("Agg")
from matplotlib import pyplot as plt


@dataclass(frozen=True)
class Arguments:
    """What to run."""

    bounds: tuple[str, ...] = ("convex-program", "mixture", "abbasi-yadkori", "fiedler")
    """names from gpsafe.confidence.BOUNDS"""
    seeds: int = 3
    episodes: int = 30
    cells: int = 500
    delta: float = 0.1
    out: Path = Path("results/actsafe_bounds")


def growth(name: str, seed: int, arguments: Arguments) -> dict:
    """One run: sizes of S_n per episode, violations and time."""
    system = reference_1d()
    policies, initial = reference_1d_policies()
    model = GP.create(system.kernels, 1e-4, nx=1, nu=1, noise_std=system.noise_std, prior=system.known)
    bound = make_bound(name, rkhs_norm=tuple(system.rkhs_norm.tolist()), subgaussian=0.01, delta=arguments.delta)
    box = Box(torch.tensor([-1.0], dtype=torch.float64), torch.tensor([1.5], dtype=torch.float64))
    dp = RobustDP(Grid(box, (arguments.cells,)), system.initial_state, system.horizon, system.cost, system.noise_std)
    enclosure = dp.enclosure(ConfidenceSet(bound).update(model), policies)
    truth = dp.lower(enclosure.with_residual(system.residual_fn(enclosure.z)))
    algorithm = ActSafe(system, policies, initial.tolist(), model, bound, dp, episodes=arguments.episodes)
    started = time.perf_counter()
    run = algorithm.run(torch.Generator().manual_seed(seed))
    return {
        "sizes": [len(s) for s in run.safe_sets],
        "true_safe": int((truth <= system.budget).sum()),
        "unsafe_members": int((truth[run.safe_set.members] > system.budget).sum()),
        "beta": run.episodes[-1].beta[0],
        "seconds": time.perf_counter() - started,
    }


def episodes_to(sizes: list[int], size: float) -> float:
    """First n with |S_n| ≥ size (inf if never)."""
    return next((float(n) for n, s in enumerate(sizes) if s >= size), float("inf"))


def main(arguments: Arguments) -> None:
    """Runs, stores, draws."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    records = {}
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    rows = [
        "| bound | β at the end | n for 50 % of S* | n for 90 % | final size of S_n (of S*) | unsafe members | s/run |"
    ]
    rows.append("|---|---|---|---|---|---|---|")
    for name in arguments.bounds:
        runs = [growth(name, seed, arguments) for seed in range(arguments.seeds)]
        records[name] = runs
        total = runs[0]["true_safe"]
        sizes = np.array([r["sizes"] for r in runs])
        axes.plot(np.median(sizes, 0), label=name)
        axes.fill_between(range(sizes.shape[1]), sizes.min(0), sizes.max(0), alpha=0.2)
        cells = [np.median([episodes_to(r["sizes"], share * total) for r in runs]) for share in (0.5, 0.9)]
        rows.append(
            f"| {name} | {np.mean([r['beta'] for r in runs]):.2f} | {cells[0]:.0f} | {cells[1]:.0f} | "
            f"{np.median(sizes[:, -1]):.0f} of {total} | {sum(r['unsafe_members'] for r in runs)} | "
            f"{np.mean([r['seconds'] for r in runs]):.1f} |"
        )
        print(rows[-1], flush=True)
    axes.axhline(total, color="black", linestyle="--", label="|S*|")
    axes.set(xlabel="episode n", ylabel="|S_n|", title="growth of the safe-policy set, by confidence bound")
    axes.legend()
    figure.savefig(arguments.out / "growth.png", dpi=150)
    store.write_json(arguments.out / "runs.json", records)
    store.write_text(arguments.out / "table.md", "\n".join(rows) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
