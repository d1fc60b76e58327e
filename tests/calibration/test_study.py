"""The study: models fitted one way, measured on rows kept apart, said in words, shown on one page."""

import html.parser
import re
from typing import ClassVar

import pytest
import torch

import gpsafe as gs
from gpsafe.calibration import MODELS, Effort, fit
from gpsafe.calibration.study import NAMES
from gpsafe.data import Transitions
from gpsafe.models import GP, DynamicsModel, Ensemble
from gpsafe.rkhs import kernels

F64 = {"dtype": torch.float64}
QUICK = Effort(hyperparameters=15, exact=40, inducing=10, hidden=(6,), steps=30)
SOME = ("gp", "ensemble-3", "dropout", "laplace")
TOLD = {"models": ["laplace"], "effort": QUICK, "resamples": 10, "noise_std": torch.tensor([0.05, 0.05], **F64)}


def rows(n: int, *, noise: float = 0.05, seed: int = 0) -> Transitions:
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(n, 2, **F64, generator=generator) - 1
    u = 2 * torch.rand(n, 1, **F64, generator=generator) - 1
    w = noise * torch.randn(n, 2, **F64, generator=generator)
    return Transitions(x, u, x + 0.3 * torch.sin(3 * x.flip(1)) * u + w)


def walk(runs: int, steps: int) -> tuple[Transitions, list[str]]:
    """Trajectories of a stable plant."""
    generator = torch.Generator().manual_seed(1)
    x, parts, labels = torch.randn(runs, 1, **F64, generator=generator), [], []
    for _ in range(steps):
        u = torch.randn(runs, 1, **F64, generator=generator)
        after = 0.8 * x + 0.2 * u + 0.05 * torch.randn(runs, 1, **F64, generator=generator)
        parts.append((x, u, after))
        x = after
    stacked = [torch.stack([p[i] for p in parts], 1).flatten(0, 1) for i in range(3)]
    labels = [f"run {i}" for i in range(runs) for _ in range(steps)]
    return Transitions(*stacked), labels


@pytest.fixture(scope="module")
def study():
    return gs.calibrate(rows(120), models=SOME, effort=QUICK, resamples=10, states=("a", "b"), title="<toy> & co")


def test_all_models_are_fitted_one_way():
    data = rows(60)
    first = fit(list(MODELS), data, seed=3, effort=QUICK)
    assert [one.name for one in first] == list(MODELS) and set(NAMES) <= set(MODELS)
    x, u = data.x[:5], data.u[:5]
    by = {one.name: one for one in first}
    for one in first:
        assert isinstance(one.model, DynamicsModel) and one.seconds >= 0 and one.size > 1000
    for again in fit(["gp", "ensemble-3", "dropout"], data, seed=3, effort=QUICK):  # the seed is all
        assert torch.equal(again.model.predict(x, u).mean, by[again.name].model.predict(x, u).mean)
    assert by["gp"].rows == 40 and by["laplace"].rows == 60
    whole, part = (by[n].model for n in ("ensemble-10", "ensemble-3"))
    assert isinstance(whole, Ensemble) and isinstance(part, Ensemble) and part.members == 3
    assert torch.equal(whole.evaluate(x, u)[0][:3], part.evaluate(x, u)[0])
    assert not torch.equal(by["ensemble-3-plain"].model.predict(x, u).mean, part.predict(x, u).mean)


def test_given_kernels_and_noise_make_a_model_of_theory():
    kernel = kernels.rbf([1.0, 1.0, 1.0], 0.1)
    (one,) = fit(["gp"], rows(30), noise_std=torch.full((2,), 0.05, **F64), kernels=(kernel, kernel), effort=QUICK)
    assert isinstance(one.model, GP) and one.model.mode == "theory"
    norm = torch.tensor([3.0, 4.0], **F64)
    band = gs.calibration.theory_band(one.model, rkhs_norm=norm, delta=0.1)
    assert band.sound and band.rkhs_norm.tolist() == [3.0, 4.0]
    bound = gs.Mixture(rkhs_norm=(3.0, 4.0), subgaussian=0.05, delta=0.1)
    assert torch.equal(band.beta, bound.beta(one.model))
    assert band.outside(one.model, rows(50, seed=2)) == 0
    wild = rows(50, seed=2)
    wild = Transitions(wild.x, wild.u, wild.x_next + 5.0)
    assert band.outside(one.model, wild) == 50
    guessed = gs.calibration.theory_band(one.model, delta=0.1)
    assert not guessed.sound and any("no" in e or "not a theorem" in e for e in guessed.assumptions)


