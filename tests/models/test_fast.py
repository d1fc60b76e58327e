"""The product with a triangle, in both of its forms."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import gpsafe as gs
from gpsafe.models import _fast
from gpsafe.rkhs import kernels


@pytest.mark.parametrize("n", [1, 255, 256, 257, 600])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_both_forms_are_the_product_in_place(n, scale):
    random = np.random.default_rng(n)
    root = np.asfortranarray(random.standard_normal((n, n)))  # what is below its diagonal must not count
    rows = random.standard_normal((7, n))
    rows[3, n // 2] = np.nan
    expected = scale * rows @ np.triu(root)
    for form in (_fast._by_trmm, _fast.by_panels):
        given = rows.copy()
        found = form(root, given, scale=scale)
        assert found is given or found.base is given or np.shares_memory(found, given)
        np.testing.assert_allclose(found[[0, 1, 2, 4, 5, 6]], expected[[0, 1, 2, 4, 5, 6]], rtol=0, atol=1e-11)
        assert np.isnan(found[3]).any()


def test_a_posterior_is_the_same_by_either_form(monkeypatch):
    z = torch.rand(300, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    answers = []
    for faster in (False, True):
        monkeypatch.setattr(_fast, "panels_are_faster", lambda faster=faster: faster)
        model = gs.GP.create(kernels.rbf([0.3, 0.5]), 1e-2, nx=1, nu=1, noise_std=0.1)
        model = model.condition_on(z, torch.sin(5 * z[:, :1]))
        answers.append(model.posterior(0.9 * z[:50]))
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)
    assert not torch.equal(answers[0][1], answers[1][1])  # each form was used


@pytest.mark.parametrize(("factor", "faster"), [(1.3, True), (1.2, False), (0.7, False)])
def test_the_form_is_chosen_by_its_time(monkeypatch, factor, faster):
    clock = itertools.accumulate(itertools.cycle([0.0, factor, 0.0, 1.0]))  # starts and ends: dtrmm, panels, dtrmm, …
    monkeypatch.setattr(_fast, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert _fast.panels_are_faster.__wrapped__(4) is faster
