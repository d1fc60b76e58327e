"""The same posterior as a BoTorch model and as a GPyTorch model, and hyperparameter fitting through BoTorch.

A view is for *choosing* inputs: BoTorch's own samplers add jitter and its distributions floor variances at
1e-10. No certified number passes through it.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast, get_args

import gpytorch
import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.exceptions import ModelFittingError, OptimizationWarning
from botorch.models.gpytorch import GPyTorchModel
from botorch.models.model import FantasizeMixin, Model
from botorch.posteriors import Posterior
from botorch.posteriors.gpytorch import GPyTorchPosterior
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from linear_operator import to_linear_operator
from linear_operator.operators import BlockDiagLinearOperator
from torch import Tensor

from gpsafe import _require, linalg
from gpsafe.models import _fitting
from gpsafe.models._gp_checks import differentiating
from gpsafe.models._prior import known_part
from gpsafe.models.gp import GP
from gpsafe.rkhs import kernels as kernel_functions


class BotorchView(Model, FantasizeMixin):
    """A `GP` as a BoTorch model over z = (x, u). Make it with :func:`as_botorch`.

    ``posterior(X)`` has the mean and the joint covariance of our posterior at X (*b, q, d);
    `observation_noise` adds λ_j, the noise variance that conditioning supposes (noise scale 1). Fantasies are conditioned on
    in closed form and differentiably.
    """

    def __init__(
        self,
        model: GP,
        *,
        residual: bool,
        indices: tuple[int, ...],
        fantasy: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.residual = residual
        self.indices = indices
        self.fantasy = fantasy
        self.likelihood = None

    @property
    def num_outputs(self) -> int:
        """Number of outputs shown."""
        return len(self.indices)

    @property
    def batch_shape(self) -> torch.Size:
        """() for the posterior itself, the batch of fantasies otherwise."""
        return torch.Size() if self.fantasy is None else self.fantasy[1].shape[:-2]

    def subset_output(self, idcs: list[int]) -> BotorchView:
        """The view of some of the outputs."""
        fantasy = None if self.fantasy is None else (self.fantasy[0], self.fantasy[1][..., idcs])
        indices = tuple(self.indices[i] for i in idcs)
        return BotorchView(self.model, residual=self.residual, indices=indices, fantasy=fantasy)

    def _base(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (*b, m, p) and covariance (*b, p, m, m) of the posterior without fantasies."""
        chosen = list(self.indices)
        mean = self.model.residual_mean(z)[..., chosen]
        if not self.residual:
            x, u = z[..., : self.model.nx], z[..., self.model.nx :]
            known = known_part("BotorchView.posterior", self.model.prior, x, u)
            mean = mean + known[..., list(self.model.outputs)][..., chosen]
        return mean, self.model.covariance(z)[..., chosen, :, :]

    def _noise(self) -> Tensor:
        return self.model.regularizer[list(self.indices)]

    def _moments(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if self.fantasy is None:
            return self._base(z)
        points, values = self.fantasy  # (*b, q, d), (*f, q, p)
        batch = torch.broadcast_shapes(points.shape[:-2], z.shape[:-2])
        q, m = points.shape[-2], z.shape[-2]
        joint = torch.cat([points.expand(*batch, q, -1), z.expand(*batch, m, -1)], dim=-2)
        mean, covariance = self._base(joint)
        noise = self._noise().reshape(-1, 1, 1) * torch.eye(q, dtype=z.dtype, device=z.device)
        factor = linalg.cholesky(covariance[..., :q, :q] + noise, "BotorchView.fantasize")
        half = linalg.solve_lower(factor, covariance[..., :q, q:])  # (*b, p, q, m)
        gap = (values - mean[..., :q, :]).mT.unsqueeze(-1)  # (*f, p, q, 1)
        update = (half.mT @ linalg.solve_lower(factor.expand(*gap.shape[:-2], q, q), gap)).squeeze(-1).mT
        mean = mean[..., q:, :] + update
        covariance = covariance[..., q:, q:] - half.mT @ half
        return mean, covariance.expand(*mean.shape[:-2], *covariance.shape[-3:])

    def posterior(  # type: ignore[override]
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
        **_: Any,
    ) -> Posterior:
        """Posterior at X (*b, q, d) as BoTorch wants it."""
        if output_indices is not None:
            return self.subset_output(output_indices).posterior(X, None, observation_noise, posterior_transform)
        X = self.model._query("BotorchView.posterior", X)
        mean, covariance = self._moments(X)
        if observation_noise is not False:
            noise = self._noise() if observation_noise is True else torch.as_tensor(observation_noise, dtype=mean.dtype)
            diagonal = noise.to(mean).expand(mean.shape).mT  # (*b, p, q)
            covariance = covariance + torch.diag_embed(diagonal)
        if self.num_outputs == 1:
            distribution = MultivariateNormal(mean.squeeze(-1), to_linear_operator(covariance.squeeze(-3)))
        else:
            blocks = BlockDiagLinearOperator(to_linear_operator(covariance), block_dim=-3)
            distribution = MultitaskMultivariateNormal(mean, blocks, interleaved=False)
        posterior = GPyTorchPosterior(distribution=distribution)
        return posterior if posterior_transform is None else posterior_transform(posterior)

    def condition_on_observations(self, X: Tensor, Y: Tensor, **_: Any) -> BotorchView:
        """The view that has also seen Y (*f, q, p) at X (*b, q, d), f a batch over b; `self` is unchanged.

        A fantasy: differentiable in X and Y, batched, O((n + q)²). Use `GP.condition` for recorded data.
        """
        X = self.model._query("BotorchView.condition_on_observations", X)
        Y = Y.to(X)
        if self.fantasy is not None:
            points, values = self.fantasy
            batch = torch.broadcast_shapes(points.shape[:-2], X.shape[:-2])
            outer = torch.broadcast_shapes(values.shape[:-2], Y.shape[:-2])
            X = torch.cat([points.expand(*batch, *points.shape[-2:]), X.expand(*batch, *X.shape[-2:])], dim=-2)
            Y = torch.cat([values.expand(*outer, *values.shape[-2:]), Y.expand(*outer, *Y.shape[-2:])], dim=-2)
        return BotorchView(self.model, residual=self.residual, indices=self.indices, fantasy=(X, Y))


def as_botorch(model: GP, *, residual: bool = False) -> BotorchView:
    """The posterior as a BoTorch model: acquisition functions, optimisers and fantasies take it.

    Args:
        model: the posterior, with or without data.
        residual: show the learned residual; otherwise prior + residual of the learned outputs, as
            `GP.predict` does.
    """
    return BotorchView(model, residual=residual, indices=tuple(range(model.num_outputs)))


class GPyTorchView(gpytorch.models.ExactGP, GPyTorchModel):  # type: ignore[misc]
    """Zero mean, our kernel, noise variance λ. Make it with :func:`as_gpytorch`."""

    _num_outputs = 1

    def __init__(self, inputs: Tensor | None, targets: Tensor | None, kernel: gpytorch.kernels.Kernel, noise: float):
        likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=kernel_functions.exact()).double()
        likelihood.noise = torch.tensor(noise, dtype=torch.float64)
        super().__init__(inputs, targets, likelihood)
        self.mean_module = gpytorch.means.ZeroMean()
        self.covar_module = kernel

    def forward(self, z: Tensor) -> MultivariateNormal:
        """Prior at z."""
        return MultivariateNormal(cast(Tensor, self.mean_module(z)), self.covar_module(z))


