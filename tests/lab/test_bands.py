"""What the notebook on bounds counts is what the exact model says; theorems hold and their controls do not."""

from __future__ import annotations

import pytest
import torch

from gpsafe.confidence import ConfidenceSet
from gpsafe.lab import bands, prices

LAM = 0.01


@pytest.mark.parametrize("design", bands.DESIGNS)
def test_histories_are_the_posteriors_of_the_exact_model(design):
    seen, z = bands.watched("RBF", "as assumed", design, LAM), bands.points()
    for run, count in ((0, 1), (3, 12), (7, bands.STEPS)):
        model = bands.model_of("RBF", seen, run, count, LAM)
        mean, std = model.posterior(z)
        assert torch.allclose(mean[:, 0], seen.mean[run, count], atol=1e-9)
        assert torch.allclose(std[:, 0], seen.std[run, count], atol=1e-7)
        assert float(model.info_gain()[0]) == pytest.approx(float(seen.gain[run, count]), abs=1e-9)


def test_escapes_are_those_of_the_confidence_set():
    seen, truth = bands.watched("RBF", "as assumed", "uniform", LAM), bands.truths("RBF", "as assumed")
    bound = bands.bound_of("constant 2", 1.0, bands.NOISE, 0.1)
    for run in range(4):
        out = []
        for count in range(6):
            low, high = bound.interval(bands.model_of("RBF", seen, run, count, LAM), bands.points())
            out.append(bool(((truth[run] < low[:, 0]) | (truth[run] > high[:, 0])).any()))
        alone = bands.Histories(*(getattr(seen, k)[run : run + 1] for k in bands.Histories.__slots__))
        share = bands.escaped(alone, truth[run : run + 1], bound, LAM)[:6]
        assert share.tolist() == [float(any(out[: n + 1])) for n in range(6)]
    assert ConfidenceSet(bound).sound is False


def test_the_theorem_keeps_what_it_promises_and_its_controls_do_not():
    for design in bands.DESIGNS:
        share = dict(bands.broken(design=design))
        assert share["mixture bound, all true"] <= 0.1
        for told in ("mixture bound, B half of ‖f‖", "ActSafe's form on λ = σ²", "β = 2 by hand"):
            assert share[told] > 0.3, told


def test_adaptive_designs_follow_the_observations_and_uniform_ones_do_not():
    one, two = (bands.watched("RBF", truth, "adaptive", LAM).chosen for truth in bands.TRUTHS[:2])
    assert not torch.equal(one, two)
    one, two = (bands.watched("RBF", truth, "uniform", LAM).chosen for truth in bands.TRUTHS[:2])
    assert torch.equal(one, two)


def test_a_bound_of_no_such_name_is_refused():
    with pytest.raises(ValueError, match="name in"):
        bands.bound_of("mixtur", 1.0, 0.1, 0.1)


def test_widths_are_named_by_their_regulariser():
    assert [bands._lambda(lam) for _, lam in bands.WIDE] == ["0.01", "0.01", "0.01", "1 + 2/N"]


def test_widths_fall_with_data_and_grow_with_the_dimension():
    width = [prices.width(d, 1.0, 0.03, 1.0) for d in (1, 2, 3)]
    assert all(float(w[0]) == pytest.approx(prices.DEVIATION) for w in width)
    assert float(width[0][-1]) < float(width[1][-1]) < float(width[2][-1]) <= prices.DEVIATION


def test_n_star_falls_with_the_gap_and_grows_with_the_norm():
    few, many = prices.episodes(1.0, 0.01, 20, 0.3)[0], prices.episodes(1.0, 0.01, 20, 0.03)[0]
    assert few < many < prices.episodes(9.0, 0.01, 20, 0.03)[0]


@pytest.mark.parametrize(
    ("form", "truth", "design"),
    [("no", "as assumed", "uniform"), ("RBF", "no", "uniform"), ("RBF", "as assumed", "no")],
)
def test_settings_that_do_not_exist_are_refused(form, truth, design):
    with pytest.raises(ValueError, match=r"expected .* in .*, got 'no'"):
        bands.watched(form, truth, design, LAM)
