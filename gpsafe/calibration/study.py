"""Which model's uncertainty fits these transitions: fit, recalibrate, measure, and say it in words.

Rows are split into 50 % to learn from, 25 % to recalibrate with and 25 % to test on, by whole trajectories where labels
are given. Otherwise rows are drawn at random; neighbours of one recording then stand on both sides of the split, and every
model looks better than it is.

Everything is computed for every output by itself and pooled after division by the standard deviation of the test residual
x⁺ − known part, so that outputs of all units count alike. Bars hold the next state *with* its noise: what data can tell of.
What they cannot tell is whether f* is inside at points that nobody visited.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.calibration import coverage, metrics
from gpsafe.calibration.coverage import Rate, total_std
from gpsafe.calibration.findings import Assessment, Findings
from gpsafe.calibration.recalibration import Conformal, Isotonic, Recalibrated, ScaledStd
from gpsafe.calibration.resampling import Estimated, bootstrap, members
from gpsafe.calibration.rollouts import moments
from gpsafe.calibration.theory import Theory, theory_band
from gpsafe.calibration.zoo import MODELS, Effort, Fitted, Fitter
from gpsafe.data import Transitions
from gpsafe.models import GP, DynamicsModel

NAMES = (
    "gp", "sparse-gp", "ensemble-1", "ensemble-3", "ensemble-5", "ensemble-10", "ensemble-5-plain", "dropout", "laplace",
)  # fmt: skip
LEAST = 40  # rows
LARGEST = 5000  # rows that a study works on; more are drawn from
HORIZON = 10  # steps of the rollouts
DRAWS = 30  # of every prediction, for the energy score
FEW = 20  # trajectories, below which a bootstrap over them is a rough guide


@short
@dataclass(frozen=True, slots=True, eq=False)
class Study(Findings):
    """What `calibrate` found, and its page."""

    def html(self) -> str:
        """One self-contained page."""
        from gpsafe.calibration import page  # matplotlib, for which nobody else waits

        return page.html(self)

    def save(self, path: str | Path) -> Path:
        """Writes the page."""
        from gpsafe.testbed import store

        return store.write_text(Path(path), self.html())


def calibrate(
    data: Transitions,
    *,
    ids: Any = None,
    models: Sequence[str] = NAMES,
    delta: float = 0.1,
    seed: int = 0,
    title: str = "transitions",
    states: Sequence[str] | None = None,
    inputs: Sequence[str] | None = None,
    effort: Effort | None = None,
    resamples: int = 200,
    on_progress: Callable[[str], None] | None = None,
    **options: Any,
) -> Study:
    """Fits models to a part of the transitions and holds their uncertainty against the rest: see the module.

    >>> import torch, gpsafe as gs
    >>> x = torch.linspace(-1, 1, 60, dtype=torch.float64).unsqueeze(1)
    >>> wave = torch.sin(40 * x)
    >>> data = gs.Transitions(x, x.flip(0), 0.9 * x + 0.01 * wave)
    >>> quick = {"noise_std": torch.tensor([0.01]), "effort": gs.calibration.Effort(steps=20)}
    >>> found = gs.calibrate(data, models=["laplace"], resamples=20, **quick)
    >>> found.models, found.rows
    (('laplace',), (30, 15, 15))

    Args:
        data: transitions, in order within every trajectory.
        ids: (n,) labels of the trajectories, if there are several.
        models: names of `gpsafe.calibration.zoo.MODELS`.
        delta: the bars compared are those of probability 1 − δ.
        seed: of splits and fits.
        title, states, inputs: names for the report.
        effort: of the fits.
        resamples: of the bootstrap.
        on_progress: told what is being done.
        options: of `gpsafe.calibration.zoo.Fitter`: `prior`, `noise_std`, `kernels`.

    Raises:
        ValueError: on too few rows or trajectories, or constant states.
    """
    where, begun = "calibrate", time.process_time()
    _require.probability(where, "delta", delta)
    _require.seed(where, seed)
    known = [_require.one_of(where, "models", name, MODELS) for name in _require.listing(where, "models", models)]
    notes: list[str] = []
    data, labels = _limited(data, ids, seed, notes)
    parts = _split(data, labels, seed, notes)
    (train, _), (held_out, _), (test, test_ids) = parts
    fitter = Fitter(train, seed, effort=effort or Effort(), **options)
    if len(train) > fitter.effort.exact and "gp" in known:
        notes.append(
            f"The exact Gaussian process learnt from {fitter.effort.exact} of {len(train)} rows, drawn at random."
        )
    scale = (test.x_next - fitter.prior(test.x, test.u)).std(0, correction=0)
    if not bool((scale > 0).all()):
        still = (scale == 0).nonzero().flatten().tolist()
        raise _require.fail(where, "states that move", f"constant residuals of states {still}")
    distance = coverage.distance_to_data(test.z, train.z)
    tell = on_progress or (lambda _: None)
    fits, found, speed = [], [], {}
    for name in known:
        tell(f"fitting {name}")
        try:
            fits.append(fitter.fit(name))
        except (ValueError, RuntimeError) as error:  # a matrix without a factor is a RuntimeError in torch
            notes.append(f"{name} was left out: {_require.told(error)}")
            continue
        model = fits[-1].model
        now = time.process_time()
        model.predict(test.x, test.u)
        speed[name] = (time.process_time() - now) * 1000 / len(test)
        tell(f"testing {name}")
        for kind, again in _recalibrations(model, held_out, delta, name, notes).items():
            one = _assess(name, kind, again, test, test_ids, scale, distance, delta, resamples, seed)
            found.append(one)
    if test_ids is not None and len(set(test_ids)) < FEW:
        notes.append(
            f"Only {len(set(test_ids))} test trajectories: the bootstrap intervals are an indication, and too narrow."
        )
    if not found:
        raise _require.fail(where, "at least one model that can be fitted", "; ".join(notes))
    units = (len(test), "rows") if test_ids is None else (len(set(test_ids)), "trajectories")
    titles = [
        tuple(given) if given else tuple(f"{letter}{i + 1}" for i in range(size))
        for given, letter, size in ((states, "x", fitter.nx), (inputs, "u", fitter.nu))
    ]
    return Study(
        title, titles[0], titles[1], tuple(found), tuple(fits), speed, (len(train), len(held_out), len(test)), units,
        delta, _theory(fits, test, delta), tuple(notes), time.process_time() - begun,
    )  # fmt: skip


def _theory(fits: Sequence[Fitted], test: Transitions, delta: float) -> tuple[Theory, int] | None:
    for one in fits:
        if isinstance(one.model, GP):
            found = theory_band(one.model, delta=delta)
            return found, found.outside(one.model, test)
    return None


Part = tuple[Transitions, list[Any] | None]


def _limited(data: Transitions, ids: Any, seed: int, notes: list[str]) -> Part:
    labels = None if ids is None else (ids.tolist() if hasattr(ids, "tolist") else list(ids))
    if labels is not None and len(labels) != len(data):
        raise _require.fail("calibrate", f"{len(data)} ids", len(labels))
    if len(data) < LEAST:
        raise _require.fail("calibrate", f"at least {LEAST} rows", len(data))
    if len(data) <= LARGEST:
        return data, labels
    how = "drawn at random" if labels is None else "every trajectory cut short alike"
    notes.append(f"{LARGEST} of {len(data)} rows were used, {how}.")
    if labels is None:
        generator = torch.Generator().manual_seed(seed)
        keep = torch.randperm(len(data), generator=generator)[:LARGEST].sort().values
    else:  # the beginning of every trajectory, so that successive rows stay together
        places = members("calibrate", labels, len(data))
        keep = torch.cat([p[: max(1, LARGEST * len(p) // len(data))] for p in places]).sort().values
    return data.select(keep), None if labels is None else [labels[i] for i in keep.tolist()]


def _split(data: Transitions, labels: list[Any] | None, seed: int, notes: list[str]) -> tuple[Part, Part, Part]:
    """Half, a quarter and a quarter of the units."""
    generator = torch.Generator().manual_seed(seed + 1)
    places = list(members("calibrate", labels, len(data)))
    if labels is not None and len(places) < 4:
        notes.append(
            f"There are only {len(places)} trajectories: each was cut into consecutive pieces, which were split at random; "
            "pieces of one trajectory resemble each other more than new trajectories would."
        )
        size = max(1, len(data) // 20)
        places = [piece for p in places for piece in p.split(size)]
    elif labels is None:
        notes.append(
            "No trajectories were named, so rows were split at random. If they are successive, neighbours stand on both sides, "
            "and all models look better than they are: name the trajectories."
        )
    order = torch.randperm(len(places), generator=generator).tolist()
    half, rest = max(1, len(places) // 2), (len(places) - max(1, len(places) // 2) + 1) // 2
    parts: list[Part] = []
    for chosen in (order[:half], order[half : half + rest], order[half + rest :]):
        rows = torch.cat([places[i] for i in sorted(chosen)])
        own = None if labels is None else [i for i in sorted(chosen) for _ in range(len(places[i]))]
        parts.append((data.select(rows), own))
    return parts[0], parts[1], parts[2]


def _recalibrations(
    model: DynamicsModel, held_out: Transitions, delta: float, name: str, notes: list[str]
) -> dict[str, DynamicsModel]:
    found: dict[str, DynamicsModel] = {"none": model}
    for kind in (ScaledStd, Isotonic, Conformal):
        try:
            found[NAMED[kind]] = kind.fit(model, held_out, delta=delta)
        except ValueError as error:
            notes.append(f"{NAMED[kind]} of {name} was left out: {error}")
    return found


NAMED: dict[type[Recalibrated], str] = {ScaledStd: "scale", Isotonic: "isotonic", Conformal: "conformal"}


def _assess(
    name: str, kind: str, model: DynamicsModel, test: Transitions, ids: list[Any] | None, scale: Tensor,
    distance: Tensor, delta: float, resamples: int, seed: int,
) -> Assessment:  # fmt: skip
    with torch.no_grad():
        told = model.predict(test.x, test.u)
    mean, std = told.mean / scale, total_std(told).clamp_min(1e-12 * scale) / scale
    y = test.x_next / scale
    quantile = float(torch.special.ndtri(torch.tensor(1 - delta / 2, dtype=torch.float64)))
    if isinstance(model, Recalibrated):
        low, high = (end / scale for end in model.interval(test.x, test.u))
    else:
        low, high = mean - quantile * std, mean + quantile * std
    held, generator = (low <= y) & (y <= high), torch.Generator().manual_seed(seed)
    rows = {
        "rmse": (y - mean).square(), "spread": std.square(), "stretch": ((y - mean) / std).square(),
        "nll": metrics.nll_rows(y, mean, std), "crps": metrics.crps_rows(y, mean, std),
        "check_score": metrics.check_rows(y, mean, std), "interval_score": metrics.interval_rows(y, mean, std),
        "energy": metrics.energy_rows(y, metrics.draws(mean, std, DRAWS, generator)).unsqueeze(-1),
        "width": high - low, "inside": held.double(),
    }  # fmt: skip
    means = torch.stack([v.mean(-1) for v in rows.values()], -1)  # over outputs; (n, k)
    roots = torch.tensor([n in ("rmse", "spread", "stretch") for n in rows])
    curves = ("ece", "rmsce", "max_error", "area", "ece_quantile")

    def statistic(y: Tensor, mean: Tensor, std: Tensor, means: Tensor) -> Tensor:
        flat = y.flatten(), mean.flatten(), std.flatten()
        average = means.mean(0)
        average = torch.where(roots, average.clamp_min(0).sqrt(), average)
        errors = [
            metrics.mean_absolute_calibration_error(*flat), metrics.root_mean_squared_calibration_error(*flat),
            metrics.max_calibration_error(*flat), metrics.miscalibration_area(*flat),
            metrics.mean_absolute_calibration_error(*flat, prop_type="quantile"),
        ]  # fmt: skip
        return torch.cat([average, torch.stack(errors)])

    whole = bootstrap(statistic, y, mean, std, means, groups=ids, resamples=resamples, generator=seed)
    scores = {
        n: Estimated(whole.value[i], whole.low[i], whole.high[i], whole.units, whole.confidence)
        for i, n in enumerate((*rows, *curves))
    }
    inside = coverage.not_certain(scores.pop("inside"))
    held_rows = held.all(-1)
    places = members("calibrate", ids, len(test))
    everywhere = Rate(sum(bool(held_rows[p].all()) for p in places), len(places))
    expected, observed = metrics.reliability(y.flatten(), mean.flatten(), std.flatten(), num_bins=50)
    return Assessment(
        name, kind, scores, Rate.of(held), inside, torch.stack([expected, observed]), everywhere,
        float(coverage.needed_scale(y, mean, std)), coverage.shells(y, mean, std, quantile, distance, ids),
        _ahead(model, test, ids, quantile, seed) if kind in ("none", "conformal") else None,
    )  # fmt: skip


def _ahead(
    model: DynamicsModel, test: Transitions, ids: list[Any] | None, quantile: float, seed: int
) -> Estimated | None:
    """Open loop over windows of successive rows: states after `HORIZON` steps inside the Gaussian bars of the particles."""
    if ids is None:
        return None
    starts, labels = [], []
    for label, rows in enumerate(members("calibrate", ids, len(test))):
        first = 0
        while first + HORIZON <= len(rows):
            window = rows[first : first + HORIZON]
            if torch.equal(test.x_next[window[:-1]], test.x[window[1:]]):
                starts.append(window)
                labels.append(label)
            first += HORIZON
    if not starts:
        return None
    index = torch.stack(starts[:40])
    generator = torch.Generator().manual_seed(seed + 7)
    mean, std = moments(model, test.x[index[:, 0]], test.u[index], num=20, generator=generator)
    student = quantile * math.sqrt(1 + 1 / 20)
    held = coverage.ratios(test.x_next[index[:, -1]], mean[:, -1], std[:, -1]) <= student
    held = held & bool(torch.isfinite(mean[:, -1]).all())
    return coverage.share_inside(held, labels[: len(held)], generator=seed)
