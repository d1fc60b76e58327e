"""The two kinds of models, behind one name: a Gaussian process with its confidence set, an ensemble of networks.

Both begin with the contest's first data. The Gaussian process: kernels and B from these data (`gpsafe.algorithms.estimate`),
frozen before what is flown, the self-normalised mixture bound. The ensemble: five members, every third transition kept apart
for the conformal radius.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, Self

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.algorithms.certification import Certifiable
from gpsafe.algorithms.from_data import Estimate, estimate
from gpsafe.comparison.contest import Contest, Trajectory, joined
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.data import Transitions
from gpsafe.models import GP, Ensemble, Training
from gpsafe.models.base import DynamicsModel

ModelName = Literal["gp", "ensemble"]
DELTA = 0.1
ROWS = 150  # of the first data, told to a Gaussian process
APART = 3  # every so manieth transition is kept from an ensemble
FLOWN = 5  # every so manieth flown transition is told to it


class Belief(Protocol):
    """What a contestant thinks of the plant; grows with episodes."""

    @property
    def dynamics(self) -> DynamicsModel:
        """To plan with."""
        ...

    @property
    def certified(self) -> Certifiable:
        """To certify with."""
        ...

    @property
    def apart(self) -> Transitions | None:
        """Rows it was not trained on."""
        ...

    def told(self, episodes: Sequence[Trajectory]) -> Self:
        """After further episodes."""
        ...

    def outside(self, contest: Contest, x: Tensor, u: Tensor) -> Mapping[str, tuple[int, int]]:
        """Of its assumptions that the true plant decides: at how many of how many points each is false."""
        ...


@short
@dataclass(frozen=True, slots=True, eq=False)
class GaussianBelief:
    """F_n; `found` says what kernels and B that were estimated are worth, None where they are known."""

    found: Estimate | None
    confidence: ConfidenceSet

    @staticmethod
    def create(contest: Contest) -> GaussianBelief:
        """From the first data; the noise is known."""
        plant, outputs = contest.plant, contest.outputs
        if not outputs:
            raise _require.fail("GaussianBelief", "a plant with something to learn", "no outputs")
        found, kernels, norm = None, contest.kernels, contest.rkhs_norm
        if kernels is None or norm is None:
            found = estimate(
                [x for x, _ in contest.offline], [u for _, u in contest.offline], prior=contest.known, outputs=outputs,
                noise_std=plant.noise_std.clamp_min(1e-12),
            )  # fmt: skip
            kernels, norm = found.kernels, found.rkhs_norm
        sigma = plant.noise_std[list(outputs)]
        gp = GP.create(
            list(kernels), sigma.square(), nx=plant.nx, nu=plant.nu, noise_std=plant.noise_std, outputs=outputs,
            prior=contest.known, mode="theory",
        )  # fmt: skip
        bound = Mixture(rkhs_norm=norm, subgaussian=tuple(sigma.tolist()), delta=DELTA)
        rows = joined(contest.offline)
        first = joined(contest.offline, max(len(rows) // ROWS, 1))
        return GaussianBelief(found, ConfidenceSet(bound).update(gp.condition(first)))

    @property
    def dynamics(self) -> DynamicsModel:
        """See `Belief`."""
        return self.confidence.model

    @property
    def certified(self) -> ConfidenceSet:
        """See `Belief`."""
        return self.confidence

    @property
    def apart(self) -> None:
        """See `Belief`."""
        return None

    def told(self, episodes: Sequence[Trajectory]) -> GaussianBelief:
        """See `Belief`."""
        model = self.confidence.model.condition(joined(episodes, FLOWN))
        return replace(self, confidence=self.confidence.update(model))

    def outside(self, contest: Contest, x: Tensor, u: Tensor) -> Mapping[str, tuple[int, int]]:
        """Where f* is not in F_n: B, kernel or (with probability δ) the noise."""
        low, high = self.confidence.bounds(torch.cat([x, u], dim=-1))
        residual = (contest.plant.mean(x, u) - contest.known(x, u))[:, list(contest.outputs)]
        slack = 1e-12 * (1 + residual.abs())
        missed = ~((residual >= low - slack) & (residual <= high + slack)).all(-1)  # so NaN contains nothing
        name = "f* in F_n" if self.found is None else "f* in F_n (B, kernel estimated)"
        return {name: (int(missed.sum()), len(x))}


@short
@dataclass(frozen=True, slots=True, eq=False)
class EnsembleBelief:
    """Five probabilistic networks, trained anew after every episode."""

    ensemble: Ensemble
    episodes: tuple[Trajectory, ...]
    trained: Ensemble
    apart: Transitions

    @staticmethod
    def create(contest: Contest, *, members: int = 5) -> EnsembleBelief:
        """From the first data."""
        plant = contest.plant
        blank = Ensemble.create(
            plant.nx, plant.nu, generator=contest.generator(3), members=members, prior=contest.known,
            std_limits=(1e-4, 1e-1), training=Training(steps=1500, learning_rate=5e-3),
        )  # fmt: skip
        return EnsembleBelief._of(blank, contest.offline)

    @staticmethod
    def _of(blank: Ensemble, episodes: tuple[Trajectory, ...]) -> EnsembleBelief:
        rows = joined(episodes)
        kept = torch.arange(len(rows)) % APART == APART - 1
        train, rest = (rows.select(m) for m in (~kept, kept))
        return EnsembleBelief(blank, episodes, blank.condition(train), rest)

    @property
    def dynamics(self) -> DynamicsModel:
        """See `Belief`."""
        return self.trained

    @property
    def certified(self) -> Ensemble:
        """See `Belief`."""
        return self.trained

    def told(self, episodes: Sequence[Trajectory]) -> EnsembleBelief:
        """See `Belief`."""
        return self._of(self.ensemble, (*self.episodes, *episodes))

    def outside(self, contest: Contest, x: Tensor, u: Tensor) -> Mapping[str, tuple[int, int]]:
        """Where no member has f* within twice its deviation in every state."""
        mean, noise = self.trained.evaluate(x, u)
        near = ((mean - contest.plant.mean(x, u)).abs() <= 2 * noise + 1e-9).all(-1).any(0)
        return {"f* within 2σ of some member": (int((~near).sum()), len(x))}


def believe(name: ModelName | str, contest: Contest) -> Belief:
    """The belief of that name, after the contest's first data."""
    _require.one_of("believe", "model", name, ("gp", "ensemble"))
    return GaussianBelief.create(contest) if name == "gp" else EnsembleBelief.create(contest)
