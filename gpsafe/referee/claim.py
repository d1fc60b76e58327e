"""What is on trial, (k, B, R) of every learned output, and which of it was stated; the rest is chosen from the first rows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.algorithms.from_data import Estimate, estimate_rows
from gpsafe.confidence import ConfidenceSet
from gpsafe.data import Transitions
from gpsafe.models import GP, identity_prior
from gpsafe.models._prior import Prior, known_part
from gpsafe.referee.rows import Rows
from gpsafe.referee.trials import Design
from gpsafe.rkhs import kernels as forms

SLIGHT = 1e-2  # of what states move by: R of a plant that shows no noise
FLOOR = 1e-4  # smallest R in units of the signal that the arithmetic of the trials carries
ESTIMABLE = 12  # rows from which anything can be chosen


@short
@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """(k, B, R) of every learned output.

    Attributes:
        kernels, norm, noise: k, B and R, one a learned output.
        outputs: learned states; the others are said to equal the known part.
        prior: known part.
        stated: which of "kernel", "B", "R" were stated; the others come from the first rows.
        notes: what a reader must know.
    """

    kernels: tuple[Kernel, ...]
    norm: tuple[float, ...]
    noise: tuple[float, ...]
    outputs: tuple[int, ...]
    prior: Prior
    stated: frozenset[str]
    notes: tuple[str, ...] = ()

    def residuals(self, data: Transitions) -> Tensor:
        """y = x⁺ − prior(x, u) of the learned outputs, (n, p)."""
        return (data.x_next - known_part("verify", self.prior, data.x, data.u))[:, list(self.outputs)]

    def design(self, rows: Rows, y: Tensor, place: int, delta: float) -> Design:
        """One output as the tests see it; y (n,) are its residuals, of which the first set the forecasters' scale."""
        z, noise, kernel = rows.data.z, self.noise[place], self.kernels[place]
        size = y[: rows.first].square().mean() - noise**2
        scale = float(torch.clamp(size, min=0.1 * noise**2))
        spent = len(self.stated) < 3
        return Design(kernel, self.norm[place], noise, delta, z, rows.first, rows.links, scale, spent)

    def model(self, data: Transitions) -> GP:
        """The posterior of all rows, kernels and λ = R² as claimed."""
        nx, nu = data.x.shape[1], data.u.shape[1]
        whole = torch.zeros(nx, dtype=torch.float64)
        noise = torch.tensor(self.noise, dtype=torch.float64)
        whole[list(self.outputs)] = noise
        empty = GP.create(
            list(self.kernels), noise.square(), nx=nx, nu=nu, noise_std=whole, outputs=self.outputs, prior=self.prior,
            mode="theory",
        )  # fmt: skip
        return empty.condition(data)

    def unspent(self, rows: Rows) -> Transitions:
        """The rows from which nothing was chosen: all of them, or those that judge."""
        if len(self.stated) == 3:
            return rows.data
        return rows.data.select(slice(rows.first, None))

    def words(self, name: str) -> str:
        """Whether a part was stated, for reports."""
        return "stated" if name in self.stated else "chosen from the first rows"


