"""What ranges add to branch and bound: the rounding of the posterior, caps, priors; and their questions about regions.

Margins of rounding are made loud, as in `test_output_values.py`.
"""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from range_cases import learned, loudened, problem, same

from gpsafe.confidence import ConfidenceSet, Constant, ranges
from gpsafe.confidence._branch import extremes
from gpsafe.confidence._cells import Band, Deviation, Generation, Mean, Output
from gpsafe.confidence.bounds import ConfidenceBound
from gpsafe.models import GP
from gpsafe.rkhs import kernels
from gpsafe.sets import Box


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1


@pytest.fixture
def loud(loud, monkeypatch) -> float:
    """Of every output that is made, too."""
    own = Output.of
    monkeypatch.setattr(Output, "of", staticmethod(lambda model, j: loudened(own(model, j))))
    return loud


FAMILY = (kernels.rbf([0.5, 0.7], 1.5, dims=[2, 0]), kernels.matern(2.5, 0.8, 0.7))


def pair(n: int = 6, prior=None) -> GP:
    """Two outputs of three inputs with kernels, inputs and λ of their own; without data for n = 0."""
    lam = torch.tensor([0.02, 0.3], dtype=torch.float64)
    model = GP.create(list(FAMILY), lam, nx=2, nu=1, noise_std=0.1, prior=prior)
    return model.condition_on(uniform(n, 3, seed=1), uniform(n, 2, seed=2)) if n else model


class Padded(ConfidenceBound):
    """β and a slack of each output, another for every number of data."""

    def __init__(self, cap: float) -> None:
        self.cap = cap

    name = "padded"
    sound = False

    def norms(self, outputs: int) -> torch.Tensor:
        return self.cap * torch.arange(1, outputs + 1, dtype=torch.float64)

    def _beta(self, model: GP, norm: torch.Tensor, noise: torch.Tensor, log_inv_delta: float) -> torch.Tensor:
        raise AssertionError

    def beta(self, model: GP) -> torch.Tensor:
        return torch.tensor([1.5, 2.5], dtype=torch.float64) + model.num_data

    def slack(self, model: GP) -> torch.Tensor:
        return torch.tensor([0.25, 0.5], dtype=torch.float64)


def confidence_of(bound: ConfidenceBound, *generations: GP) -> ConfidenceSet:
    """What `ranges.band` asks of a confidence set."""
    return cast(
        ConfidenceSet,
        SimpleNamespace(unedited=lambda where: None, bound=bound, generations=generations, model=generations[-1]),
    )


# --------------------------------------------------------------------------------------------------------- ranges
@pytest.mark.parametrize("cap", [0.3, 100.0])
def test_what_is_solved_is_moved_by_its_drift_and_cut_at_its_cap(cap):
    objective, lower, upper = problem(1, 2, 1e-3, -np.inf)
    drift = lambda low, high: (0.01 * (1 + low[:, 0] ** 2), 0.05 * (1 + high[:, 1] ** 2))  # noqa: E731
    low, high = (np.column_stack([end[:, 1], 7.0 * np.ones(len(end)), end[:, 0]]) for end in (lower, upper))
    good = np.array([True, True, False, True, True, True, True])
    active = np.array([2, 0])
    task = ranges._Task(objective, drift, cap)
    found = ranges._solve(task, low, high, good, active, 1e-2, 500)
    plain = extremes(objective, lower[good], upper[good], tol=1e-2, cells=500)
    inside, outside = drift(lower[good], upper[good])
    ends = np.maximum(plain.bound[:, 0] - outside, -cap), np.minimum(plain.bound[:, 1] + outside, cap)
    same(found[0][good], ends[0])
    same(found[1][good], ends[1])
    attained = plain.attained[:, 0] + inside, plain.attained[:, 1] - inside
    same(found[2][good], attained[0])
    same(found[3][good], attained[1])
    width = ends[1] - ends[0]  # below 0 where the function is beyond the cap
    same(found[6][good], np.where(width > 0, 1 - np.maximum(attained[1] - attained[0], 0.0) / np.abs(width), 0.0))
    assert [float(column[2]) for column in found[:2]] == [-math.inf, math.inf] and found[6][2] == math.inf
    assert all(np.isnan(column[2]).all() for column in found[2:6])
    for side in (0, 1):
        assert np.array_equal(found[4 + side][good][:, [2, 0]], plain.where[:, side])
        assert (found[4 + side][good][:, 1] == 7.0).all()
    bare = ranges._solve(ranges._Task(objective), lower, upper, np.ones(7, dtype=bool), np.arange(2), 1e-2, 500)
    whole = extremes(objective, lower, upper, tol=1e-2, cells=500)
    assert np.array_equal(np.column_stack(bare[:4]), np.concatenate([whole.bound, whole.attained], axis=1))
    quiet, *box = problem(1, 1, 0.0, -np.inf)
    point = ranges._solve(
        ranges._Task(quiet, cap=0.001), box[0][:1], box[0][:1], np.ones(1, dtype=bool), np.arange(1), 1.0, 1
    )
    assert (point[6] <= 1.0).all()


