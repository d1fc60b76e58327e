"""Length-scales, noise and B from recorded data: numbers to begin with, which no theorem supports.

The residual y = x⁺ − prior(x, u) of each learned output is fitted by a Gaussian process of maximal marginal likelihood; along
each axis the length-scale is then shortened, by `shrink` and by further such factors as long as the data do not reject it
(log-likelihood within 3 of the fit's). For the RKHS of an RBF kernel holds that of every longer length-scale, while a function
may have no norm at all in the RKHS of one longer than its own. With μ_n the posterior mean of all rows, μ_{n/2} that of the
first half,

    B = margin · ‖μ_n‖_k · growth,      growth = max(1, ‖μ_n‖_k / ‖μ_{n/2}‖_k):

a norm that still grows with the data has not been seen whole. Rows held out (the last ones) test this: kernel and B of the
earlier rows alone give a bound, `Mixture`, that has to contain the others up to their noise. The B that is returned is the
larger one, of the earlier rows or of all.

**What this cannot know.** ‖f‖_k is a property of f everywhere, and of scales that data do not resolve: a bump between the rows,
or where no row is, leaves no trace; neither does a wrong kernel family. Passing the check refutes nothing, and rows that
resemble the others refute little. On random functions of known norm (30 centres, uniform rows in [−1, 1]^d, d ≤ 3, 40 and 150
rows, noise 0.001 and 0.1, length-scales 0.3 and 0.8) B was large enough in all of 288 draws with the kernel given; of 288
with a fitted one 234 were `settled`, and in 227 of these it was. Data of a robot are no such draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short, table
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.data import Transitions, spaced
from gpsafe.models import GP
from gpsafe.models._prior import Prior, known_part, zero_prior
from gpsafe.rkhs import kernels as forms
from gpsafe.verdict import Outcome, Verdict

SETTLED = 1.25  # growth of the norm with the second half of the rows up to which it counts as seen whole
OPEN = 0.3  # of the prior variance, up to which the earlier rows determine the later ones
WIDEST = 2.0  # longest length-scale, in units of the range of the rows
NATS, POWERS = 3.0, 6  # what the data do not reject, and how often at most a length-scale is shortened
ROWS = 300  # of the marginal likelihood
LARGEST = 1500  # rows that norms and the check are computed from


@short
@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """What `estimate` found; heuristic until its user declares it.

    Attributes:
        kernels: one a learned output; they count as fitted (`gpsafe.rkhs.kernels.is_stated` is false).
        rkhs_norm: B of each, margin and growth included.
        noise_std: (nx,): of learned outputs the given or the fitted deviation, of others that of their residual.
        outputs: learned states.
        rows: how many were used.
        growth: see the module, one a learned output.
        unseen: share of the prior variance that the earlier rows leave open at the rows held out, median, largest output.
        held_out: VIOLATED: a row that was held out, or the rows themselves, refute B, kernel or noise.
        declared: see `declare`.
        prior: the known part p that the rows were taken about: all of this is of f* − p.
    """

    kernels: tuple[Kernel, ...]
    rkhs_norm: tuple[float, ...]
    noise_std: Tensor
    outputs: tuple[int, ...]
    rows: int
    margin: float
    growth: tuple[float, ...]
    unseen: float
    held_out: Verdict
    declared: bool = False
    prior: Prior = zero_prior

    @property
    def settled(self) -> bool:
        """Whether the norm hardly grew with the second half of the rows, early rows determine late ones, and none refutes B."""
        seen = max(self.growth) <= SETTLED and self.unseen <= OPEN
        return seen and self.held_out.outcome is not Outcome.VIOLATED

    @property
    def heuristic(self) -> str | None:
        """Why nothing that rests on it is guaranteed; None once it is declared."""
        if self.declared:
            return None
        told = f"B and kernels were estimated from {self.rows} rows, which proves neither"
        if self.held_out.outcome is Outcome.VIOLATED:
            return f"{told}; rows held out refute them"
        return told if self.settled else f"{told}; the data have not seen all of the function: its norm still grows"

    def declare(self) -> Estimate:
        """The same, believed: ‖f*_j − prior_j‖_k ≤ B_j for these kernels, and none of these rows goes into the model.

        It is the user who says so; learners then call their episodes guaranteed *under this assumption*.

        Raises:
            ValueError: if the rows held out refute it.
        """
        if self.held_out.outcome is Outcome.VIOLATED:
            raise _require.fail(
                "Estimate.declare", "an estimate that its own data do not refute", self.held_out.witness
            )
        return replace(self, declared=True)

    def _repr_html_(self) -> str:
        rows = [(j, b, g) for j, b, g in zip(self.outputs, self.rkhs_norm, self.growth, strict=True)]
        return table(self.heuristic or "declared by the user", rows, head=("output", "B", "growth of the norm"))


def estimate(
    states: Any,
    inputs: Any,
    *,
    prior: Prior = zero_prior,
    outputs: Sequence[int] | None = None,
    kernels: Kernel | Sequence[Kernel] | None = None,
    noise_std: Any = None,
    margin: float = 2.0,
    shrink: float = 0.7,
    held_out: float = 0.25,
) -> Estimate:
    """Kernels, B and noise of a plant from what was measured: see the module for what that is worth.

    Args:
        states: (T + 1, nx) of an episode, or of several: (E, T + 1, nx) or a list of arrays. In the order in which they were
            measured.
        inputs: (T, nu) of each.
        prior: known part, (*b, nx), (*b, nu) → (*b, nx).
        outputs: states to learn (default: all).
        kernels: given ones are kept as they are, and B alone is estimated; None: RBF, one length-scale an axis.
        noise_std: known deviations, (nx,) or a number; fitted if None.
        margin: factor ≥ 1 on the norm of the fit.
        shrink: factor in (0, 1) on fitted length-scales, see the module.
        held_out: share of the rows, the last ones, that only test.

    Raises:
        ValueError: on too few rows, and where an axis of z = (x, u) never moves, which no length-scale can be told from.
    """
    data = _rows(states, inputs)
    options = {"kernels": kernels, "noise_std": noise_std, "margin": margin, "shrink": shrink, "held_out": held_out}
    return estimate_rows(data, prior=prior, outputs=outputs, **options)


def estimate_rows(
    data: Transitions,
    *,
    prior: Prior = zero_prior,
    outputs: Sequence[int] | None = None,
    kernels: Kernel | Sequence[Kernel] | None = None,
    noise_std: Any = None,
    margin: float = 2.0,
    shrink: float = 0.7,
    held_out: float = 0.25,
) -> Estimate:
    """As `estimate`, from transitions in the order in which they were measured, whatever runs they belong to."""
    where = "estimate"
    nx, nu = data.x.shape[1], data.u.shape[1]
    margin = _require.number(where, "margin", margin, minimum=1.0)
    _require.probability(where, "shrink", shrink)
    if not 0 < _require.number(where, "held_out", held_out) <= 0.5:
        raise _require.fail(where, "held_out in (0, 0.5]", held_out)
    if len(data) < 12:
        raise _require.fail(where, "at least 12 transitions", len(data))
    learned = tuple(range(nx)) if outputs is None else _require.positions(where, "outputs", outputs, nx)
    whole = data.x_next - known_part(where, prior, data.x, data.u)
    residual, z = whole[:, list(learned)], data.z
    sigma = None if noise_std is None else _require.positive(where, "noise_std", noise_std).expand(nx)[list(learned)]
    keep = spaced(len(z), LARGEST).long()
    z, residual = z[keep], residual[keep]
    cut = len(z) - math.ceil(held_out * len(z))
    fitted = _fit(z[:cut], residual[:cut], kernels, sigma, len(learned)) if kernels is None or sigma is None else None
    deviation = sigma if fitted is None else fitted.noise_std[: len(learned)]
    assert deviation is not None
    chosen = _given(kernels, len(learned)) if kernels is not None or fitted is None else _shortened(fitted, z, shrink)
    empty = _model(chosen, deviation, nx + nu, len(learned), mode="theory")
    earlier = empty.condition_on(z[:cut], residual[:cut])
    first, growth = _norm(earlier, deviation)
    norm, later = _norm(earlier.condition_on(z[cut:], residual[cut:]), deviation)
    growth = torch.maximum(growth, later)
    left = earlier.posterior(z[cut:])[1].square() / empty.prior_variance(z[cut:])
    verdict = _check(earlier, margin * first, deviation, z[cut:], residual[cut:])
    norm = margin * torch.maximum(first, norm)
    every = whole.std(0)
    every[list(learned)] = deviation
    return Estimate(
        chosen, tuple(norm.tolist()), every, learned, len(data), margin, tuple(growth.tolist()),
        float(left.median(0).values.max()), verdict, prior=prior,
    )  # fmt: skip


def _rows(states: Any, inputs: Any) -> Transitions:
    """All transitions of one episode or of several."""
    where = "estimate"
    for name, given in (("states", states), ("inputs", inputs)):
        if isinstance(given, str | Mapping) or not hasattr(given, "__len__"):
            raise _require.fail(where, f"numbers in {name}", repr(given)[:60])
    single = len(inputs) and _require.floats(where, "inputs", inputs[0]).ndim == 1
    if not len(inputs) or len(states) != len(inputs) + int(single):
        expected = "states (T + 1, nx) and inputs (T, nu), or as many episodes of each"
        raise _require.fail(where, expected, f"{len(states)} states and {len(inputs)} inputs")
    parts = []
    for x, u in [(states, inputs)] if single else zip(states, inputs, strict=True):
        x, u = _require.floats(where, "states", x), _require.floats(where, "inputs", u)
        if x.ndim != 2 or u.ndim != 2 or len(x) != len(u) + 1:
            got = f"{tuple(x.shape)} and {tuple(u.shape)}"
            raise _require.fail(where, "states (T + 1, nx) and inputs (T, nu) of each episode", got)
        parts.append(Transitions(x[:-1], u, x[1:]))
    return Transitions(*(torch.cat([getattr(p, name) for p in parts]) for name in ("x", "u", "x_next")))


def _model(kernels: Sequence[Kernel], sigma: Tensor, dim: int, p: int, *, mode: Any) -> GP:
    """Of the residual alone, as regression on z."""
    noise = torch.zeros(max(dim, p), dtype=torch.float64)
    noise[:p] = sigma
    return GP.create(list(kernels), sigma.square(), nx=dim, nu=0, noise_std=noise[:dim], outputs=range(p), mode=mode)


def _given(kernels: Any, p: int) -> tuple[Kernel, ...]:
    found = (kernels,) * p if isinstance(kernels, Kernel) else tuple(kernels)
    if len(found) != p:
        raise _require.fail("estimate", f"{p} kernels", len(found))
    return found


def _fit(z: Tensor, residual: Tensor, kernels: Any, sigma: Tensor | None, p: int) -> GP:
    """The model of maximal marginal likelihood; of given kernels, the noise alone is taken from it."""
    from gpsafe.models.views import fit_hyperparameters  # BoTorch, which a learner does not load

    span = z.amax(0) - z.amin(0)
    if kernels is None and not bool((span > 0).all()):
        still = (span == 0).nonzero().reshape(-1).tolist()
        raise _require.fail("estimate", "rows that move along every axis of z (or kernels that leave it out)", still)
    keep = spaced(len(z), ROWS).long()
    z, residual = z[keep], residual[keep]
    scale = residual.square().mean(0).clamp_min(1e-300)
    start = [forms.rbf(0.3 * span, float(v)) for v in scale] if kernels is None else _given(kernels, p)
    noise = 0.1 * scale.sqrt() if sigma is None else sigma
    model = _model(start, noise, z.shape[1], p, mode="practical").condition_on(z, residual)
    return fit_hyperparameters(model, fit_noise=sigma is None)


def _shortened(fitted: GP, z: Tensor, shrink: float) -> tuple[Kernel, ...]:
    """Kernels with `shrink` times the fitted length-scales, at most `WIDEST` ranges; along each axis with the shortest of such
    powers that the data do not reject by themselves: log-likelihood within `NATS` of the fit's.
    """
    assert fitted.inputs is not None and fitted.targets is not None
    longest, found = WIDEST * (z.amax(0) - z.amin(0)), []
    for j, kernel in enumerate(fitted.kernels):
        form = forms.stationary(kernel)
        assert form is not None
        scales = torch.minimum(form.lengthscale.expand(z.shape[1]), longest)
        best, noise = float(fitted.log_marginal_likelihood()[j]), fitted.regularizer[j : j + 1].sqrt()
        powers = torch.ones_like(scales)
        for axis in range(len(scales)):
            for power in range(2, POWERS + 1):
                tried = scales.clone()
                tried[axis] *= shrink**power
                model = _model([forms.rbf(tried, float(form.variance))], noise, z.shape[1], 1, mode="practical")
                model = model.condition_on(fitted.inputs, fitted.targets[:, j : j + 1])
                if float(model.log_marginal_likelihood()[0]) < best - NATS:
                    break
                powers[axis] = power
        found.append(forms.as_fitted(forms.rbf(scales * shrink**powers, float(form.variance))))
    return tuple(found)


def _norm(model: GP, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """‖μ_n‖_k · growth, and growth, both (p,): see the module. At least σ/√k, for what is all noise."""
    assert model.inputs is not None and model.targets is not None
    n = model.num_data
    empty = _model(model.kernels, sigma, model.nx, model.num_outputs, mode="practical")
    half = empty.condition_on(model.inputs[: n // 2], model.targets[: n // 2]).posterior_norm()
    size = torch.maximum(model.posterior_norm(), sigma / model.prior_variance(model.inputs[:1])[0].sqrt())
    growth = (size / half.clamp_min(1e-300)).clamp(1.0, math.sqrt(n))
    return size * growth, growth


def _check(earlier: GP, norm: Tensor, sigma: Tensor, z: Tensor, residual: Tensor) -> Verdict:
    """By how much a held-out observation, or its bounds themselves, leave F_n of the earlier rows, more than noise explains.

    Each of m rows has noise below R √(2 ln(2m/δ)), all at once with probability 1 − δ if it is R-sub-Gaussian, δ = 0.01.
    """
    delta = 0.01
    bound = Mixture(rkhs_norm=tuple(norm.tolist()), subgaussian=tuple(sigma.tolist()), delta=delta)
    low, high = ConfidenceSet(bound).update(earlier).bounds(z)
    noise = sigma * math.sqrt(2 * math.log(2 * residual.numel() / delta))
    excess = torch.maximum(torch.maximum(low - residual, residual - high) - noise, low - high)
    worst = int(excess.argmax())
    row, output = divmod(worst, excess.shape[1])
    amount = float(excess.flatten()[worst])
    told = f"held-out row {row} of {len(z)}, output {output}: {amount:.3g} outside"
    return Verdict(amount, amount, 0.0, witness=told if amount > 0 else f"none of {len(z)} rows is outside")
