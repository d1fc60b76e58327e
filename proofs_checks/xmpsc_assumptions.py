"""Theory §6.12: Assumptions 4.1–4.4 of X-MPSC as statements that can be measured, with their rates on its four environments.

An assumption about a plant cannot be shown by sampling it; what is judged here is the probability of a failure under a stated
distribution, on the pendulum, the cart-pole, the arm and the drone of `gpsafe.systems`, under their published noise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import plotting
from gpsafe.models import Ensemble, Training
from gpsafe.sets import Ellipsoid
from gpsafe.systems import Drone, SafeCartPole, SimplePendulum, TwoLinkArm
from gpsafe.systems.warmup import safe_fraction, warm_up_data
from gpsafe.testbed.check import Budget, Check, Evidence, Grade, Sample
from gpsafe.tube import EnsembleTube, propagate
from gpsafe.verdict import Verdict, clopper_pearson, worst_of

from ._defects import around, replaced, times
from ._regression import generator
from ._tube_defects import conformal

PLANTS = (SimplePendulum, SafeCartPole, TwoLinkArm, Drone)
WIDTHS = (10, 10, 20, 20)  # of the published networks, two layers each
SHARDS: Mapping[Budget, int] = {"quick": 4, "full": 40}
CONTROL: Mapping[Budget, int] = {"quick": 4, "full": 8}
EPISODES = 600  # of every plant and shard, and pairs of states
STEPS, DELTA = 3, 0.1  # of a plan
CELLS = 8  # that cover a section: fewer than by default, wider and cheaper
CONFIDENCE = 0.99
LEAVES, STRAYS, STEEP = 0.02, 0.02, 0.02  # thresholds of 4.1, 4.2 and 4.3


def _plant(shard: int) -> Any:
    return PLANTS[shard % len(PLANTS)]()


def one_each(blocks: int, length: int, source: torch.Generator) -> Tensor:
    """A row of each of `warm_up_data`'s blocks, which are as long as an episode: rows of one block are no separate trials."""
    return torch.arange(blocks) * length + torch.randint(length, (blocks,), generator=source)


# --------------------------------------------------------------------------------------- 4.1 a safe backup controller
def backup(shard: int, budget: Budget, broken: bool) -> Sample:
    """Episodes under the backup from starts of the plant; broken: the law with its sign turned."""
    plant, source = _plant(shard), generator(91, shard)
    middle = plant.input_box.center

    def law(x: Tensor) -> Tensor:
        u = plant.backup(x)
        return 2 * middle - u if broken else u

    kept = safe_fraction(plant, law, plant.initial(EPISODES, source), plant.horizon, source)
    return {"plant": plant.name, "failures": kept.trials - kept.safe, "trials": kept.trials}


# ----------------------------------------------------------------------------------- 4.2 the terminal set is safe, too
def strays(shard: int, budget: Budget, broken: bool) -> Sample:
    """Episodes under the backup from a visited state of each of many blocks of the warm-up, which span the first terminal sets.

    Broken: from states whose limited coordinates were visited, the others drawn in the box of what was: the published hull
    leaves them free.
    """
    plant, source = _plant(shard), generator(92, shard)
    data = warm_up_data(plant, EPISODES * plant.horizon, 92_000 + shard)
    starts = data.states[one_each(EPISODES, plant.horizon, source)]
    if broken:
        low, high = data.states.amin(0), data.states.amax(0)
        free = low + (high - low) * torch.rand(starts.shape, dtype=torch.float64, generator=source)
        free[:, list(plant.limited)] = starts[:, list(plant.limited)]
        starts = free
    kept = safe_fraction(plant, plant.backup, starts, plant.horizon, source)
    return {"plant": plant.name, "failures": kept.trials - kept.safe, "trials": kept.trials}


# ------------------------------------------------------------------------- 4.3 bounded disturbances, Lipschitz dynamics
def slopes(plant: Any, x: Tensor, u: Tensor) -> Tensor:
    """|∂f_i/∂z_j| at points z = (x, u), (n, nx, nz)."""
    z = torch.cat([x, u], dim=-1).requires_grad_()
    moved = plant.mean(z[:, : plant.nx], z[:, plant.nx :])
    rows = [torch.autograd.grad(moved[:, i].sum(), z, retain_graph=True)[0] for i in range(plant.nx)]
    return torch.stack(rows, dim=1).abs()


def pushes(plant: Any) -> Tensor:
    """Half-widths e of the published noise of the input, (nu,)."""
    return float(getattr(plant, "input_noise", 0.0)) * torch.ones(plant.nu, dtype=torch.float64)


