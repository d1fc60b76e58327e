"""Rigorous ranges of posterior means, deviations and confidence bands over boxes, to a tolerance (theory §5.7, §5.8).

    found = ranges.mean(model, (lower, upper))       # boxes of z = (x, u), (N, d) ×2, thousands at once
    found.lower <= μ(z) <= found.upper               # for all z in the box, for every learned output, rounding included
    found.argmin, found.argmax                       # points of the box, where μ is ≤ attained_low and ≥ attained_high

`box` is one `gpsafe.sets.Box`, or the lower and upper ends of many. Kernels: RBF, Matérn 5/2, 3/2, ½ with any output scale,
length-scales and restriction to inputs, of at most six active inputs; others are refused by name. The known part is *not*
included: these are ranges of the learned residual, as `GP.posterior` and `ConfidenceSet.bounds` give it
(`gpsafe.confidence.regions` adds the known part).

**Tolerance.** `gap` is 1 − (width between attained values)/(width of the enclosure). A box is left when both ends are within
tol/2 of it, when rounding is all that is left (then the gap may be 1, as over a box of one point), or when `cells` cells have
been enclosed for an end: the enclosure is valid all the same, and `gap` says how good it is.

**What is lost.** A box with NaN, infinities or lower > upper has the enclosure [−∞, ∞], attained nothing (NaN) and a gap of ∞;
other boxes do not notice. Ranges are as sound as the posterior they are of: for a model that claims nothing they claim nothing
of f*.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.confidence._branch import extremes
from gpsafe.confidence._cells import Band, Deviation, Generation, Mean, Objective, Output
from gpsafe.confidence._taylor import EPS, MAX_DIM, Array, chord
from gpsafe.confidence.bounds import ConfidenceBound
from gpsafe.confidence.lineage import inconsistency
from gpsafe.confidence.set import ConfidenceSet
from gpsafe.models.gp import GP
from gpsafe.rkhs import kernels
from gpsafe.sets import Box

TOL, CELLS = 0.01, 4096


@short
@dataclass(frozen=True, slots=True, eq=False)
class Range:
    """Per box and learned output, (*b, p).

    Attributes:
        lower, upper: enclose the function over the whole box.
        attained_low, attained_high: the function is at most and at least that at `argmin` and `argmax` (for a band: l_n, h_n).
        argmin, argmax: points of the box, (*b, p, d).
        gap: 1 − (attained_high − attained_low)⁺/(upper − lower), 0 where nothing is enclosed but a number.
    """

    lower: Tensor
    upper: Tensor
    attained_low: Tensor
    attained_high: Tensor
    argmin: Tensor
    argmax: Tensor
    gap: Tensor


def mean(model: GP, box: Box | tuple[Tensor, Tensor], *, tol: float = TOL, cells: int = CELLS) -> Range:
    """The posterior mean of the residual of every learned output."""
    model = _checked("ranges.mean", model)

    def one(j: int) -> _Task:
        output = Output.of(model, j)

        def drift(lower: Array, upper: Array) -> tuple[Array, Array]:
            carried = output.carried(_deviation_above(output, lower, upper))
            return carried, carried

        return _Task(Mean(output), drift)

    return _ranges("ranges.mean", model, box, one, lambda j: (0.0, 0.0), tol, cells)


def std(model: GP, box: Box | tuple[Tensor, Tensor], *, tol: float = TOL, cells: int = CELLS) -> Range:
    """The posterior standard deviation of every learned output (latent, without noise)."""
    model = _checked("ranges.std", model)
    root = [float(np.sqrt(_form(model, j).variance)) for j in range(model.num_outputs)]
    shared: dict[int, _Task] = {}

    def one(j: int) -> _Task:
        return shared.setdefault(model._index[j], _Task(Deviation(Output.of(model, j))))

    return _ranges(
        "ranges.std", model, box, one, lambda j: (root[j] * (1 - 2 * EPS), root[j] * (1 + 2 * EPS)), tol, cells
    )


def band(confidence: ConfidenceSet, box: Box | tuple[Tensor, Tensor], *, tol: float = TOL, cells: int = CELLS) -> Range:
    """From inf l_n to sup h_n over the box, the band of `ConfidenceSet.bounds`: on the event of the set it contains f* there.

    Contains the band as `ConfidenceSet.bounds` computes it as well as the exact one. An empty F_n (l_n > h_n, theory §2.10) is
    not noticed here.

    Raises:
        ValueError: if the bound is not of the form μ ± βσ, a generation not a `GP`, or the set was edited since
            (`ConfidenceSet.edited`).
    """
    bound, newest = confidence.bound, confidence.model
    confidence.unedited("ranges.band")
    if type(bound).interval is not ConfidenceBound.interval:
        raise _require.fail("ranges.band", "a bound of the form mean ± beta·std", bound.name)
    generations = [_checked("ranges.band", generation) for generation in confidence.generations]
    norms = bound.norms(newest.num_outputs)
    caps = [float(norms[j]) * float(np.sqrt(_form(newest, j).variance)) * (1 + 128 * EPS) for j in range(len(norms))]

    def one(j: int) -> _Task:
        parts = tuple(_generation(bound, g, j) for g in generations if g.inputs is not None)
        return _Task(Band(parts, caps[j]), lambda lower, upper: _band_drift(parts, lower, upper), caps[j])

    def prior(j: int) -> tuple[float, float]:
        beta, std = float(bound.beta(newest)[j]), float(np.sqrt(_form(newest, j).variance))
        half = min(caps[j], (beta * std + _slack(bound, newest, j)) * (1 + 1e-9))
        return -half, half

    return _ranges("ranges.band", generations[-1], box, one, prior, tol, cells)


@dataclass(frozen=True, slots=True, eq=False)
class Interpolation:
    """What multilinear interpolation between nodes leaves out, per learned output, (p,).

    With w_j ≥ 0, Σ w_j = 1 the weights of the 2^d nodes z_j around z: |μ(z) − Σ w_j μ(z_j)| ≤ `mean`, and σ(z) ≤ Σ w_j σ(z_j) +
    `std`, for values at the nodes as `GP.posterior` computes them.
    """

    mean: Tensor
    std: Tensor


def interpolation(model: GP, step: Tensor | Sequence[float]) -> Interpolation:
    """For a regular grid with spacings h = `step` (d,): a posterior that is tabulated once, with a proven error (theory §5.10).

    ‖φ_z − Σ w_j φ_{z_j}‖ ≤ √v Σ_i c(h_i/ℓ_i) over the axes, with c(η) = √3η²/8 (RBF), 5η²/8, (12√3)^{1/2}η^{3/2}/4, (2(1 −
    e^{−η/2}))^{1/2} (Matérn 5/2, 3/2, ½). There is no such lower bound of σ.
    """
    where = "ranges.interpolation"
    model = _checked(where, model)
    h = _require.nonnegative(where, "step", _require.floats(where, "step", step))
    _require.shape(where, "step", h, (model.nx + model.nu,))
    means, stds = [], []
    for j in range(model.num_outputs):
        form = _form(model, j)
        eta = h.cpu().numpy()[_active(model, j)] / form.lengthscale.cpu().numpy()
        apart = float(np.sqrt(form.variance) * chord(form.nu, eta).sum()) * (1 + 64 * EPS)
        rounding = model.inputs is not None
        output = Output.of(model, j) if rounding else None
        top = np.array([np.sqrt(form.variance)])
        means.append(apart * output.norm + float(output.carried(top)[0]) + output.direct if output else 0.0)
        stds.append(apart + float(output.widened(top)[0]) if output else 0.0)
    return Interpolation(torch.tensor(means, dtype=torch.float64), torch.tensor(stds, dtype=torch.float64))


def ends(where: str, box: Box | tuple[Tensor, Tensor], dim: int) -> tuple[Tensor, Tensor]:
    """Lower and upper ends of one box or many, (*b, d) ×2; their order and finiteness are not looked at."""
    if isinstance(box, Box):
        return _require.last_dim(where, "box", box.lower, dim), box.upper
    if not isinstance(box, tuple) or len(box) != 2:
        raise _require.fail(where, "a Box or (lower, upper)", type(box).__name__)
    lower, upper = (_require.points(where, name, end, dim) for name, end in zip(("lower", "upper"), box, strict=True))
    return lower, _require.shape(where, "upper", upper, tuple(lower.shape))


def finest_scale(model: GP) -> Tensor:
    """Per input 1/ℓ, the largest of the kernels', (d,)."""
    scale = torch.zeros(model.nx + model.nu, dtype=torch.float64)
    for j in range(model.num_outputs):
        form, active = _form(model, j), torch.from_numpy(_active(model, j))
        scale[active] = torch.maximum(scale[active], 1.0 / form.lengthscale.cpu().expand(len(active)))
    return scale