def test_everything_is_assessed(study):
    assert study.models == SOME and study.rows == (60, 30, 30) and study.units == (30, "rows")
    assert {a.recalibration for a in study.assessments} == {"none", "scale", "isotonic", "conformal"}
    for one in study.assessments:
        assert one.inside.n == 60 and 0 <= one.inside_interval.low <= one.inside_interval.high <= 1
        assert float(one.inside_interval.value) == pytest.approx(one.inside.value)
        assert sum(s.rate.n for s in one.shells) == 60 and one.ahead is None and one.everywhere.n == 30
    assert len(study.sentences()) == len(SOME) and study.theory is not None
    assert any("split at random" in note for note in study.notes)
    assert len(study.frame()) == len(study.assessments)
    with pytest.raises(ValueError, match="a model and recalibration"):
        study.of("gp", "magic")


def test_the_page_is_whole_and_escapes_what_is_given(study, tmp_path):
    text = study.save(tmp_path / "page.html").read_text()
    assert "&lt;toy&gt; &amp; co" in text and "<toy>" not in text and "$" not in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)  # nothing is fetched
    assert text.count("data:image/svg+xml") == 3
    for name in SOME:
        assert name in text

    class Tags(html.parser.HTMLParser):
        open: ClassVar[list[str]] = []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img"):
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    Tags().feed(text)
    assert Tags.open == []
    assert "<table>" in study._repr_html_()


def test_a_model_that_is_too_sure_and_one_that_is_not_sure_enough_are_told_apart():
    """The noise is told: a fifth of it makes bars too narrow, five times too wide."""
    data = rows(800)
    kernel = kernels.rbf([0.7, 0.7, 0.7], 0.09)
    said = {}
    for factor in (0.2, 1.0, 5.0):
        noise = torch.full((2,), 0.05 * factor, **F64)
        found = gs.calibrate(
            data, models=["gp"], noise_std=noise, kernels=(kernel, kernel), effort=Effort(exact=200), resamples=40
        )
        said[factor] = (found.of("gp"), found.sentences()[0])
    assert said[0.2][1].startswith("gp is over-confident") and said[5.0][1].startswith("gp is under-confident")
    assert said[0.2][0].inside.value < 0.6 and said[5.0][0].inside.value > 0.99
    assert float(said[0.2][0].stretch.value) > 2 and float(said[5.0][0].stretch.value) < 0.5
    assert abs(said[1.0][0].inside.value - 0.9) < 0.06


def test_trajectories_are_split_as_wholes_and_rolled_out():
    data, labels = walk(16, 12)
    found = gs.calibrate(data, ids=labels, **TOLD | {"noise_std": torch.tensor([0.05], **F64)})
    assert found.rows == (8 * 12, 4 * 12, 4 * 12) and found.units == (4, "trajectories")
    one = found.of("laplace")
    assert one.everywhere.n == 4 and one.ahead is not None and one.ahead.units == 4
    assert one.inside_interval.units == 4
    few, labels = walk(2, 60)
    noted = gs.calibrate(few, ids=labels, **TOLD | {"noise_std": torch.tensor([0.05], **F64)}).notes
    assert any("only 2 trajectories" in note for note in noted)


def test_bars_that_hold_every_row_are_not_certain_to_hold_all():
    """Every resample is the same; fifteen rows say no more than 0.78."""
    found = gs.calibrate(rows(60), **TOLD | {"noise_std": torch.tensor([9.0, 9.0], **F64)}).of("laplace")
    assert found.inside.value == 1.0 and found.inside_interval.units == 15
    assert (
        float(found.inside_interval.low) == pytest.approx(0.025 ** (1 / 15))
        and float(found.inside_interval.high) == 1.0
    )
    assert found.words(0.1).startswith("not told apart")


def test_what_cannot_be_studied_is_refused():
    with pytest.raises(ValueError, match="at least 40 rows, got 39"):
        gs.calibrate(rows(39))
    with pytest.raises(ValueError, match="60 ids, got 2"):
        gs.calibrate(rows(60), ids=[1, 2])
    with pytest.raises(ValueError, match="models in"):
        gs.calibrate(rows(60), models=["oracle"])
    still = rows(60)
    with pytest.raises(ValueError, match=r"constant residuals of states \[1\]"):
        gs.calibrate(Transitions(still.x, still.u, torch.stack([still.x_next[:, 0], still.x[:, 1]], 1)))


def test_many_rows_are_drawn_from_and_it_is_said(monkeypatch):
    monkeypatch.setattr("gpsafe.calibration.study.LARGEST", 80)
    found = gs.calibrate(rows(200), **TOLD)
    assert sum(found.rows) == 80 and any("80 of 200 rows" in note for note in found.notes)
    data, labels = walk(8, 20)
    cut = gs.calibrate(data, ids=labels, **TOLD | {"noise_std": torch.tensor([0.05], **F64)})
    assert sum(cut.rows) == 80 and any("cut short alike" in note for note in cut.notes)