def claimed(
    rows: Rows,
    *,
    model: GP | ConfidenceSet | Estimate | None = None,
    kernels: Kernel | Sequence[Kernel] | None = None,
    rkhs_norm: Any = None,
    subgaussian: Any = None,
    prior: Prior | None = None,
    outputs: Sequence[int] | None = None,
) -> Claim:
    """What was stated, by a model or by itself, and what the first rows suggest for the rest (`gpsafe.algorithms.estimate`).

    Raises:
        ValueError: where statements contradict each other, and where rows do not move.
    """
    where = "verify"
    for name, value in (("kernels", kernels), ("prior", prior), ("outputs", outputs)):
        if model is not None and value is not None:
            raise _require.fail(where, f"either a model or {name}, which a model states itself", "both")
    if isinstance(model, ConfidenceSet):
        bound, model = model.bound, model.model
        rkhs_norm = bound.norms(model.num_outputs) if rkhs_norm is None and bound.frequentist else rkhs_norm
        subgaussian = bound.noise(model.num_outputs) if subgaussian is None and bound.frequentist else subgaussian
    if isinstance(model, Estimate):
        rkhs_norm = model.rkhs_norm if rkhs_norm is None else rkhs_norm
    if model is not None:
        _require.kind(where, "model", model, GP if not isinstance(model, Estimate) else Estimate)
        outputs, kernels, prior = model.outputs, model.kernels, model.prior
        subgaussian = model.noise_std[list(model.outputs)] if subgaussian is None else subgaussian
    known = identity_prior if prior is None else prior
    nx = rows.data.x.shape[1]
    learned = tuple(range(nx)) if outputs is None else _require.positions(where, "outputs", outputs, nx)
    p = len(learned)
    residual = (rows.data.x_next - known_part(where, known, rows.data.x, rows.data.u))[:, list(learned)]
    still = [j for j, c in zip(learned, residual.T, strict=True) if bool((c == c[0]).all())]
    if still:
        raise _require.fail(where, "states whose change varies (leave others out: outputs=...)", f"constant {still}")
    own = None
    if kernels is not None:  # as a model takes them: one an output, of (x, u)
        sizes = {"nx": nx, "nu": rows.data.u.shape[1]}
        own = GP.create(kernels, 1.0, noise_std=1.0, outputs=learned, prior=known, mode="theory", **sizes).kernels
    given = {"kernel": own, "B": _vector("rkhs_norm", rkhs_norm, p), "R": _vector("subgaussian", subgaussian, p)}
    stated = frozenset(name for name, value in given.items() if value is not None)
    found, told = None, tuple[str, ...]()
    if len(stated) < 3:
        if rows.first < ESTIMABLE:
            expected = f"at least {3 * ESTIMABLE} transitions, or kernel, B and R all stated"
            raise _require.fail(where, expected, f"{len(rows.data)} and {', '.join(sorted(stated)) or 'none of them'}")
        first = rows.data.select(slice(rows.first))
        sigma = None
        if given["R"] is not None:
            sigma = torch.ones(nx, dtype=torch.float64)
            sigma[list(learned)] = torch.tensor(given["R"], dtype=torch.float64)
        found, told = _chosen(first, prior=known, outputs=learned, kernels=own, noise_std=sigma)
    chosen = tuple(forms.freeze(k) for k in (own or found.kernels))  # type: ignore[union-attr]
    norm = given["B"] or found.rkhs_norm  # type: ignore[union-attr]
    noise = given["R"] or tuple(found.noise_std[list(learned)].tolist())  # type: ignore[union-attr]
    noise, notes = _lifted(noise, residual[: rows.first], learned)
    stated = stated - {"R"} if notes else stated  # its size is that of the first rows
    return Claim(chosen, norm, noise, learned, known, stated, (*told, *notes))


def _chosen(first: Transitions, **options: Any) -> tuple[Estimate, tuple[str, ...]]:
    """`estimate_rows`; where noise cannot be told from none, which no fit survives, with a hundredth of what states move by.

    Raises:
        ValueError: if no kernel fits even so.
    """
    from botorch.exceptions import ModelFittingError, OptimizationWarning  # loaded by the fit anyway

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizationWarning)
        try:
            return estimate_rows(first, **options), ()
        except ModelFittingError:
            moved = (first.x_next - known_part("verify", options["prior"], first.x, first.u)).square().mean(0).sqrt()
        try:
            sigma = SLIGHT * torch.where(moved > 0, moved, 1.0)
            options["noise_std"] = sigma
            found = estimate_rows(first, **options)
        except ModelFittingError as error:
            raise _require.fail(
                "verify", "rows that some RBF kernel fits (or kernels=...)", _require.told(error)
            ) from None
    told = (
        f"The rows show no noise that a fit could tell from none; R was set to {SLIGHT:g} of what each state moves by."
    )
    return found, (told,)


def _vector(name: str, value: Any, size: int) -> tuple[float, ...] | None:
    if value is None:
        return None
    found = torch.atleast_1d(_require.positive("verify", name, value))
    if found.numel() not in (1, size):
        raise _require.fail("verify", f"{name}, one number or {size}", found.tolist())
    return tuple(found.expand(size).tolist())


def _lifted(
    noise: tuple[float, ...], first: Tensor, learned: tuple[int, ...]
) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """R at least `FLOOR` of the signal: what is R-sub-Gaussian is so for every larger R, and smaller ones drown in rounding."""
    least = (FLOOR * first.square().mean(0).sqrt()).tolist()
    lifted = [j for j, r, low in zip(learned, noise, least, strict=True) if r < low]
    if not lifted:
        return noise, ()
    told = f"R of states {lifted} is below {FLOOR:g} of what they move by; the tests use that, which is a weaker claim."
    return tuple(max(r, low) for r, low in zip(noise, least, strict=True)), (told,)