# ------------------------------------------------------------------------------------------------ inside
@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """What is enclosed for one learned output, or for several that share it."""

    objective: Objective
    drift: Callable[[Array, Array], tuple[Array, Array]] | None = None
    """how far the function is from the objective, and how far what is to be contained may be, over boxes"""
    cap: float = np.inf
    """of its size"""


def _form(model: GP, j: int) -> kernels.Stationary:
    form = kernels.stationary(model.kernels[j])
    assert form is not None
    return form


def _checked(where: str, model: GP) -> GP:
    """On the CPU."""
    if type(model) is not GP:
        raise _require.fail(where, "an exact GP", type(model).__name__)
    reason = inconsistency(model)
    if reason is not None:
        raise _require.fail(where, reason, "a model whose kernels or lambda moved")
    for kernel in model.kernels:
        form = kernels.stationary(kernel)
        if form is None:
            raise _require.fail(where, "stationary kernels (RBF, Matérn)", kernels.describe(kernel))
        active = model.nx + model.nu if form.dims is None else len(form.dims)
        if active > MAX_DIM:
            raise _require.fail(where, f"kernels of at most {MAX_DIM} active inputs", active)
    there = model.regularizer.device if model.inputs is None else model.inputs.device
    return model if there.type == "cpu" else model.to("cpu")


