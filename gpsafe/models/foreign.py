"""A trained GPyTorch or BoTorch model as a `GP`, with its data: the way in; :mod:`gpsafe.models.views` is the way out.

What is read is y_j = m_j + s_j g_j((z − o)/c): g_j has a kernel κ_j, noise ν_j and an affine mean aᵀ(·) + b; o, c are the
model's input normalisation, m, s its outcome standardisation (0 and 1 without). In the units of the data that is the kernel
s² κ((z − o)/c, (z′ − o)/c), whose length-scales are c times those of κ, λ = s² ν, and the known mean
m + s(aᵀ(z − o)/c + b), which goes into the prior. So y has the same posterior in both.

Kernels are rebuilt from their numbers, so nothing of the source moves with them; none counts as stated (`kernels.is_stated`),
for it was fitted to these very data, and the result is practical. A model's `forward` is the user's code and may do more than
its parts say (features of inputs, say): the posterior is compared with the source's before it is returned.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import gpytorch
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe import _require
from gpsafe.models._prior import Prior, shifted, zero_prior
from gpsafe.models.gp import GP
from gpsafe.rkhs.kernels import describe, exact

WHERE = "from_gpytorch"
SAME = 1e-6  # of the prior's and the targets' size: how far the two posteriors may differ


def from_gpytorch(model: Any, *, nu: int = 0, outputs: Sequence[int] | None = None, prior: Prior = zero_prior) -> GP:
    """The posterior of a trained ``gpytorch`` ExactGP or ``botorch`` SingleTaskGP as a `GP` of mode "practical".

    Taken are single-task models, batches of independent outputs (as batch shape, or with a MultitaskGaussianLikelihood of rank
    0), and lists of such models with the same inputs; sums, products and multiples of RBF, Matérn, periodic, rational quadratic
    and linear kernels; zero, constant and linear means; BoTorch's Normalize, InputStandardize and Standardize. `model` is left
    as it is.

    Args:
        model: y(z), z = (x, u) of nx + nu entries; it keeps its likelihood itself.
        nu: how many of the inputs are u; the others are x. 0 makes this regression on z.
        outputs: which state each output is (default: the first ones).
        prior: known mean to which the model was the residual, y = x⁺ − prior(x, u), as in `GP.create`.

    Returns:
        A GP whose `predict` gives prior + y. Its `posterior` is of the residual without the model's own mean, which stands in
        the `prior`.

    Raises:
        ValueError: that names what cannot be carried: another kernel, mean, likelihood or transform, noise that differs from
            observation to observation, outputs with inputs of their own, a posterior that is not that of the parts.
    """
    nu = _require.count(WHERE, "nu", nu, minimum=0)
    parts, asks = _read(model)
    inputs = parts[0].inputs
    if not all(p.inputs.shape == inputs.shape and torch.equal(p.inputs, inputs) for p in parts):
        raise _require.fail(WHERE, "the same inputs for all outputs (else one GP for each)", "inputs that differ")
    nx = inputs.shape[-1] - nu
    if nx < len(parts):
        got = f"{len(parts)} outputs of {inputs.shape[-1]} inputs, nu = {nu}"
        raise _require.fail(WHERE, "outputs that are entries of the state x, z = (x, u)", got)
    chosen = _require.positions(WHERE, "outputs", range(len(parts)) if outputs is None else outputs, nx)
    if len(chosen) != len(parts):
        raise _require.fail(WHERE, f"{len(parts)} outputs in 0..{nx - 1}", chosen)
    slope, offset = inputs.new_zeros(nx, nx + nu), inputs.new_zeros(nx)
    noise_std = inputs.new_zeros(nx)
    for j, part in zip(chosen, parts, strict=True):
        slope[j], offset[j], noise_std[j] = part.slope, part.offset, max(part.noise, 0.0) ** 0.5
    empty = GP.create(
        [p.kernel for p in parts], [p.noise for p in parts], nx=nx, nu=nu, noise_std=noise_std, outputs=chosen,
        prior=shifted(prior, slope, offset), mode="practical",
    )  # fmt: skip
    found = empty.condition_on(inputs, torch.stack([p.targets for p in parts], dim=-1))
    _compare(found, parts, asks)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """One output in the units of the data: y = slope·z + offset + residual; `targets` (n,) are of the residual."""

    kernel: Kernel
    noise: float
    slope: Tensor
    offset: float
    inputs: Tensor
    targets: Tensor


Ask = Callable[[Tensor], tuple[Tensor, Tensor]]  # (q, d) → mean and variance of some outputs, (q, m)


def _read(model: Any) -> tuple[list[_Part], list[Ask]]:
    if isinstance(getattr(model, "models", None), torch.nn.ModuleList):
        found = [_read(one) for one in model.models]
        return [p for parts, _ in found for p in parts], [ask for _, asks in found for ask in asks]
    if not isinstance(model, gpytorch.models.ExactGP):
        raise _require.fail(WHERE, "a gpytorch ExactGP, a botorch SingleTaskGP or a list of them", type(model).__name__)
    if model.train_inputs is None or model.train_targets is None:
        raise _require.fail(WHERE, "a model with training data", "none")
    source = _copy(model)
    for name in ("mean_module", "covar_module"):
        if getattr(source, name, None) is None:
            raise _require.fail(
                WHERE, "a model with mean_module and covar_module", f"{type(model).__name__}: no {name}"
            )
    given = cast(tuple[Tensor, ...], source.train_inputs)
    targets = cast(Tensor, source.train_targets).detach()
    if len(given) != 1:
        raise _require.fail(WHERE, "one tensor of training inputs", len(given))
    tasks = isinstance(source.likelihood, gpytorch.likelihoods.MultitaskGaussianLikelihood)
    targets = targets.mT if tasks else targets
    if targets.ndim > 2:
        raise _require.fail(WHERE, "a batch of outputs at most", f"targets of shape {tuple(targets.shape)}")
    targets = torch.atleast_2d(targets)
    m, inputs = len(targets), given[0].detach().reshape(-1, *given[0].shape[-2:])
    if not bool((inputs == inputs[:1]).all()):
        raise _require.fail(WHERE, "the same inputs for all outputs (else one GP for each)", "inputs that differ")
    parts = []
    for j in range(m):
        o, c = _input_transform(getattr(source, "input_transform", None), inputs.shape[-1], j)
        mean, spread = _outcome_transform(getattr(source, "outcome_transform", None), j)
        a, b = _affine_mean(source.mean_module, inputs.shape[-1], j)
        slope, offset = spread * a / c, mean + spread * (b - float((a * o / c).sum()))
        kernel = gpytorch.kernels.ScaleKernel(
            _kernel(cast(Kernel, source.covar_module), c, o, j), outputscale_constraint=exact()
        ).double()
        kernel.outputscale = torch.tensor(spread**2, dtype=torch.float64)
        noise = spread**2 * _noise(source.likelihood, j)
        residual = mean + spread * targets[j] - (inputs[0] @ slope + offset)
        parts.append(_Part(kernel, noise, slope, offset, inputs[0], residual))
    return parts, [_asker(source, m)]


def _copy(model: gpytorch.models.ExactGP) -> Any:
    """A copy in float64 with its own units of inputs, apart from the source and its caches."""
    kept = model.prediction_strategy
    model.prediction_strategy = None  # holds tensors with a history, which nobody can copy
    try:
        return copy.deepcopy(model).train().double()  # training inputs in their own units first: those are converted
    except RuntimeError as error:
        raise _require.fail(WHERE, "a model that can be copied", _require.told(error)) from error
    finally:
        model.prediction_strategy = kept


def _asker(source: Any, m: int) -> Ask:
    def ask(z: Tensor) -> tuple[Tensor, Tensor]:
        settings = gpytorch.settings
        with (
            torch.no_grad(),
            settings.fast_computations(False, False, False),
            settings.fast_pred_var(False),
            settings.skip_posterior_variances(False),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            source.eval()
            found = source.posterior(z) if hasattr(source, "posterior") else source(z)
            mean, variance = found.mean, found.variance
        if hasattr(source, "posterior") or isinstance(found, gpytorch.distributions.MultitaskMultivariateNormal):
            return mean.reshape(len(z), m), variance.reshape(len(z), m)
        return mean.reshape(m, len(z)).T, variance.reshape(m, len(z)).T

    return ask


def _compare(found: GP, parts: Sequence[_Part], asks: Sequence[Ask]) -> None:
    """Refuses a posterior that is not the source's, at some of the data and at points between and around them."""
    inputs = parts[0].inputs
    low, high = inputs.amin(0), inputs.amax(0)
    draw = torch.rand(24, inputs.shape[-1], dtype=inputs.dtype, generator=torch.Generator().manual_seed(0)).to(
        low.device
    )
    z = torch.cat([inputs[:: max(1, len(inputs) // 24)], low + (high - low) * (1.5 * draw - 0.25)])
    try:
        answers = [ask(z) for ask in asks]
    except Exception as error:
        raise _require.fail(WHERE, "a model that predicts", _require.told(error)) from error
    mean, variance = (torch.cat(one, dim=-1) for one in zip(*answers, strict=True))
    own_mean, own_std = found.posterior(z)
    size, own = torch.ones_like(mean[0]), own_mean.clone()
    for j, part in enumerate(parts):
        own[:, j] += z @ part.slope + part.offset
        size[j] = (part.targets + inputs @ part.slope + part.offset).abs().max()
    largest = found.prior_variance(z).amax(0)  # 0 at the origin alone, if the kernel is linear
    wrong = ((mean - own).abs() / (size + largest.sqrt())).max(), ((variance - own_std.square()).abs() / largest).max()
    if not all(float(w) <= SAME for w in wrong):  # not max: it may pass over NaN
        got = f"mean and variance that differ by {float(wrong[0]):.2g} and {float(wrong[1]):.2g} of their size"
        raise _require.fail(WHERE, "a model whose forward is N(mean_module, covar_module) of its inputs", got)


# ------------------------------------------------------------------ its parts
def _pick(value: Any, trailing: int, j: int) -> Tensor:
    """Entry j of a batch of outputs of a parameter with `trailing` own dimensions; one that all share."""
    tensor = cast(Tensor, value).detach().double()
    rows = tensor.reshape(-1, *tensor.shape[tensor.ndim - trailing :])
    return rows[j if len(rows) > 1 else 0]


def _noise(likelihood: Any, j: int) -> float:
    kind, where = type(likelihood), gpytorch.likelihoods
    if kind is where.GaussianLikelihood:
        return float(_pick(likelihood.noise, 1, j))
    if kind is where.FixedNoiseGaussianLikelihood:
        values = _pick(likelihood.noise, 1, j)
        if bool((values == values[0]).all()):
            return float(values[0])
        got = f"fixed noise variances from {float(values.min()):.4g} to {float(values.max()):.4g}"
        raise _require.fail(WHERE, "one noise variance for all observations (see condition_on's noise_scale)", got)
    if kind is where.MultitaskGaussianLikelihood and likelihood.rank == 0:
        noise = float(likelihood.noise.detach().squeeze()) if likelihood.has_global_noise else 0.0
        return noise + (float(likelihood.task_noises.detach().reshape(-1)[j]) if likelihood.has_task_noise else 0.0)
    raise _require.fail(WHERE, "a GaussianLikelihood (of independent outputs)", kind.__name__)


def _affine_mean(module: Any, d: int, j: int) -> tuple[Tensor, float]:
    """(a, b) of a prior mean aᵀz + b."""
    kind, zero = type(module), torch.zeros(d, dtype=torch.float64)
    if kind is gpytorch.means.ZeroMean:
        return zero, 0.0
    if kind is gpytorch.means.ConstantMean:
        return zero, float(_pick(module.constant, 0, j))
    if kind is gpytorch.means.LinearMean:
        bias = 0.0 if module.bias is None else float(_pick(module.bias, 1, j))
        return _pick(module.weights, 2, j).squeeze(-1), bias
    raise _require.fail(WHERE, "a ZeroMean, ConstantMean or LinearMean", kind.__name__)


def _input_transform(transform: Any, d: int, j: int) -> tuple[Tensor, Tensor]:
    """(o, c) of z ↦ (z − o)/c."""
    o, c = torch.zeros(d, dtype=torch.float64), torch.ones(d, dtype=torch.float64)
    if transform is None:
        return o, c
    from botorch.models.transforms import input as known

    if (
        type(transform) not in (known.AffineInputTransform, known.Normalize, known.InputStandardize)
        or transform.reverse
    ):
        raise _require.fail(WHERE, "an input transform Normalize or InputStandardize", type(transform).__name__)
    places = transform.indices if hasattr(transform, "indices") else slice(None)
    o[places] = _pick(transform.offset, 1, j).broadcast_to(o[places].shape)
    c[places] = _pick(transform.coefficient, 1, j).broadcast_to(c[places].shape)
    return o, c


def _outcome_transform(transform: Any, j: int) -> tuple[float, float]:
    """(m, s) of y = m + s·(what the model sees)."""
    if transform is None:
        return 0.0, 1.0
    from botorch.models.transforms.outcome import Standardize

    if type(transform) is not Standardize:
        raise _require.fail(WHERE, "an outcome transform Standardize", type(transform).__name__)
    return float(transform.means.reshape(-1)[j]), float(transform.stdvs.reshape(-1)[j])


def _kernel(kernel: Kernel, c: Tensor, o: Tensor, j: int, *, inner: bool = False) -> Kernel:
    """κ((z − o)/c, (z′ − o)/c) of output j, built anew; `inner` inside a ScaleKernel, which has restricted the inputs."""
    kind, own = type(kernel), gpytorch.kernels
    active = cast(Tensor | None, kernel.active_dims)
    if active is not None and not inner:
        c, o = c[active], o[active]
    dims = None if active is None else tuple(int(i) for i in active)
    if kind is own.ScaleKernel:
        base = _kernel(cast(Kernel, kernel.base_kernel), c, o, j, inner=True)
        scaled = own.ScaleKernel(base, outputscale_constraint=exact(), active_dims=dims).double()
        scaled.outputscale = _pick(kernel.outputscale, 0, j)
        return scaled
    if kind in (own.AdditiveKernel, own.ProductKernel):
        found: Any = cast(Any, kind)(*(_kernel(cast(Kernel, term), c, o, j) for term in cast(Any, kernel).kernels))
        found.active_dims = active
        return found
    if kind is own.LinearKernel:
        if bool((o != 0).any()):
            raise _require.fail(
                WHERE, "inputs that a LinearKernel sees unshifted (k is not invariant)", "an input shift"
            )
        linear = own.LinearKernel(len(c), variance_constraint=exact(), active_dims=dims).double()
        linear.variance = (_pick(kernel.variance, 1, j) / c.square()).reshape(1, -1)
        return linear
    extra: dict[str, Any] = {}
    if kind is own.MaternKernel:
        extra["nu"] = kernel.nu
    elif kind is own.PeriodicKernel:
        extra["period_length_constraint"] = exact()
    elif kind is own.RQKernel:
        extra["alpha_constraint"] = exact()
    elif kind is not own.RBFKernel:
        expected = "sums, products and multiples of RBF, Matern, periodic, rational quadratic and linear kernels"
        raise _require.fail(WHERE, expected, describe(kernel))
    built: Any = kind(ard_num_dims=len(c), active_dims=dims, lengthscale_constraint=exact(), **extra).double()
    scales = _pick(kernel.lengthscale, 1, j).broadcast_to(c.shape)
    if kind is own.PeriodicKernel:  # its length-scale divides a sine, which has no unit
        built.period_length = (_pick(kernel.period_length, 1, j) * c).reshape(1, -1)
        built.lengthscale = scales.reshape(1, -1).clone()
        return built
    built.lengthscale = (scales * c).reshape(1, -1)
    if kind is own.RQKernel:
        built.alpha = _pick(cast(Any, kernel).alpha, 1, j)
    return built
