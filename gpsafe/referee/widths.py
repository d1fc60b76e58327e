"""What each confidence bound makes of the claimed (k, B, R) on these rows: β, widths, and n* where there is a task."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.confidence.bounds import ConfidenceBound
from gpsafe.confidence.lineage import repetition
from gpsafe.confidence.registry import BOUNDS
from gpsafe.data import spaced
from gpsafe.models import GP
from gpsafe.planning.explore import sufficient_episodes
from gpsafe.referee.claim import Claim
from gpsafe.referee.rows import Rows
from gpsafe.referee.trials import of_form
from gpsafe.rkhs import kernels
from gpsafe.sets import Box
from gpsafe.systems.task import Task

POINTS = 200  # of the box
SATURATED = 0.9  # of B√k
EMPTY = "empty: kernel, B or R is false, up to δ"
NO_NUMBER = "no number at some point: squares of these numbers overflow"


@dataclass(frozen=True, slots=True)
class Width:
    """One bound on the posterior of all rows.

    Attributes:
        name: of the bound.
        status: "theorem", or why it is none here; a bound that refuses the model altogether has no numbers, nor has one whose
            band is empty (`EMPTY`), or not a number, at a point.
        beta: largest of the outputs; nan where the bound has none.
        at_rows, in_box: median half-width at the rows and at points drawn from their box, in units of what the output moves by
            (r.m.s.), the widest output.
        saturated: share of the box in which the bound says hardly more than |f| ≤ B√k.
        episodes: n* of theory §4 (vi); nan without a task.
    """

    name: str
    status: str
    beta: float = math.nan
    at_rows: float = math.nan
    in_box: float = math.nan
    saturated: float = math.nan
    episodes: float = math.nan


def widths(rows: Rows, claim: Claim, *, delta: float, task: Task | None = None, seed: int = 0) -> tuple[Width, ...]:
    """Every registered bound, on the rows from which nothing was chosen."""
    data = claim.unspent(rows)
    model, y, z = claim.model(data), claim.residuals(data), data.z
    low, high = z.amin(0), z.amax(0)
    generator = torch.Generator().manual_seed(seed)
    inside = low + (high - low) * torch.rand(POINTS, z.shape[1], dtype=torch.float64, generator=generator)
    box = Box(low, high)
    found = []
    for name in BOUNDS:
        unit = torch.ones_like(y[0])
        here = model
        try:
            if name == "chowdhury-gopalan":  # λ = 1 + 2/N where R = 1
                unit = torch.tensor(claim.noise, dtype=torch.float64)
                here = _normalised(claim, z, y)
            bound, status = _made(name, claim, here, box, delta)
            found.append(_measured(name, status, bound, here, y, z, inside, unit, claim, task))
        except (ValueError, RuntimeError) as error:
            found.append(Width(name, _require.told(error).removeprefix("ValueError: ")))
    return tuple(found)


def _normalised(claim: Claim, z: Tensor, y: Tensor) -> GP:
    """Outputs in units of their R: then ‖f/R‖ in the RKHS of k/R² is ‖f‖_k, and noise is 1-sub-Gaussian."""
    scaled = []
    for kernel, noise in zip(claim.kernels, claim.noise, strict=True):
        form = kernels.stationary(kernel)
        if form is None:
            raise _require.fail(
                "chowdhury-gopalan", "a stationary kernel, to be put in units of R", type(kernel).__name__
            )
        scaled.append(of_form(replace(form, variance=form.variance / noise**2)))
    n, p = y.shape
    empty = GP.create(scaled, 1 + 2 / n, nx=z.shape[1], nu=0, noise_std=1.0, outputs=range(p), mode="theory")
    return empty.condition_on(z, y / torch.tensor(claim.noise, dtype=torch.float64))


def _made(name: str, claim: Claim, model: GP, box: Box, delta: float) -> tuple[ConfidenceBound, str]:
    kind, options = BOUNDS[name], {"rkhs_norm": claim.norm, "subgaussian": claim.noise, "delta": delta}
    extra: dict[str, Any] = {}
    if name == "constant":
        return kind(), "by hand: no theorem"  # type: ignore[call-arg]
    if name == "lederer":
        options, extra = {"delta": delta}, {"lower": tuple(box.lower.tolist()), "upper": tuple(box.upper.tolist())}
    if name == "chowdhury-gopalan":
        options["subgaussian"], extra = 1.0, {"max_data": model.num_data}
    bound = kind(**options, **extra)
    reason = bound.refusal(model) or repetition(model)
    if reason is None:
        return bound, "theorem" if name != "lederer" else "theorem, for f drawn from the process"
    if name in ("actsafe", "srinivas"):
        return kind(**options, **extra, unchecked=True), f"no theorem here: it needs {reason}"
    raise _require.fail(name, reason, "this model")


def _measured(
    name: str, status: str, bound: ConfidenceBound, model: GP, y: Tensor, z: Tensor, inside: Tensor, unit: Tensor,
    claim: Claim, task: Task | None,
) -> Width:  # fmt: skip
    def half(points: Tensor) -> Tensor:
        low, high = bound.interval(model, points)
        return 0.5 * (high - low) * unit

    spread = y.square().mean(0).sqrt()
    at_rows, in_box = half(z[:: max(1, len(z) // POINTS)]), half(inside)
    most = torch.stack([kernels.diagonal(k, inside).sqrt() for k in claim.kernels], -1)
    most = most * torch.tensor(claim.norm, dtype=torch.float64)
    beta = float(bound.beta(model).max()) if name not in ("convex-program", "noise-energy", "lederer") else math.nan
    episodes = math.nan
    if task is not None and status == "theorem" and math.isfinite(beta):
        episodes = _episodes(beta, z, claim, task)
    least = float(torch.cat([at_rows, in_box]).min())
    if math.isnan(least):
        return Width(name, NO_NUMBER)
    if least < -1e-9 * float(spread.max()):
        return Width(name, EMPTY)
    relative = ((at_rows / spread).median(0).values.max(), (in_box / spread).median(0).values.max())
    saturated = float((in_box >= SATURATED * most).all(-1).double().mean())
    return Width(name, status, beta, float(relative[0]), float(relative[1]), saturated, episodes)


def _episodes(beta: float, z: Tensor, claim: Claim, task: Task) -> float:
    """n* for a gap of a hundredth of T·C, on the rows as a finite domain: of all kernels the largest σ and eigenvalues."""
    z, noise = z[:: max(1, len(z) // POINTS)], torch.tensor(claim.noise, dtype=torch.float64)
    prior = torch.stack([kernels.diagonal(k, z).amax().sqrt() for k in claim.kernels])
    spectra = torch.stack([torch.linalg.eigvalsh(kernels.cross(k, z, z)) for k in claim.kernels])
    return sufficient_episodes(
        epsilon=0.01 * task.total_ceiling, beta_of=beta, horizon=task.horizon, ceiling=task.cost.ceiling,
        noise_std=noise, prior_std=prior, regularizer=float(noise.min().square()),
        domain_eigenvalues=spectra.amax(0).clamp_min(0.0), outputs=len(noise),
    )  # fmt: skip


def sets_of(rows: Rows, claim: Claim, *, delta: float, most: int) -> ConfidenceSet:
    """F_n of the default bound on at most so many rows from which nothing was chosen, evenly taken."""
    data = claim.unspent(rows)
    keep = spaced(len(data), most).long()
    data = data.select(keep)
    bound = Mixture(rkhs_norm=claim.norm, subgaussian=claim.noise, delta=delta)
    return ConfidenceSet(bound).update(claim.model(data))
