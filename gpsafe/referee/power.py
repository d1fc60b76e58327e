"""What the tests would have noticed on *these* inputs: tried on observations made up with one known defect.

Functions of exactly known norm, random ones with 30 centres among the rows, are measured where the user measured, with the
claimed noise or a worse one. The share of refuted trials is the power; on columns without a defect it is the rate of false
alarms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe._show import short
from gpsafe.referee.trials import Design, Tried, shapes
from gpsafe.rkhs import kernels
from gpsafe.verdict import clopper_pearson_upper

CENTRES = 30
RHO = 0.8
NONE = "nothing wrong"
MEMORY = f"noise that remembers (correlation {RHO:g} from row to row)"


@short
@dataclass(frozen=True, slots=True, eq=False)
class Power:
    """How often each test refuted, by defect.

    Attributes:
        trials: of each defect.
        hits: defect → test → how many were refuted.
    """

    trials: int
    hits: Mapping[str, Mapping[str, int]]

    def least(self, defect: str, test: str) -> float:
        """95 % lower confidence limit of the power."""
        missed = self.trials - self.hits[defect].get(test, 0)
        return 1.0 - clopper_pearson_upper(missed, self.trials, 0.05)

    def words(self, test: str, *defects: str) -> str:
        """For a finding."""
        told = [
            f"{d}: {self.hits[d][test]} of {self.trials} trials (power ≥ "
            f"{max(0.0, math.floor(100 * self.least(d, test)) / 100):.2f})"
            for d in defects
            if d in self.hits and test in self.hits[d]
        ]
        alarms = self.hits[NONE].get(test, 0)
        return (
            f"On these inputs, refuted: {'; '.join(told)}. With nothing wrong: {alarms} of {self.trials}."
            if told
            else ""
        )


def members(kernel: Kernel, z: Tensor, norm: float, count: int, generator: torch.Generator) -> Tensor:
    """Values at z (n, d) of random functions of exactly this norm, each with centres of its own, (n, count)."""

    def member() -> Tensor:
        chosen = torch.randint(len(z), (min(CENTRES, len(z)),), generator=generator)
        gram, cross = kernels.cross(kernel, z[chosen], z[chosen]), kernels.cross(kernel, z, z[chosen])
        weights = torch.randn(len(chosen), dtype=torch.float64, generator=generator)
        return cross @ (weights * (norm / (weights @ gram @ weights).clamp_min(1e-300).sqrt()))

    return torch.stack([member() for _ in range(count)], dim=-1)


def columns(design: Design, count: int, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """Defect and observations (n, count). Without a stated norm there is nothing to make up."""
    z, noise, norm = design.z, design.noise, design.norm

    def functions(kernel: Kernel, norm: float) -> Tensor:
        return members(kernel, z, norm, count, generator)

    def normal() -> Tensor:
        return torch.randn(len(z), count, dtype=torch.float64, generator=generator)

    f = functions(design.kernel, norm)
    yield NONE, f + noise * normal()
    for factor in (1.5, 3.0):
        yield f"a norm of {factor:g} B", factor * f + noise * normal()
    short_ = shapes(design.kernel)
    if short_:
        yield "length-scales a quarter as long, norm B", functions(short_[1], norm) + noise * normal()
    for factor in (1.5, 3.0):
        yield f"noise of {factor:g} R", f + factor * noise * normal()
    rare = torch.rand(len(z), count, dtype=torch.float64, generator=generator) < 0.02
    yield "every fiftieth row ten times as noisy", f + noise * normal() * torch.where(rare, 10.0, 1.0)
    if bool((design.links >= 0).any()):
        yield MEMORY, f + noise * remembering(design.links, normal(), RHO)


def remembering(links: Tensor, white: Tensor, rho: float) -> Tensor:
    """Stationary normal noise with correlation ρ from a row to the next, unit deviation, from white noise (n, S)."""
    found = white.clone()
    for i, before in enumerate(links.tolist()):
        if before >= 0:
            found[i] = rho * found[before] + math.sqrt(1 - rho**2) * white[i]
    return found


def counted(design: Design, tried: Tried, names: list[str], trials: int) -> Power:
    """From the last columns, `trials` a name."""
    refuted = {test: found[-len(names) * trials :].split(trials) for test, found in tried.refuted(design).items()}
    hits = {name: {test: int(parts[i].sum()) for test, parts in refuted.items()} for i, name in enumerate(names)}
    return Power(trials, hits)


def weakest(powers: list[Power]) -> Power:
    """Of several outputs: the fewest hits of each defect, the most false alarms."""
    hits: dict[str, dict[str, int]] = {}  # an output whose kernel has nothing shorter has fewer tests and defects
    for p in powers:
        for d, tests in p.hits.items():
            mine = hits.setdefault(d, {})
            for t, count in tests.items():
                mine[t] = (max if d == NONE else min)(count, mine.get(t, count))
    return Power(powers[0].trials, hits)
