"""Whose error bars hold, point by point: the multiple of σ as a slider, distance to the data as the axis."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import _require, plotting
from gpsafe._show import short
from gpsafe.calibration import distance_to_data, needed_scale, ratios, total_std
from gpsafe.data import Transitions
from gpsafe.lab.explorer import Choice, Explorer, Slider, panels
from gpsafe.models import DynamicsModel

MULTIPLES = (0.5, 1.0, 1.3, 1.6, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 13.0, 16.0, 20.0)
LOWEST, HIGHEST = -2.0, 2.5  # log10 of what is drawn


@short
@dataclass(frozen=True, slots=True, eq=False)
class Trust:
    """Errors over σ of every model at every test point.

    Attributes:
        errors: (model, test) → largest |y − μ|/σ over the outputs of each row, (n,).
        distance: test → distance to the data of each row, (n,).
        outputs: how many there are.
        known: whether y is f* itself, and σ without noise.
    """

    errors: Mapping[tuple[str, str], Tensor]
    distance: Mapping[str, Tensor]
    outputs: int
    known: bool

    @staticmethod
    def of(
        models: Mapping[str, DynamicsModel],
        seen: Transitions,
        tests: Mapping[str, Transitions],
        truth: Mapping[str, Tensor] | None = None,
    ) -> Trust:
        """Predicts every test once.

        Args:
            models: by the names to choose from.
            seen: what they learnt from.
            tests: by the names to choose from.
            truth: f*(x, u), (n, nx), of each test, where the plant is known: then bars without noise are held against it.
        """
        if truth is not None and set(truth) != set(tests):
            raise _require.fail("Trust.of", f"truth of the tests {sorted(tests)}", sorted(truth))
        errors = {}
        for name, model in models.items():
            for test, rows in tests.items():
                with torch.no_grad():
                    told = model.predict(rows.x, rows.u)
                std = total_std(told) if truth is None else told.std
                found = ratios(rows.x_next if truth is None else truth[test], told.mean, std)
                errors[name, test] = found.amax(-1)
        distance = {test: distance_to_data(rows.z, seen.z) for test, rows in tests.items()}
        return Trust(errors, distance, seen.x.shape[-1], truth is not None)

    @property
    def models(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(dict.fromkeys(name for name, _ in self.errors))

    @property
    def tests(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.distance)

    def needed(self, model: str, test: str) -> float:
        """The smallest multiple that holds at all rows of a test; infinite where σ = 0 and the mean is wrong."""
        errors = self.errors[model, test]
        return float(needed_scale(errors, torch.zeros_like(errors), torch.ones_like(errors))[0])

    def draw(self, figure: Figure, *, model: str, test: str, multiple: float) -> None:
        """Errors against distance, in and out; and the share inside as the multiple grows, for all tests."""
        points, shares = panels(figure, 1, 2, width_ratios=(1.5, 1))
        errors, distance = self.errors[model, test], self.distance[test]
        inside, height = errors <= multiple, errors.clamp(10**LOWEST, 10**HIGHEST).log10()
        for mask, noun, label in ((inside, "safe", "inside the bar"), (~inside, "unsafe", "outside")):
            style = {**plotting.look(noun).points, "marker": ".", "markersize": 3}
            points.plot(distance[mask], height[mask], label=f"{label}: {int(mask.sum())}", **style)
        plotting.limit(points, math.log10(multiple), label=f"{multiple:g}σ")
        points.set(xlabel="distance to the data (standard deviations)", ylabel="largest error over σ")
        points.set(ylim=(LOWEST - 0.1, HIGHEST + 0.6), yticks=(-2, -1, 0, 1, 2))
        points.set_yticklabels(["0.01", "0.1", "1", "10", "100"])
        points.set_xlim(-0.02 * float(distance.max()), 1.05 * float(distance.max()))
        points.legend(loc="upper right", ncols=2)
        need = self.needed(model, test)
        told = f"{need:.3g}σ would have held everywhere" if math.isfinite(need) else "no multiple holds everywhere"
        points.set_title(f"{model}, {test}: {told}", loc="left")
        nominal = math.erf(multiple / math.sqrt(2)) ** self.outputs
        axis = torch.logspace(math.log10(MULTIPLES[0]), math.log10(MULTIPLES[-1]), 60, dtype=torch.float64)
        for name, style in plotting.looks(self.tests).items():
            held = (self.errors[model, name].unsqueeze(-1) <= axis).double().mean(0)
            shares.plot(axis.log10(), 100 * held, label=name, **style.line)
        gauss = torch.erf(axis / math.sqrt(2)) ** self.outputs
        shares.plot(axis.log10(), 100 * gauss, label="if errors were Gaussian", **plotting.look("published").line)
        share = 100 * float(inside.double().mean())
        shares.plot(math.log10(multiple), share, **plotting.look("executed").points)
        shares.set(xlabel="multiple of σ", ylabel="points inside (%)", ylim=(-2, 104), yticks=(0, 50, 100))
        shares.set_xticks([math.log10(k) for k in (1, 2, 5, 10, 20)], ["1", "2", "5", "10", "20"])
        shares.legend(loc="lower right")
        shares.set_title(f"at {multiple:g}σ: {share:.3g} %, Gaussian {100 * nominal:.3g} %", loc="left")

    def explorer(self, *, multiple: float = 2.0, model: str | None = None, test: str | None = None) -> Explorer:
        """Choose a model, a test, and the multiple."""
        return Explorer(
            self.draw,
            (10.0, 3.8),
            model=Choice("model", self.models, model),
            test=Choice("tested", self.tests, test),
            multiple=Slider("multiple of σ", MULTIPLES, multiple, lambda k: f"{k:g}"),
        )