def moves(shard: int, budget: Budget, broken: bool) -> Sample:
    """Pairs with |f(z) − f(z′)| ≤ L|z − z′| violated, or |w| ≤ L_u e; L the largest slopes seen at other points.

    Every state of a pair is of a block of its own, so that pairs are independent given L, of which the claim speaks. Broken:
    L the mean slopes.
    """
    plant, source = _plant(shard), generator(93, shard)
    parts = []
    for part, blocks in enumerate((30, 2 * EPISODES)):
        data = warm_up_data(plant, blocks * plant.horizon, 93_000 + 2 * shard + part)
        rows = one_each(blocks, plant.horizon, source) if part else slice(None)
        parts.append((data.states[rows], plant.input_box.clip(data.inputs[rows])))
    seen, (x, u) = slopes(plant, *parts[0]), parts[1]
    L = seen.mean(0) if broken else seen.amax(0)
    z, means = torch.cat([x, u], dim=-1), plant.mean(x, u)
    moved, apart = (torch.diff(part.unflatten(0, (2, EPISODES)), dim=0)[0].abs() for part in (means, z))
    pushed = (plant.advance(x, u, source) - means)[:EPISODES].abs()
    rounding = 1e-12 * (1 + x.abs().amax(0))
    pairs = (moved - rounding, apart @ L.mT), (pushed - rounding, pushes(plant) @ L[:, plant.nx :].mT)
    above = ~torch.stack([(size <= limit).all(-1) for size, limit in pairs]).all(0)  # a step of NaN is above
    steps, noise = ((size / limit).nan_to_num(nan=0.0, neginf=0.0) for size, limit in pairs)
    return {
        "plant": plant.name,
        "failures": int(above.sum()),
        "trials": len(above),
        "largest": [float(steps.max()), float(noise.max())],
    }