def as_gpytorch(model: GP, output: int = 0) -> GPyTorchView:
    """One learned output's residual as a ``gpytorch`` ExactGP in evaluation mode, with the same data, kernel
    and λ.
    """
    if not 0 <= output < model.num_outputs:
        raise _require.fail("as_gpytorch", f"output in 0..{model.num_outputs - 1}", output)
    if model.noise_scale is not None:
        raise _require.fail("as_gpytorch", "equal noise in every observation (one likelihood noise)", "a noise_scale")
    targets = None if model.targets is None else model.targets[:, output].clone()
    kernel = copy.deepcopy(model.kernels[output])
    view = GPyTorchView(model.inputs, targets, kernel, float(model.regularizer[output]))
    return view.double().eval()


@differentiating
def fit_hyperparameters(
    model: GP,
    *,
    fit_noise: bool = True,
    minimum_noise: float = 1e-6,
    outputs: Sequence[int] | None = None,
    optimizer: Callable[..., Any] | None = None,
    **options: Any,
) -> GP:
    """Kernel hyperparameters (and λ) of maximal marginal likelihood, by BoTorch: a *heuristic* posterior.

    Refitting changes the RKHS, which voids every all-time statement: the result has mode "practical", and
    confidence bounds refuse it unless told ``unchecked=True``, which marks their output. A theory-mode model
    is refused here.

    **Units.** Data, kernel and result stay in the units given. What the optimiser moves is standardised: a length-scale (or
    period) is s·softplus(raw), s the standard deviation of its inputs (their root mean square if it serves several), an
    output variance or λ is v·softplus(raw), v the mean square of the targets, a linear variance (v/s²)·softplus(raw); m
    factors of a product have v^(1/m) each. It starts from the kernel given, from values of standardised data (length-scale
    √d·s for d inputs, variance v, λ = v/100) and from the likeliest of several multiples of those length-scales, and the
    largest likelihood wins: targets × 10⁵ or inputs × 10³ give the same fit in their units. A parameter with a constraint of
    its own keeps that constraint and its value in all starts; priors are read in the units given. A fit that is no likelier
    than noise of variance v alone is warned of: targets with a mean far beyond their spread have it in the known part.

    Args:
        model: a practical-mode GP with data; its kernels are one of the starting points and bring their own priors
            and constraints.
        fit_noise: also fit λ_j, and set the noise_std of the fitted states to √λ_j.
        minimum_noise: smallest λ_j to consider, relative to the variance of the targets.
        outputs: positions among the learned outputs to fit (default: all).
        optimizer: passed to ``botorch.fit.fit_gpytorch_mll``, like `options`.

    Raises:
        ValueError: on a theory-mode model, one without data or one with noise scales.
        botorch.exceptions.ModelFittingError: if every attempt of the optimiser fails from all starts; one that ends
            abnormally does not count.
    """
    where = "fit_hyperparameters"
    if model.mode != "practical":
        raise _require.fail(where, 'a GP of mode "practical" (theory mode freezes its hyperparameters)', model.mode)
    if model.inputs is None or model.targets is None:
        raise _require.fail(where, "a model with data", "none")
    lowest = float(_require.positive(where, "minimum_noise", minimum_noise))
    if optimizer is not None:
        options["optimizer"] = optimizer
    kernels, noise, noise_std = list(model.kernels), model.regularizer.clone(), model.noise_std.clone()
    for j in range(model.num_outputs) if outputs is None else outputs:
        floor = lowest * float(model.targets[:, j].var(correction=0)) if fit_noise else None
        fits = [_fitting.fit(as_gpytorch(model, j), floor, start, **options) for start in get_args(_fitting.Start)]
        found = [fit for fit in fits if not isinstance(fit, ModelFittingError)]
        if not found:
            raise cast(ModelFittingError, fits[0])
        reached, kernels[j], value = max(found, key=lambda fit: fit[0])
        if reached <= _fitting.noise_alone(model.targets[:, j]) + 1e-6:
            warnings.warn(
                f"{where}: learned output {j}: no likelier than noise alone", OptimizationWarning, stacklevel=2
            )
        if fit_noise:
            noise[j] = value
            noise_std[model.outputs[j]] = math.sqrt(value)
    empty = GP.create(
        kernels,
        noise,
        nx=model.nx,
        nu=model.nu,
        noise_std=noise_std,
        outputs=model.outputs,
        prior=model.prior,
        mode="practical",
    )
    return empty.condition_on(model.inputs, model.targets)
