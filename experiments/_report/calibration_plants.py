"""Known plants of the calibration study, draws of (x, u) on them, and what a fitted model is measured by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gpsafe import calibration
from gpsafe.calibration import bars, coverage, downstream
from gpsafe.comparison import PolicySet, believe, task
from gpsafe.confidence import ConfidenceSet
from gpsafe.data import Transitions
from gpsafe.systems import Drone, SafeCartPole, SimplePendulum, TwoLinkArm
from gpsafe.systems.bullet import BulletPlant

from . import line

QUANTILE = 1.6448536269514722  # of the centred Gaussian interval of probability 0.9
STEPS = 25  # of an episode


@dataclass(frozen=True)
class Source:
    """A known plant: f*, known part, noise, and draws of (x, u) of both distributions."""

    mean: Callable[[Tensor, Tensor], Tensor]
    prior: Any
    noise: Tensor
    draw: Callable[[str, int, torch.Generator], tuple[Tensor, Tensor]]
    law: Callable[[Tensor], Tensor]
    kernels: tuple[Any, ...] | None = None
    norm: Tensor | None = None

    def rows(self, kind: str, count: int, generator: torch.Generator) -> tuple[Transitions, Tensor]:
        """Transitions and f* there."""
        x, u = self.draw(kind, count, generator)
        truth = self.mean(x, u)
        noise = self.noise * torch.randn(truth.shape, dtype=torch.float64, generator=generator)
        return Transitions(x, u, truth + noise), truth


def uniform(low: Tensor, high: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, len(low), dtype=torch.float64, generator=generator)


def on_line(seed: int) -> Source:
    system = line.plant(line.typical(torch.Generator().manual_seed(seed)))
    corners = {"uniform": ((-0.8, -1.0), (1.8, 1.0)), "backup": ((-0.8, -1.0), (0.5, 1.0))}

    def draw(kind: str, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        low, high = (torch.tensor(c, dtype=torch.float64) for c in corners[kind])
        z = uniform(low, high, count, generator)
        return z[:, :1], z[:, 1:]

    return Source(
        system.mean,
        system.known,
        system.noise_std,
        draw,
        lambda x: (-3 * x).clamp(-1, 1),
        system.kernels,
        system.rkhs_norm,
    )


def published(name: str, seed: int, simulator: Literal["analytic", "bullet"] = "analytic") -> Source:
    """The published plant of that name under its own equations, or its twin in PyBullet with the same known part and noise."""
    system: Any = {"pendulum": SimplePendulum, "cart-pole": SafeCartPole, "arm": TwoLinkArm, "drone": Drone}[name]()
    plant: Any = BulletPlant(system) if simulator == "bullet" else system
    prior = system.prior()

    def backup(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Episodes under the backup law with three uniform inputs in ten, all steps, without process noise."""
        x, states, inputs = system.initial(-(-count // STEPS), generator), [], []
        for _ in range(STEPS):
            free = system.input_box.sample(len(x), generator)
            u = torch.where(torch.rand(len(x), 1, generator=generator) < 0.3, free, system.backup(x))
            states.append(x)
            inputs.append(u)
            x = plant.mean(x, u)
        return torch.stack(states, 1).flatten(0, 1)[:count], torch.stack(inputs, 1).flatten(0, 1)[:count]

    def draw(kind: str, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if kind == "backup":
            return backup(count, generator)
        u = system.input_box.sample(count, generator)
        return anywhere(name, system, count, generator), u

    probe = torch.Generator().manual_seed(99)
    x, u = draw("uniform", 400, probe)
    after = system.mean(x, u)
    noise = torch.maximum(0.05 * (after - prior(x, u)).std(0), 1e-3 * (after - x).std(0)).clamp_min(1e-6)
    return Source(plant.mean, prior, noise, draw, system.backup)


def anywhere(name: str, system: Any, count: int, generator: torch.Generator) -> Tensor:
    if name == "arm":
        sizes = torch.tensor([3.14, 3.14, 4.0, 4.0, 0.5, 0.5], dtype=torch.float64)
        found = uniform(-sizes, sizes, count, generator)
        return system.of(found[:, :2], found[:, 2:4], found[:, 4:])
    if name == "drone":
        sizes = torch.tensor([1, 1, 1, 0.17, 0.17, 3.1, 1, 1, 1, 2, 2, 2], dtype=torch.float64)
        return uniform(-sizes, sizes, count, generator)
    if name == "cart-pole":
        sizes = torch.tensor([1.0, 2.0, 0.3, 3.0], dtype=torch.float64)
        return uniform(-sizes, sizes, count, generator)
    return uniform(system.state_box.lower, system.state_box.upper, count, generator)


def size_of(rows: Transitions, prior: Any) -> Tensor:
    """Standard deviation of the residual of every state, the unit of all widths and errors."""
    return (rows.x_next - prior(rows.x, rows.u)).std(0).clamp_min(1e-12)


def measured(model: Any, conformal: Any, rows: Transitions, size: Tensor, seen: Transitions) -> dict[str, Any]:
    """What next states tell."""
    told = model.predict(rows.x, rows.u)
    total = calibration.total_std(told)
    low, high = conformal.interval(rows.x, rows.u)
    shells = coverage.shells(rows.x_next, told.mean, total, QUANTILE, calibration.distance_to_data(rows.z, seen.z))
    return {
        "inside": calibration.pointwise(rows.x_next, told.mean, total, QUANTILE).value,
        "conformal": float(((low <= rows.x_next) & (rows.x_next <= high)).double().mean()),
        "conformal_width": float(((high - low) / 2 / size).mean()),
        "width": float((QUANTILE * total / size).mean()),
        "rmse": float(((rows.x_next - told.mean) / size).square().mean().sqrt()),
        "crps": float(calibration.crps_gaussian(rows.x_next / size, told.mean / size, total / size).mean()),
        "ece": float(
            calibration.mean_absolute_calibration_error(
                (rows.x_next / size).flatten(), (told.mean / size).flatten(), (total / size).flatten()
            )
        ),
        "needed_next": float(calibration.needed_scale(rows.x_next, told.mean, total)),
        **{f"shell_{i}": shell.rate.value for i, shell in enumerate(shells)},
    }


def against_truth(model: Any, rows: Transitions, truth: Tensor, size: Tensor, source: Source) -> dict[str, Any]:
    """What f* tells."""
    told = model.predict(rows.x, rows.u)
    apart = calibration.separate(truth, told, QUANTILE, source.noise)
    return {
        "inside_truth": apart.epistemic.value, "needed": apart.needed,
        "noise_ratio": float(apart.noise_ratio.log().mean().exp()), "epistemic": float((told.std / size).mean()),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------- where a safe explorer goes
def explored(plant: str, seed: int, count: int) -> tuple[Tensor, Tensor]:
    """(x, u) of ActSafe's expansion phase: episodes of the policy in S_n of which the process is least certain.

    On the line S_n and β are those of theory. Elsewhere kernels and B come from the data, and S_n, of affine policies about the
    safe controller, grows as in published code: by particles that err by 2σ (`gpsafe.calibration.downstream.worst_cost`). The
    sound bound of costs certifies nothing there but S_0, and the explorer would stay at rest.
    """
    return _on_line_explored(seed, count) if plant == "line" else _contest_explored(plant, seed, count)


def _on_line_explored(seed: int, count: int) -> tuple[Tensor, Tensor]:
    system = line.plant(line.typical(torch.Generator().manual_seed(seed)))
    policies = line.set_points(torch.linspace(0.0, 1.15, 24, dtype=torch.float64))
    program = line.program(system, 200)
    enclosure = program.enclosure(ConfidenceSet(line.sound_bound(system)).update(line.model(system)), policies)

    def claims(seen: Transitions, number: int) -> bars.Bars:
        model = line.model(system).condition(seen)
        return bars.bars(model, "theory", band=calibration.theory_band(model, rkhs_norm=system.rkhs_norm))

    found = downstream.explore(
        system, policies, program, enclosure, (0, 1, 2, 3), claims, line.probe(), episodes=-(-count // system.horizon),
        generator=torch.Generator().manual_seed(7919 * seed + 3),
    )  # fmt: skip
    return found.data.x[-count:], found.data.u[-count:]


def _contest_explored(plant: str, seed: int, count: int) -> tuple[Tensor, Tensor]:
    contest = task(plant, seed)
    belief, policies = believe("gp", contest), PolicySet.create(contest)
    states, inputs, number = [], [], 0
    while sum(len(u) for u in inputs) < count:
        claimed = bars.bars(belief.dynamics, "plain")
        policies.member |= downstream.worst_cost(contest, policies.policies, claimed) <= contest.budget
        index = policies.choose(belief, "uncertainty", contest.generator(8, number))
        policy = policies.policies.select(torch.tensor([index]))
        x, noise = [contest.plant.initial_state], contest.generator(7, number)
        u = []
        while len(u) < contest.plant.horizon and float(contest.plant.cost(x[-1])) == 0:
            u.append(policy(x[-1].reshape(1, 1, -1))[0, 0])
            x.append(contest.plant.advance(x[-1].unsqueeze(0), u[-1].unsqueeze(0), noise)[0])
        states.append(torch.stack(x))
        inputs.append(torch.stack(u))
        belief, number = belief.told([(states[-1], inputs[-1])]), number + 1
    return torch.cat([x[:-1] for x in states])[:count], torch.cat(inputs)[:count]
