"""One way to fit each kind of model to transitions, from one seed: what a comparison needs.

All learn the residual of one known part, and all but the ensembles are told one noise: the given one, or that of largest
marginal likelihood of a Gaussian process on a few hundred rows, whose kernels the two Gaussian processes share. Ensembles of 1,
3, 5 and 10 members are the first members of one ensemble of 10: members are trained independently (but for the one moment at
which they stop), so nothing is gained by training them again.
"""

from __future__ import annotations

import contextlib
import pickle
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from gpytorch.kernels import Kernel
from linear_operator.utils.errors import NotPSDError
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.data import Transitions
from gpsafe.models import GP, DynamicsModel, Ensemble, Normalizer, Training, identity_prior, zero_prior
from gpsafe.models._mlp import MLP
from gpsafe.models._prior import Prior
from gpsafe.models.dropout import Dropout
from gpsafe.models.laplace import LastLayerLaplace
from gpsafe.models.sparse_gp import SparseGP
from gpsafe.rkhs import kernels as forms

SIZES = (1, 3, 5, 10)
NOTHING = 1e-150  # what networks add to a state that is not learned, in its units


@dataclass(frozen=True)
class Effort:
    """How much is spent on a fit."""

    hyperparameters: int = 250
    """Rows for kernels and noise of the Gaussian processes."""
    iterations: int = 60
    """Steps of L-BFGS for them, from each of two starts; what has not settled by then is used as it is."""
    exact: int = 1000
    """Rows that the exact Gaussian process learns from, at most."""
    inducing: int = 100
    """Points of the sparse one, which learns from all rows."""
    hidden: tuple[int, ...] = (32, 32)
    """Widths of all networks."""
    steps: int = 2000
    """Gradient steps of a training."""