# ------------------------------------------------------------------------------------- 4.4 the ensemble captures the plant
def captured(shard: int, budget: Budget, broken: bool) -> Sample:
    """Recorded stretches of T steps: is every state in some member's section of the tube? Broken: the published tube.

    Plans are the recorded inputs, without feedback; every stretch is of a block of its own, at a random time. All of a piece
    meet the same networks and one calibration: they are independent given these, and the rate is that of these tubes.
    """
    plant, width, source = _plant(shard), WIDTHS[shard % 4], generator(94, shard)
    warm, held, fresh = (
        warm_up_data(plant, n * plant.horizon, 94_000 + 3 * shard + i) for i, n in enumerate((30, 20, 160))
    )
    model = Ensemble.create(
        plant.nx, plant.nu, generator=source, members=3, hidden=(width, width), prior=plant.prior(),
        training=Training(epochs=1, steps=300),
    ).condition(warm.transitions)  # fmt: skip
    used = EnsembleTube.paper(model)
    if not broken:
        used = replace(EnsembleTube.calibrated(model, held.transitions, steps=STEPS, delta=DELTA), cells=CELLS)
    at = one_each(len(fresh.states) // plant.horizon, plant.horizon, source).clamp_max(len(fresh.states) - STEPS)
    rows = at.unsqueeze(-1) + torch.arange(STEPS)
    rows = rows[~fresh.first[rows[:, 1:]].any(-1)]  # within one episode
    tube = propagate(used, fresh.states[rows[:, 0]], fresh.inputs[rows], torch.zeros(plant.nu, plant.nx).double())
    gauge = Ellipsoid(tube.center[:, :, 1:], tube.factor[:, :, 1:]).gauge(fresh.next_states[rows].unsqueeze(1))
    inside = (gauge <= 1).any(1)
    size = tube.factor[..., -1, :, :].norm(dim=-1).median()
    return {
        "plant": plant.name,
        "failures": int((~inside.all(-1)).sum()),
        "trials": len(rows),
        "steps": inside.double().mean(0).tolist(),
        "radius": used.radius,
        "size": float(size),
    }


# -------------------------------------------------------------------------------------------------------------- verdicts
def judge(samples: Sequence[Sample], broken: bool, threshold: float) -> Evidence:
    """The largest rate of the four plants, with joint Clopper–Pearson intervals."""
    names = list(dict.fromkeys(s["plant"] for s in samples))
    cells = {}
    for name in names:
        failures, trials = (sum(s[key] for s in samples if s["plant"] == name) for key in ("failures", "trials"))
        cells[name] = (failures, trials, *clopper_pearson(failures, trials, 1 - (1 - CONFIDENCE) / len(names)))
    lower, upper = (worst_of(cell[i] for cell in cells.values()) for i in (2, 3))
    estimate = worst_of(cell[0] / cell[1] for cell in cells.values())
    told = ", ".join(f"{name} {k} of {n}" for name, (k, n, *_) in cells.items())
    data = {"cells": {name: list(cell) for name, cell in cells.items()}, "threshold": threshold}
    total = sum(cell[1] for cell in cells.values())
    return Evidence(total, estimate, Verdict(lower, upper, threshold, witness=f"failures: {told}"), data)


def plot(figure: Figure, claim: Mapping[str, Any], control: Mapping[str, Any]) -> None:
    """Rates with their intervals, a line at the threshold."""
    axes = figure.subplots()
    for data, noun in ((claim, "claim"), (control, "control")):
        look = plotting.look(noun)
        for i, (failures, trials, low, high) in enumerate(data["cells"].values()):
            axes.plot([low, high], [i, i], **look.line)
            axes.plot(failures / trials, i, label=noun if i == 0 else None, **look.points)
    plotting.limit(axes, claim["threshold"], upright=True)
    axes.set_yticks(range(len(claim["cells"])), list(claim["cells"]))
    axes.set(xlabel="rate of failures", xlim=(-0.02, 1.02))
    axes.legend()


def _rates(
    name: str, claim: str, number: str, threshold: float, statistic: str, control: str,
    sample: Callable[[int, Budget, bool], Sample], assumptions: tuple[str, ...], grades: tuple[Grade, ...],
) -> Check:  # fmt: skip
    return Check(
        name=name,
        claim=claim,
        source=f"X-MPSC, Assumption {number}; theory §6.12",
        assumptions=assumptions,
        statistic=f"{statistic}, largest of four plants, joint 99 % intervals; threshold {threshold:g}",
        control=control,
        shards=SHARDS,
        control_shards=CONTROL,
        sample=sample,
        judge=lambda samples, broken: judge(samples, broken, threshold),
        plot=plot,
        grades=grades,
    )


def _feebler(fraction: Callable[..., Any], factor: float) -> Callable[..., Any]:
    """The law that is judged pushes less from the middle of its inputs."""

    def less(plant: Any, law: Callable[[Tensor], Tensor], *rest: Any) -> Any:
        middle = plant.input_box.center
        return fraction(plant, lambda x: middle + factor * (law(x) - middle), *rest)

    return less


_HERE = sys.modules[__name__]
_ALL = tuple(range(len(PLANTS)))
_FALLING = (0.9, 0.7, 0.5, 0.3, 0.1, 0.0)
_PUSH = Grade("push of the backup", replaced(_HERE, "safe_fraction", _feebler), _ALL, _FALLING)

CHECKS = (
    _rates(
        "xmpsc-backup",
        f"From the starts of each of the four environments the backup controller leaves the limits within an episode with "
        f"probability ≤ {LEAVES:g}.",
        "4.1",
        LEAVES,
        "probability that an episode under the backup leaves the limits",
        "the law with its sign turned",
        backup,
        ("starts and noise as published", "an episode stands for all time"),
        (_PUSH,),
    ),
    _rates(
        "xmpsc-safe-sets",
        f"So it does from states of the warm-up, of which the first terminal sets are made: probability ≤ {STRAYS:g}.",
        "4.2",
        STRAYS,
        "probability that an episode under the backup from a visited state leaves the limits",
        "only the limited coordinates as visited, the others drawn: the published hull leaves them free",
        strays,
        ("starts and noise as published", "visited states stand for their hull"),
        (_PUSH,),
    ),
    _rates(
        "xmpsc-bounded",
        "Steps are Lipschitz with the largest slopes seen at other states, and disturbances within what these make of the "
        f"published noise of the input, but with probability ≤ {STEEP:g} given these slopes.",
        "4.3",
        STEEP,
        "probability that a pair of visited states, or a disturbance, exceeds its bound",
        "the mean slopes instead of the largest",
        moves,
        ("visited states stand for all",),
        (
            Grade("slopes L", around(_HERE, "slopes", times), (0,), _FALLING),
            Grade("noise e of the input", around(_HERE, "pushes", times), (0,), _FALLING),
        ),
    ),
    _rates(
        "xmpsc-captured",
        f"Calibrated tubes capture {STEPS} recorded steps of each plant: some member holds every state, but with probability "
        f"≤ {DELTA:g} given the networks and their calibration.",
        "4.4",
        DELTA,
        "probability that a state of a stretch is in no member's section",
        "the published tube: one standard deviation, no remainder",
        captured,
        ("calibrated: plan steps exchangeable with held-out rows",),
        conformal((0,), _FALLING),
    ),
)  # fmt: skip