def deviation_above(output: Output, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """σ at the centre and the kernel metric from there to the corner, at most √v."""
    center = (lower + upper) / 2
    corner = np.square((upper - lower) / 2 * output.inverse).sum(-1)
    metric = np.sqrt(2 * output.form.variance * (1 - output.profile.value(corner)))
    most = np.minimum(output.deviation(center)[1], output.std)
    return np.minimum(most + metric, output.std)


@pytest.mark.parametrize(("nu", "d"), [(math.inf, 2), (2.5, 2), (0.5, 2)])
def test_deviations_and_drifts_over_boxes_are_their_formulas(nu, d, loud):
    output = learned(nu, d)
    lower = np.random.default_rng(0).uniform(0, 1, (6, d))
    upper = lower + np.array([0.0, 1e-3, 0.05, 0.1, 0.3, 3.0])[:, None] * [1.0, 0.7]
    most = deviation_above(output, lower, upper)
    np.testing.assert_allclose(ranges._deviation_above(output, lower, upper), most, rtol=1e-8)
    assert (most < output.std).sum() >= 3 and most[-1] == output.std
    assert ranges._deviation_above(output, lower * math.nan, upper).tolist() == [output.std] * 6
    heavy = replace(output, rounding=replace(output.rounding, load=3 * output.rounding.load))
    parts = Generation(output, 1.3, 0.05), Generation(heavy, 0.2, 0.0)
    inner, outer = ranges._band_drift(parts, lower, upper)
    wider = [one.output.widened(most) for one in parts]
    carried = [one.output.carried(most + wide) for one, wide in zip(parts, wider, strict=True)]
    same(inner, np.maximum(*carried), 1e-8)
    far = [3 * c + one.beta * w for one, c, w in zip(parts, carried, wider, strict=True)]
    same(outer, np.maximum(*far) * (1 + 64 * loud), 1e-8)
    for n in (0, 1):
        same(ranges._band_drift(parts[n : n + 1], lower, upper)[1], far[n] * (1 + 64 * loud), 1e-8)


def test_at_points_mean_deviation_and_band_are_those_of_their_outputs_and_margins(loud):
    model, z = pair(), 0.5 * uniform(5, 3, seed=5)
    bound = Padded(20.0)
    confidence = confidence_of(bound, pair(3), model)
    means, stds, bands = ranges.mean(model, (z, z)), ranges.std(model, (z, z)), ranges.band(confidence, (z, z))
    for j, active in enumerate(([2, 0], [0, 1, 2])):
        output, points = Output.of(model, j), z.numpy()[:, active]
        low, high = output.value(points)
        carried = output.carried(deviation_above(output, points, points))
        same(means.lower[:, j], low - carried, 1e-8)
        same(means.upper[:, j], high + carried, 1e-8)
        same(means.attained_low[:, j], high + carried, 1e-8)
        same(means.attained_high[:, j], low - carried, 1e-8)
        least, most = output.deviation(points)
        same(stds.lower[:, j], least, 1e-8)
        same(stds.upper[:, j], np.minimum(most, output.std), 1e-8)
        parts = []
        for generation in confidence.generations:
            one = Output.of(generation, j)
            beta = float(bound.beta(generation)[j]) * (1 + 4 * loud)
            parts.append(Generation(one, beta, float(bound.slack(generation)[j])))
        objective = Band(tuple(parts), 20.0 * (j + 1) * math.sqrt(output.form.variance) * (1 + 128 * loud))
        inside, outside = ranges._band_drift(tuple(parts), points, points)
        for side, end, reached in ((0, bands.lower, bands.attained_low), (1, bands.upper, bands.attained_high)):
            sign = 2 * side - 1
            values = objective.at(points, np.full(5, side))
            same(end[:, j], np.clip(values[side] + sign * outside, -objective.cap, objective.cap), 1e-7)
            same(reached[:, j], values[1 - side] - sign * inside, 1e-7)


@pytest.mark.parametrize("cap", [0.4, 20.0])
def test_over_boxes_they_are_branch_and_bound_of_their_outputs_moved_by_their_drift(cap, loud):
    model, z = pair(), 0.5 * uniform(4, 3, seed=5)
    low, high = z, z + 0.2 * uniform(4, 3, seed=6).abs()
    bound = Padded(cap)
    confidence = confidence_of(bound, pair(3), model)
    options = {"tol": 0.2, "cells": 12}
    found = [
        ranges.mean(model, (low, high), **options), ranges.std(model, (low, high), **options),
        ranges.band(confidence, (low, high), **options),
    ]  # fmt: skip
    for j, active in enumerate(([2, 0], [0, 1, 2])):
        output = Output.of(model, j)
        parts = tuple(
            Generation(Output.of(one, j), float(bound.beta(one)[j]) * (1 + 4 * loud), float(bound.slack(one)[j]))
            for one in confidence.generations
        )
        most = cap * (j + 1) * math.sqrt(output.form.variance) * (1 + 128 * loud)
        tasks = (
            ranges._Task(Mean(output), lambda a, b, of=output: (of.carried(deviation_above(of, a, b)),) * 2),
            ranges._Task(Deviation(output)),
            ranges._Task(Band(parts, most), lambda a, b, of=parts: ranges._band_drift(of, a, b), most),
        )
        for one, task in zip(found, tasks, strict=True):
            wanted = ranges._solve(task, low.numpy(), high.numpy(), np.ones(4, dtype=bool), np.array(active), 0.2, 12)
            names = ("lower", "upper", "attained_low", "attained_high", "argmin", "argmax", "gap")
            for name, column in zip(names, wanted, strict=True):
                np.testing.assert_allclose(getattr(one, name)[:, j], column, rtol=1e-7, atol=1e-12, err_msg=name)


def test_without_data_ranges_are_the_prior_of_each_output(loud):
    model, box = pair(0), (torch.zeros(1, 3, dtype=torch.float64), torch.full((1, 3), 1.5, dtype=torch.float64))
    variance = np.array([1.5, 0.7])
    found = ranges.mean(model, box)
    assert all(bool((end == 0).all()) for end in (found.lower, found.upper, found.attained_low, found.attained_high))
    found = ranges.std(model, box)
    same(found.lower[0], np.sqrt(variance) * (1 - 2 * loud))
    same(found.upper[0], np.sqrt(variance) * (1 + 2 * loud))
    assert found.argmin.tolist() == found.argmax.tolist() == [[[0.75] * 3] * 2] and found.gap.tolist() == [[0.0, 0.0]]
    for cap in (1.0, 100.0):
        found = ranges.band(confidence_of(Padded(cap), model), box)
        own = np.array([1.5, 2.5]) * np.sqrt(variance) + np.array([0.25, 0.5])
        half = np.minimum(cap * np.array([1.0, 2.0]) * np.sqrt(variance) * (1 + 128 * loud), own)
        same(found.upper[0], half, 1e-8)
        same(found.lower[0], -half, 1e-8)
    half = (np.array([1.5, 2.5]) * np.sqrt(variance) + np.array([0.25, 0.5])) * (1 + 1e-9)
    same(ranges.band(confidence_of(Padded(100.0), model), box).upper[0], half, 1e-13)
    lost = ranges.std(model, (box[0], torch.tensor([[1.0, -1.0, 1.0]], dtype=torch.float64)))
    assert lost.lower.tolist() == [[-math.inf] * 2] and lost.upper.tolist() == [[math.inf] * 2]
    assert bool(lost.attained_low.isnan().all() and lost.argmin.isnan().all())
    grown = confidence_of(Padded(100.0), model, pair())
    same(ranges.band(grown, box).upper, ranges.band(confidence_of(Padded(100.0), pair()), box).upper)


def test_interpolation_is_its_chords_and_margins(loud):
    model = pair()
    for step in ([0.0, 0.0, 0.0], [0.1, 0.2, 0.3]):
        found = ranges.interpolation(model, step)
        chords = (
            [math.sqrt(3) / 8 * (h / s) ** 2 for h, s in ((step[2], 0.5), (step[0], 0.7))],
            [5 / 8 * (h / 0.8) ** 2 for h in step],
        )
        for j, variance in enumerate((1.5, 0.7)):
            output, top = Output.of(model, j), np.array([math.sqrt(variance)])
            apart = math.sqrt(variance) * sum(chords[j]) * (1 + 64 * loud)
            same(found.mean[j], apart * output.norm + output.carried(top)[0] + output.direct)
            same(found.std[j], apart + output.widened(top)[0])
    bare = ranges.interpolation(pair(0), [0.1, 0.2, 0.3])
    assert bare.mean.tolist() == bare.std.tolist() == [0.0, 0.0]
    assert ranges.finest_scale(model).tolist() == pytest.approx([1 / 0.7, 1 / 0.8, 1 / 0.5])
    one = GP.create(kernels.rbf(0.5, dims=[1]), 0.1, nx=2, nu=1, noise_std=0.1, outputs=[0])
    assert ranges.finest_scale(one).tolist() == pytest.approx([0.0, 2.0, 0.0])


def test_ends_are_taken_from_one_box_or_many():
    low, high = ranges.ends("here", Box([0.0, 1.0], [2.0, 3.0]), 2)
    assert (low.tolist(), high.tolist()) == ([0.0, 1.0], [2.0, 3.0])
    low, high = ranges.ends("here", (torch.zeros(2, 3, 2), torch.ones(2, 3, 2)), 2)
    assert low.shape == high.shape == (2, 3, 2) and float(low.sum()) == 0 and float(high.sum()) == 12
    for bad in (Box([0.0], [1.0]), (torch.zeros(2), torch.ones(2), torch.ones(2)), (torch.zeros(1), torch.zeros(1))):
        with pytest.raises(ValueError, match=r"here: expected"):
            ranges.ends("here", bad, 2)  # type: ignore[arg-type]
    assert (ranges.TOL, ranges.CELLS) == (0.01, 4096)


def test_slacks_are_those_of_the_output():
    model = pair()
    assert [ranges._slack(Padded(1.0), model, j) for j in (0, 1)] == [0.25, 0.5]
    assert ranges._slack(Constant(value=2.0), model, 0) == 0.0