@short
@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A model, and what it cost: processor seconds of fitting, rows learnt from, bytes when stored."""

    name: str
    model: DynamicsModel
    seconds: float
    rows: int
    size: int


@dataclass(frozen=True, eq=False)
class Fitter:
    """Rows, known part and seed that all models share.

    Attributes:
        data: to learn from.
        seed: of all randomness.
        prior: known part; `identity_prior`: the state stays as it is.
        noise_std: (nx,) of the plant, if known.
        kernels: of the residual of every learned state, if known: then the exact Gaussian process is one of theory.
        effort: see there.
        outputs: learned states, all by default; the others are those of the known part.
    """

    data: Transitions
    seed: int = 0
    prior: Prior = identity_prior
    noise_std: Tensor | None = None
    kernels: tuple[Kernel, ...] | None = None
    effort: Effort = Effort()
    outputs: tuple[int, ...] | None = None

    @property
    def learned(self) -> tuple[int, ...]:
        """Learned states."""
        return tuple(range(self.nx)) if self.outputs is None else self.outputs

    @property
    def nx(self) -> int:
        """State dimension."""
        return self.data.x.shape[1]

    @property
    def nu(self) -> int:
        """Input dimension."""
        return self.data.u.shape[1]

    def _generator(self, salt: int) -> torch.Generator:
        return torch.Generator().manual_seed((1_000_003 * self.seed + salt) % 2**63)

    def some(self, count: int, salt: int) -> Transitions:
        """At most so many rows, drawn at random, in their order."""
        if count >= len(self.data):
            return self.data
        rows = torch.randperm(len(self.data), generator=self._generator(salt))[:count].sort().values
        return self.data.select(rows)

    @cached_property
    def process(self) -> GP:
        """The Gaussian process without data: kernels and noise given or of largest marginal likelihood.

        An output whose likelihood no attempt can maximise keeps the start: length-scales √d standard deviations of its inputs,
        a hundredth of its variance noise.
        """
        if self.kernels is not None and self.noise_std is not None:
            return self._process(self.kernels, self.noise_std.square()[list(self.learned)], self.noise_std)
        from botorch.exceptions import ModelFittingError
        from botorch.exceptions.warnings import OptimizationWarning

        from gpsafe.models.views import fit_hyperparameters  # BoTorch, which is slow to load

        rows = self.some(self.effort.hyperparameters, 1)
        learned = list(self.learned)
        residual = rows.x_next - self.prior(rows.x, rows.u)
        square = residual.square().mean(0).clamp_min(1e-300)
        spread = rows.z.std(0, correction=0)
        spread = torch.where(spread > 0, spread, torch.ones_like(spread))
        start = self.kernels or tuple(forms.rbf(spread * len(spread) ** 0.5, float(v)) for v in square[learned])
        noise = self._noise_of(square.sqrt(), 0.1) if self.noise_std is None else self.noise_std
        empty = self._process(start, noise.square()[learned], noise, mode="practical")
        fitted = empty.condition(rows)
        limits = {"optimizer_kwargs": {"options": {"maxiter": self.effort.iterations}}, "max_attempts": 2}
        for j in range(len(learned)):
            with contextlib.suppress(ModelFittingError), warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", OptimizationWarning
                )  # the better of two starts is taken, finished or not
                warnings.simplefilter("ignore", NumericalWarning)
                fitted = fit_hyperparameters(fitted, fit_noise=self.noise_std is None, outputs=[j], **limits)
        return self._process(fitted.kernels, fitted.regularizer, fitted.noise_std, mode="practical")

    def _process(self, kernels: Sequence[Kernel], regularizer: Tensor, noise: Tensor, mode: Any = None) -> GP:
        return GP.create(
            list(kernels), regularizer, nx=self.nx, nu=self.nu, noise_std=noise, outputs=self.outputs, prior=self.prior,
            mode=mode,
        )  # fmt: skip

    def _noise_of(self, residual: Tensor, share: float) -> Tensor:
        """A guess at the noise: a share of the residual's size where it is learned, all of it where the known part is right."""
        noise = residual.clone()
        noise[list(self.learned)] *= share
        return noise

    @cached_property
    def _ensembles(self) -> dict[bool, Ensemble]:
        return {}

    @property
    def noise(self) -> Tensor:
        """(nx,), given or of the process."""
        return self.process.noise_std if self.noise_std is None else self.noise_std

    def ensemble(self, members: int, *, prior: bool) -> Ensemble:
        """The first members of one ensemble of ten, on the known part or on none."""
        if prior not in self._ensembles:
            self._ensembles[prior] = self._trained(max(SIZES), self.prior if prior else zero_prior)
        whole = self._ensembles[prior]
        weights, biases = whole.network.weights, whole.network.biases
        first = MLP(tuple(w[:members] for w in weights), tuple(b[:members] for b in biases))
        return replace(whole, network=first)

    def _trained(self, members: int, prior: Prior) -> Ensemble:
        training = Training(epochs=1, steps=self.effort.steps, batch=64)
        empty = Ensemble.create(
            self.nx, self.nu, generator=self._generator(2 + (prior is zero_prior)), members=members,
            hidden=self.effort.hidden, prior=prior, training=training,
        )  # fmt: skip
        residual = (self.data.x_next - self.prior(self.data.x, self.data.u)).std(0, correction=0).clamp_min(1e-12)
        limits = 2 * torch.stack([1e-3 * residual, 2.0 * residual]).log()  # of the noise, in the units of every state
        found = replace(empty, log_var_limits=limits).condition(self.data)
        if self.outputs is None or prior is zero_prior:  # without a known part every state is learned
            return found
        scale, offset = found.targets.scale.clone(), found.targets.offset.clone()
        others = [j for j in range(self.nx) if j not in self.outputs]
        scale[others], offset[others] = NOTHING, 0.0  # so that the spread is the lower limit: the noise
        noise = self._noise_of(residual, 1.0) if self.noise_std is None else self.noise_std
        limits[0, others] = 2 * noise[others].clamp_min(1e-150).log()
        limits[1, others] = limits[0, others] + 1.0
        return replace(found, targets=Normalizer(offset, scale), log_var_limits=limits)

    def network(self, kind: type[Dropout] | type[LastLayerLaplace], salt: int) -> DynamicsModel:
        """A network that is told the noise."""
        empty = kind.create(
            self.nx, self.nu, noise_std=self.noise, generator=self._generator(salt),
            hidden=self.effort.hidden, steps=self.effort.steps, outputs=self.outputs, prior=self.prior,
        )  # fmt: skip
        return empty.condition(self.data)

    def sparse(self) -> SparseGP:
        """Of the same kernels and noise, on all rows.

        Inducing points spread out for one kernel may be too close for another, whose Gram matrix then has no factor: half as
        many are taken, until it has.
        """
        process, size = self.process, self.effort.inducing
        while True:
            empty = SparseGP.create(
                process.kernels, self.nx, self.nu, noise_std=process.noise_std, size=size, outputs=self.outputs,
                prior=self.prior,
            )  # fmt: skip
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", NumericalWarning)  # of jitter, which the family bears
                    return empty.condition(self.data)
            except NotPSDError:
                size //= 2
                if size == 0:
                    raise _require.fail("sparse-gp", "a Gram matrix with a Cholesky factor", "none") from None

    def fit(self, name: str) -> Fitted:
        """The model of that name in `MODELS`."""
        make = MODELS[_require.one_of("calibration.fit", "name", name, MODELS)]
        begun = time.process_time()
        model = make(self)
        seconds = time.process_time() - begun
        rows = model.num_data if isinstance(model, GP) else len(self.data)
        return Fitted(name, model, seconds, rows, len(pickle.dumps(model)))


MODELS: dict[str, Callable[[Fitter], DynamicsModel]] = {
    "gp": lambda f: f.process.condition(f.some(f.effort.exact, 3)),
    "sparse-gp": Fitter.sparse,
    **{f"ensemble-{m}": lambda f, m=m: f.ensemble(m, prior=True) for m in SIZES},
    **{f"ensemble-{m}-plain": lambda f, m=m: f.ensemble(m, prior=False) for m in SIZES},
    "dropout": lambda f: f.network(Dropout, 5),
    "laplace": lambda f: f.network(LastLayerLaplace, 6),
}
"""Every kind by name; "plain" ensembles predict the next state itself, the others its difference from the known part."""


def fit(names: Sequence[str], data: Transitions, *, seed: int = 0, **options: Any) -> tuple[Fitted, ...]:
    """Models by name, all on the same rows; options are those of `Fitter`.

    Work that several share, kernels and members, is in the seconds of the first that needs it.
    """
    fitter = Fitter(data, seed, **options)
    return tuple(fitter.fit(name) for name in names)
