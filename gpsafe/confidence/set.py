"""Confidence sets F_n with running intersection (theory §2.9, §2.10).

What is kept is the band, l_n ≤ f ≤ h_n. F_n itself is smaller: its members lie in the ellipsoid of every generation, too, which
the bounds that use gradients need (theory §5.4).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._pinned import numbers_of, same_numbers
from gpsafe._show import short, table
from gpsafe.assumptions import Assumption, Believed
from gpsafe.confidence.bounds import ConfidenceBound
from gpsafe.confidence.convex_program import BallProgram
from gpsafe.confidence.dual_program import Program, Spectrum
from gpsafe.confidence.functionals import functional_beta
from gpsafe.confidence.history import is_prefix, posterior_history
from gpsafe.confidence.lineage import Lineage, inconsistency, repetition
from gpsafe.confidence.rounding import Rounding
from gpsafe.data import Transitions
from gpsafe.models._prior import known_part
from gpsafe.models.gp import GP
from gpsafe.rkhs import kernels
from gpsafe.verdict import Verdict

EMPTY = 1e-9  # of B√k(z, z), the size of f in any units: l_n may exceed h_n by rounding only
SIZES = 1e-100, 1e300  # of f: below, k(z, z) underflows where μ does not (z² of a linear kernel); ∞ has no share
DEVIATIONS = 10.0  # of Gaussian noise one row in 10^22 is farther off
RECORDED = 1e-6  # of the size of a state, that a recording in float32 may lose


@dataclass(frozen=True, slots=True)
class Falsification:
    """Where F_n came out empty: an assumption (norm, kernel, noise) is false. Never patched."""

    point: tuple[float, ...]
    output: int
    lower: float
    upper: float

    def __str__(self) -> str:
        return (
            f"F_n is empty at z = {[round(v, 4) for v in self.point]}, output {self.output}: "
            f"l = {self.lower:.6g} > h = {self.upper:.6g}; an assumption (norm bound, kernel or noise) is false"
        )


@dataclass(frozen=True, slots=True)
class Memberless(Falsification):
    """No function of norm ≤ `upper` is in the newest ellipsoid, whose mean has norm `lower`. Nothing need cross anywhere."""

    def __str__(self) -> str:
        return (
            f"F_n is empty: no function of norm <= {self.upper:.6g} fits the data of output {self.output} as closely as f* "
            f"must (their mean has norm {self.lower:.6g}); an assumption (norm bound, kernel or noise) is false"
        )


@dataclass(frozen=True, slots=True)
class Strayed(Falsification):
    """A next state, in a component without a process of its own, that the known part and the noise do not reach.

    `output` is the state, `lower` and `upper` are the ends that it had to lie in, `value` is what was observed.
    """

    value: float

    def __str__(self) -> str:
        point = [round(v, 4) for v in self.point]
        return (
            f"state {self.output} is not learned, but came to {self.value:.6g} from z = {point}, where the known part and "
            f"{DEVIATIONS:g} deviations of noise allow {self.lower:.6g} to {self.upper:.6g}; one of them is false"
        )


def _memberless(bound: ConfidenceBound, model: GP) -> Memberless | None:
    """Whether no f with ‖f‖ ≤ B is in this posterior's ellipsoid, ‖V^{1/2}(f − μ_n)‖ ≤ √λ β: the first learned output for which
    none is, beyond rounding. Nothing is said of a bound without `functional_beta`; a convex program tells by itself.

    ‖V^{1/2}(f − μ_n)‖² = ‖f(X) − y‖² + λ‖f‖² − λyᵀ(K + λI)⁻¹y, so that of an f in both, for every η ≥ λ,

        η yᵀ(K + ηI)⁻¹y ≤ ‖f(X) − y‖² + η‖f‖² ≤ R² + ηB²,    R² = λ(β² − B²) + λyᵀ(K + λI)⁻¹y:

    the dual of the convex program with this R (`Program.empty`), whose η is beyond λ where ‖μ_n‖ > B. Else μ_n is in both.
    """
    beta = None if isinstance(bound, BallProgram) else functional_beta(bound, model)
    if beta is None or model.inputs is None or model.targets is None:
        return None
    scale = torch.ones(model.num_data, dtype=torch.float64) if model.noise_scale is None else model.noise_scale
    norms = bound.norms(model.num_outputs).to(beta.device)
    for j, (kernel, own) in enumerate(zip(model.kernels, norms, strict=True)):
        gram, lam = kernels.cross(kernel, model.inputs, model.inputs), model.regularizer[j]
        weights, target = model.weights[:, j], model.targets[:, j] / scale
        size = float((weights @ gram @ weights).clamp_min(0.0).sqrt())
        if not size > float(own):
            continue
        error = Rounding.of(model).output(j)
        spectrum = Spectrum.of(gram / torch.outer(scale, scale), target, float(error.backward * error.trace))
        lost = spectrum.share * spectrum.values.amax()
        if not bool(2 * lost < lam):
            continue
        fit = lam * (spectrum.targets.square() / (spectrum.values + lam)).sum()
        radius_sq = lam * (beta[j].square() - own.square()) + fit * (1 + 1e-12 + lost / (lam - lost))
        none = spectrum.values.new_zeros(model.num_data, 0)
        if bool(Program(spectrum, none, none[0], radius_sq, own).empty()):
            return Memberless((), j, size, float(own))
    return None


def strayed(model: GP, data: Transitions, noise_std: Tensor) -> Strayed | None:
    """What refutes that states which are not learned equal the known part but for N(0, σ_j²), of which F_n knows nothing: the
    next state farthest beyond `DEVIATIONS` σ_j and what recording in float32 loses. None if there is none.

    Args:
        model: known part and outputs.
        data: observed transitions.
        noise_std: σ of all states, (nx,).
    """
    states = [j for j in range(model.nx) if j not in model.outputs]
    if not states:
        return None
    known = known_part("strayed", model.prior, data.x, data.u)[:, states]
    seen, sigma = data.x_next[:, states], noise_std.to(data.x)[states]
    size = known.abs() + (seen.abs() + data.x[:, states].abs()).amax(0)  # data of all rows: terms may cancel
    room = DEVIATIONS * sigma + RECORDED * size
    excess = ((seen - known).abs() - room).nan_to_num(nan=-torch.inf)
    row, place = divmod(int(excess.argmax()), len(states))
    if not float(excess[row, place]) > 0.0:
        return None
    middle, half = float(known[row, place]), float(room[row, place])
    point = tuple(data.z[row].tolist())
    return Strayed(point, states[place], middle - half, middle + half, float(seen[row, place]))


@short
@dataclass(frozen=True, slots=True, eq=False)
class ConfidenceSet:
    """F_n from all posteriors so far: l_n = max_i (μ_i − w_i), h_n = min_i (μ_i + w_i), clipped to ±B√k(z, z)
    (unless the bound assumes no norm).

    `generations` holds the posteriors that were intersected; `bounds(z, since=i)` uses only those from i on
    (plus the clip), so that a caller that keeps l and h at fixed points can intersect new generations as they
    come.

    The guarantee holds for the posteriors of one growing data set, so each generation must continue the one before it:
    `gpsafe.confidence.lineage` says what is checked, and what cannot be. Only a set that claims nothing (`sound` False)
    may mix what its user likes.
    """

    bound: ConfidenceBound
    generations: tuple[GP, ...] = ()
    _lineage: Lineage | None = field(default=None, init=False)
    _numbers: tuple[Tensor, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        if hasattr(self.generations, "posterior"):
            raise _require.fail(
                "ConfidenceSet", "a sequence of models (or update with one)", type(self.generations).__name__
            )
        object.__setattr__(self, "_numbers", numbers_of(self.bound))
        given = tuple(self.generations)
        object.__setattr__(self, "generations", ())
        for model in given:
            self._accept(model)

    def update(self, model: GP) -> ConfidenceSet:
        """F_{n+1}: intersects the interval of a new posterior of the same data, or of more (the old first, in their order).

        Raises:
            ValueError: if the bound is not valid for the model, or the model does not continue the last generation.
        """
        new = copy.copy(self)
        new._accept(model)
        return new

    def _accept(self, model: GP) -> None:
        """Appends a generation; only for an object that nobody else has seen yet."""
        self.bound.check(model)
        lineage = None
        if self.sound:
            reason = inconsistency(model) or (self._lineage and self._lineage.refusal(model)) or repetition(model)
            if reason is not None:
                raise _require.fail("ConfidenceSet.update", reason, f"a model of {model.num_data} observations")
            lineage = Lineage.of(model)
        object.__setattr__(self, "_lineage", lineage)
        object.__setattr__(self, "generations", (*self.generations, model))

    def _repr_html_(self) -> str:
        rows: list[tuple[object, ...]] = [("sound" if self.sound else "heuristic", self.bound.name)]
        rows += [("posteriors", len(self.generations))]
        rows += [("assumes", entry) for entry in (self.assumptions if self.generations else ())]
        return table("ConfidenceSet", rows)

    @property
    def model(self) -> GP:
        """The newest posterior."""
        if not self.generations:
            raise _require.fail("ConfidenceSet", "at least one model (call update first)", "none")
        return self.generations[-1]

    @property
    def sound(self) -> bool:
        """Whether the bound is a theorem for these models."""
        return self.bound.sound and not self.bound.unchecked

    @property
    def assumptions(self) -> tuple[Believed, ...]:
        """What membership of f* rests on."""
        return self.bound.assumptions(self.model)

    @property
    def unlearned(self) -> tuple[Believed, ...]:
        """What is believed of the states without a process of their own: nothing, if there is none."""
        states = [j for j in range(self.model.nx) if j not in self.model.outputs]
        return (Assumption.KNOWN_OUTPUTS(f" (states {states})"),) if states else ()

    def check_noise(self, where: str, noise_std: Tensor) -> None:
        """Refuses a bound whose theorem does not cover observations with Gaussian noise of deviation `noise_std` (nx,).

        An R below it, say, makes F_n too small, and nothing in F_n shows it. One that is `unchecked` claims nothing. What was
        edited since it was accepted is refused, too (`edited`).
        """
        self.unedited(where)
        reason = self.bound.noise_refusal(self.model, noise_std[list(self.model.outputs)])
        if reason is not None and not self.bound.unchecked:
            raise _require.fail(where, reason, f"noise_std {noise_std.tolist()} and {self.bound.name}")

    @property
    def edited(self) -> str | None:
        """What of the bound, of the last generation (known part, kernels, λ, noise, data) or of an earlier one (kernels, λ,
        data) is no longer as when it was accepted; None: nothing. A set that claims nothing (`sound` False) does not look.
        """
        if self._lineage is None:
            return None
        if not same_numbers(numbers_of(self.bound), self._numbers):
            return "the bound (B, R, delta and what else it captures) that the posteriors were accepted for"
        return self._lineage.edited() or self._lineage.disowns(self.generations[:-1])

    def unedited(self, where: str) -> None:
        """Raises ValueError for a set that was (`edited`)."""
        edited = self.edited
        if edited is not None:
            raise _require.fail(where, edited, "a set that was edited since, or captures numbers which moved")

    def bounds(self, z: Tensor, *, since: int = 0) -> tuple[Tensor, Tensor]:
        """l_n, h_n of the residual of the learned outputs at z (*b, d), both (*b, p). May cross: see
        `falsified`.

        Raises:
            ValueError: if the set is sound and was edited since its posteriors were accepted (`edited`). `bound.interval` of a
                bare model has nothing to compare it with: it speaks of the model as it is.
        """
        self.unedited("ConfidenceSet.bounds")
        z, since = (
            _require.floats("ConfidenceSet.bounds", "z", z),
            _require.index("ConfidenceSet.bounds", "since", since),
        )
        high = self.bound.prior_width(self.model, z)
        low = -high
        for lower, upper in self._intervals(self.generations[since:], z):
            low, high = torch.maximum(low, lower), torch.minimum(high, upper)
        return low, high

    def _intervals(self, generations: tuple[GP, ...], z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The interval of every generation at z (*b, d).

        Generations of one growing data set share their factor, so a bound of the form μ ± βσ takes all of
        them from one pass (`posterior_history`).
        """
        plain = type(self.bound).interval is ConfidenceBound.interval
        newest = generations[-1] if generations else None
        if not isinstance(newest, GP) or not plain or z.requires_grad or len(generations) == 1:
            yield from (self.bound.interval(generation, z) for generation in generations)
            return
        shared = [g for g in generations if is_prefix(g, newest)]
        others = [g for g in generations if not any(g is s for s in shared)]
        shared.sort(key=lambda g: g.num_data)
        mean, std = posterior_history(newest, [g.num_data for g in shared], z)
        prior = newest.prior_variance(z)
        for i, generation in enumerate(shared):
            beta = self.bound.beta(generation).to(z.device)
            half = self.bound.half_width(generation, beta, std[i], prior)
            yield mean[i] - half, mean[i] + half
        yield from (self.bound.interval(generation, z) for generation in others)

    def crossed(self, z: Tensor, low: Tensor, high: Tensor, tol: float = EMPTY) -> Tensor:
        """l_n − h_n at z (*b, d) less the share `tol` of B√k(z, z), or where no norm is assumed of the smaller end, (*b, p).

        Where it is positive, which no rounding is, F_n is empty.
        """
        return low - high - tol * self._size(z, low, high)

    def _size(self, z: Tensor, low: Tensor, high: Tensor) -> Tensor:
        width = self.bound.prior_width(self.model, z)
        return torch.where(torch.isfinite(width), width, torch.minimum(low.abs(), high.abs())).clamp(*SIZES)

    def empty(self, z: Tensor, *, tol: float = EMPTY) -> Tensor:
        """Where l_n > h_n in some output at z (*b, d), by more than the share `tol` of its size (`crossed`), or one is no
        number, (*b,): nothing may be claimed there.

        Of points beyond what the theorem covers (`ConfidenceBound.covers`) it does not say so.
        """
        tol = _require.tolerance("ConfidenceSet.empty", tol)
        found = self.bound.covers(z, z)
        inside = z[found]
        return found.masked_scatter(found, ~(self.crossed(inside, *self.bounds(inside), tol) <= 0).all(-1))

    def falsified(self, z: Tensor | None = None, *, tol: float = EMPTY) -> Falsification | None:
        """A point of z (*b, d), of the data if None, where l_n > h_n by more than the share `tol` of its size (`crossed`), the
        worst one; or, wherever one looks, that no function of the ball is in the newest ellipsoid (theory §2.10). None if
        neither. NaN accuses nobody.
        """
        where, model = "ConfidenceSet.falsified", self.model
        tol = _require.tolerance(where, tol)
        z = model.inputs if z is None else z
        if z is None:
            return None
        found = self._crossing(_points(where, z), tol)
        return found or (_memberless(self.bound, model) if self.sound else None)

    def _crossing(self, z: Tensor, tol: float) -> Falsification | None:
        """The worst of the points at which l_n > h_n."""
        low, high = self.bounds(z)
        gap = self.crossed(z, low, high, tol).nan_to_num(nan=-torch.inf, posinf=torch.inf).reshape(-1, low.shape[-1])
        worst = int(gap.argmax())
        row, output = divmod(worst, gap.shape[-1])
        if float(gap[row, output]) <= 0:
            return None
        low, high = low.reshape(gap.shape), high.reshape(gap.shape)
        point = z.reshape(-1, z.shape[-1])[row]
        return Falsification(tuple(point.tolist()), output, float(low[row, output]), float(high[row, output]))

    def contains(self, f: Callable[[Tensor], Tensor], z: Tensor, *, tol: float = EMPTY) -> Verdict:
        """Whether l_n ≤ f ≤ h_n at z (*b, d), f: (*b, d) → (*b, p), or (*b,) where one output is learned. The value is the
        largest excess outside F_n, the threshold the share `tol` of its size there (`crossed`).

        VIOLATED refutes f ∈ F_n. HOLDS speaks of the given points only.

        Raises:
            ValueError: if f returns another shape, which broadcasting might otherwise take for values at other points.
        """
        z, tol = _points("ConfidenceSet.contains", z), _require.tolerance("ConfidenceSet.contains", tol)
        low, high = self.bounds(z)
        value = _require.floats("ConfidenceSet.contains", "f(z)", f(z)).to(low.device)
        if low.shape[-1] == 1 and value.shape == z.shape[:-1]:
            value = value.unsqueeze(-1)
        _require.shape("ConfidenceSet.contains", "f(z)", value, tuple(low.shape))
        excess, room = torch.maximum(low - value, value - high), tol * self._size(z, low, high)
        worst = int((excess - room).argmax())
        amount, threshold = (float(part.reshape(-1)[worst]) for part in (excess, room))
        point = z.reshape(-1, z.shape[-1])[worst // excess.shape[-1]].tolist()
        return Verdict(amount, amount, threshold, witness=f"z = {point}")


def _points(where: str, z: Tensor) -> Tensor:
    """z, at least one: what is asked of none is neither refuted nor true."""
    found = _require.floats(where, "z", z)
    if not found.numel():
        raise _require.fail(where, "at least one z", f"shape {tuple(found.shape)}")
    return found