def _slack(bound: ConfidenceBound, model: GP, j: int) -> float:
    slack = bound.slack(model)
    return 0.0 if slack is None else float(slack[j])


def _generation(bound: ConfidenceBound, model: GP, j: int) -> Generation:
    return Generation(Output.of(model, j), float(bound.beta(model)[j]) * (1 + 4 * EPS), _slack(bound, model, j))


def _deviation_above(output: Output, lower: Array, upper: Array) -> Array:
    """≥ σ over boxes, by the metric from the centre."""
    center = 0.5 * lower + 0.5 * upper
    scaled = np.maximum(upper - center, center - lower) * output.inverse
    metric = output.form.metric(torch.from_numpy(np.square(scaled).sum(-1))).numpy() * (1 + 1e-12)
    _, most = Deviation(output).at(center, np.zeros(len(center), dtype=np.intp))
    return np.minimum(np.where(np.isnan(metric), np.inf, most + metric), output.std)


def _band_drift(parts: tuple[Generation, ...], lower: Array, upper: Array) -> tuple[Array, Array]:
    """Of the exact band from the objective, and of the computed one, whose half-width is rounded up by the stated margins."""
    inner, outer = np.zeros((2, len(lower)))
    for one in parts:
        most = _deviation_above(one.output, lower, upper)
        wider = one.output.widened(most)
        carried = one.output.carried(most + wider)
        inner = np.maximum(inner, carried)
        outer = np.maximum(outer, 3 * carried + one.beta * wider)
    return inner, outer + 64 * EPS * np.abs(outer)


def _ranges(
    where: str,
    model: GP,
    box: Box | tuple[Tensor, Tensor],
    task: Callable[[int], _Task],
    prior: Callable[[int], tuple[float, float]],
    tol: float,
    cells: int,
) -> Range:
    """All boxes and outputs; `prior(j)` are the constants of a model without data."""
    lower, upper = ends(where, box, model.nx + model.nu)
    _require.positive(where, "tol", tol)
    _require.count(where, "cells", cells)
    device, shape = lower.device, lower.shape[:-1]
    low, high = (end.detach().cpu().reshape(-1, end.shape[-1]).numpy() for end in (lower, upper))
    good = np.asarray(np.isfinite(low).all(-1) & np.isfinite(high).all(-1) & (low <= high).all(-1))
    columns: list[tuple[Array, ...]] = []
    done: dict[_Task, tuple[Array, ...]] = {}
    with np.errstate(all="ignore"), torch.no_grad():
        for j in range(model.num_outputs):
            if model.inputs is None or not good.any():
                columns.append(_constant(low, high, good, prior(j)))
                continue
            one = task(j)
            if one not in done:
                done[one] = _solve(one, low, high, good, _active(model, j), tol, cells)
            columns.append(done[one])
    fields = [torch.from_numpy(np.stack(column, axis=1)).to(device) for column in zip(*columns, strict=True)]
    return Range(*(field.reshape(*shape, *field.shape[1:]) for field in fields))


def _active(model: GP, j: int) -> NDArray[np.intp]:
    form = _form(model, j)
    return np.arange(model.nx + model.nu) if form.dims is None else form.dims.cpu().numpy()


def _constant(low: Array, high: Array, good: NDArray[np.bool_], ends: tuple[float, float]) -> tuple[Array, ...]:
    center = np.where(good[:, None], 0.5 * low + 0.5 * high, np.nan)
    values = [
        np.where(good, end, lost) for end, lost in zip((*ends, *ends), (-np.inf, np.inf, np.nan, np.nan), strict=True)
    ]
    return (*values, center, center, np.where(good, 0.0, np.inf))


def _solve(
    task: _Task, low: Array, high: Array, good: NDArray[np.bool_], active: NDArray[np.intp], tol: float, cells: int
) -> tuple[Array, ...]:
    a, b = np.ascontiguousarray(low[good][:, active]), np.ascontiguousarray(high[good][:, active])
    found = extremes(task.objective, a, b, tol=tol, cells=cells)
    inside, outside = (0.0, 0.0) if task.drift is None else task.drift(a, b)
    lower = np.maximum(found.bound[:, 0] - outside, -task.cap)
    upper = np.minimum(found.bound[:, 1] + outside, task.cap)
    least, most = found.attained[:, 0] + inside, found.attained[:, 1] - inside
    width, inner = upper - lower, np.maximum(most - least, 0.0)
    gap = np.where(width > 0, 1 - inner / np.where(width > 0, width, 1.0), 0.0)
    values = []
    for value, lost in zip((lower, upper, least, most, gap), (-np.inf, np.inf, np.nan, np.nan, np.inf), strict=True):
        full = np.full(len(low), lost)
        full[good] = np.where(np.isnan(value), lost, value)
        values.append(full)
    points = []
    for side in (0, 1):
        point = np.where(good[:, None], 0.5 * low + 0.5 * high, np.nan)
        point[np.ix_(good, active)] = found.where[:, side]
        points.append(point)
    return (*values[:4], *points, values[4])
