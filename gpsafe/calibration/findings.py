"""What a calibration study finds: every model on the test rows, and all of it together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gpsafe import _require
from gpsafe._show import short, table
from gpsafe.calibration.coverage import Rate, Shell
from gpsafe.calibration.resampling import Estimated
from gpsafe.calibration.theory import Theory
from gpsafe.calibration.zoo import Fitted

POINT = 0.01  # of a share, which nobody minds


@short
@dataclass(frozen=True, slots=True, eq=False)
class Assessment:
    """One model, as fitted or recalibrated, on the test rows.

    Attributes:
        model, recalibration: names; "none" is as fitted.
        scores: by name, with bootstrap intervals: rmse, spread (predicted, root mean square), stretch (root mean square of
            (y − μ)/σ, 1 is right), ece, rmsce, max_error, area (interval form), ece_quantile, nll, crps, energy,
            interval_score, check_score, width.
        inside: rows × outputs inside the interval of probability 1 − δ.
        inside_interval: of that share, by the bootstrap over the units.
        curve: expected and observed proportions, interval form, (2, k).
        everywhere: units with all rows and outputs inside 1 − δ.
        needed: the multiple of σ at which all rows and outputs of all units would be inside.
        shells: by distance to the training rows.
        ahead: share inside after ten steps in open loop, with an interval over trajectories; None without any.
    """

    model: str
    recalibration: str
    scores: Mapping[str, Estimated]
    inside: Rate
    inside_interval: Estimated
    curve: Tensor
    everywhere: Rate
    needed: float
    shells: tuple[Shell, ...]
    ahead: Estimated | None

    @property
    def stretch(self) -> Estimated:
        """What all bars would have to be multiplied by, in the mean square."""
        return self.scores["stretch"]

    def words(self, delta: float) -> str:
        """Over- or under-confident, by how much, in a sentence."""
        low, high = float(self.inside_interval.low), float(self.inside_interval.high)
        nominal = 1 - delta
        told = f"{self.inside.value:.1%} of the next states lie in its {nominal:.0%} bars [{low:.1%}, {high:.1%}]"
        size = f"errors are {_times(self.stretch)} what it says"
        if nominal - POINT <= low and high <= nominal + POINT:
            return f"right to within a point: {told}; {size}"
        if high < nominal:
            return f"over-confident: {told}; {size}"
        if low > nominal:
            return f"under-confident: {told}; {size}"
        return f"not told apart from right at that level: {told}; {size}"


def _times(found: Estimated) -> str:
    return f"{float(found.value):.2f} [{float(found.low):.2f}, {float(found.high):.2f}] times"


@short
@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """What a study found.

    Attributes:
        title: of the data.
        states, inputs: names of the columns.
        assessments: of every model and recalibration.
        fits: what the models cost.
        predict_seconds: processor seconds for 1000 predictions, by model.
        rows: learnt from, recalibrated with, tested on.
        units: how many independent units the test has, and what they are: rows or trajectories.
        delta: δ.
        theory: β of the Gaussian process, and how many test rows refute its band; None without one.
        notes: what a reader must know: subsampling, repetitions of rows, models that failed.
        seconds: processor time of all.
    """

    title: str
    states: tuple[str, ...]
    inputs: tuple[str, ...]
    assessments: tuple[Assessment, ...]
    fits: tuple[Fitted, ...]
    predict_seconds: Mapping[str, float]
    rows: tuple[int, int, int]
    units: tuple[int, str]
    delta: float
    theory: tuple[Theory, int] | None
    notes: tuple[str, ...]
    seconds: float

    def of(self, model: str, recalibration: str = "none") -> Assessment:
        """One of the assessments."""
        for found in self.assessments:
            if (found.model, found.recalibration) == (model, recalibration):
                return found
        raise _require.fail("Study.of", "a model and recalibration of the study", (model, recalibration))

    @property
    def models(self) -> tuple[str, ...]:
        """Names, in order."""
        return tuple(dict.fromkeys(found.model for found in self.assessments))

    def sentences(self) -> tuple[str, ...]:
        """Every model in plain words, as fitted."""
        return tuple(f"{name} is {self.of(name).words(self.delta)}." for name in self.models)

    def frame(self) -> list[dict[str, Any]]:
        """One flat row for every assessment; `pandas.DataFrame` takes it."""
        found = []
        for one in self.assessments:
            row: dict[str, Any] = {"model": one.model, "recalibration": one.recalibration}
            for name, value in (*one.scores.items(), ("inside", one.inside_interval)):
                row |= {name: float(value.value), f"{name}_low": float(value.low), f"{name}_high": float(value.high)}
            row |= {"everywhere": one.everywhere.value, "units": one.everywhere.n, "needed": one.needed}
            found.append(row | {"ahead": None if one.ahead is None else float(one.ahead.value)})
        return found

    def _repr_html_(self) -> str:
        head = ("model", f"inside {1 - self.delta:.0%} bars", "errors / σ", "calibration error", "CRPS")
        rows = []
        for name in self.models:
            one = self.of(name)
            cells = (_short(one.inside_interval), *(_short(one.scores[k]) for k in ("stretch", "ece", "crps")))
            rows.append((name, *cells))
        return table(self.title, rows, head=head)


def _short(found: Estimated) -> str:
    return f"{float(found.value):.3f} [{float(found.low):.3f}, {float(found.high):.3f}]"
