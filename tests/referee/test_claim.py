"""What is put on trial: what was stated, in the order in which it was, and what the first rows suggest for the rest."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from botorch.exceptions import ModelFittingError, OptimizationWarning
from torch import Tensor

import gpsafe as gs
from gpsafe.algorithms.from_data import Estimate
from gpsafe.confidence import Constant
from gpsafe.linalg import vector
from gpsafe.models import zero_prior
from gpsafe.referee import arranged, claim, examine
from gpsafe.referee.claim import claimed
from gpsafe.rkhs import kernels
from gpsafe.verdict import Verdict

A, B = kernels.rbf([0.5] * 3, 2.0), kernels.matern(2.5, [0.7] * 3)
STATED: dict[str, Any] = {"kernels": (A, B), "rkhs_norm": (1.0, 5.0), "subgaussian": (0.1, 0.3), "prior": zero_prior}


def recorded(count: int = 60, *, size: tuple[float, float] = (1.0, 4.0)) -> gs.Transitions:
    g = torch.Generator().manual_seed(0)
    x, u = (2 * torch.rand(count, n, dtype=torch.float64, generator=g) - 1 for n in (2, 1))
    return gs.Transitions(x, u, vector(*size) * torch.randn(count, 2, dtype=torch.float64, generator=g))


ROWS = arranged(recorded(), None)


def known(x: Tensor, u: Tensor) -> Tensor:
    return 0.5 * x + u * vector(1.0, -2.0)


def told(found: claim.Claim) -> list[tuple[int, type, float, float]]:
    """State, family, B and R of every output."""
    families = [type(getattr(k, "base_kernel", k)) for k in found.kernels]
    return list(zip(found.outputs, families, found.norm, found.noise, strict=True))


def test_kernels_norms_and_noises_go_with_the_outputs_in_the_order_in_which_these_were_stated():
    """With outputs = (2, 1) the norm of the second state was judged with the first one's kernel and R."""
    rbf, matern = (type(k.base_kernel) for k in (A, B))
    assert told(claimed(ROWS, **STATED)) == [(0, rbf, 1.0, 0.1), (1, matern, 5.0, 0.3)]
    turned = claimed(ROWS, outputs=(1, 0), **STATED)
    assert told(turned) == [(1, rbf, 1.0, 0.1), (0, matern, 5.0, 0.3)]
    assert torch.equal(turned.residuals(ROWS.data), ROWS.data.x_next.flip(-1))
    about = claimed(ROWS, **(STATED | {"prior": known})).residuals(ROWS.data)
    assert torch.equal(about, ROWS.data.x_next - known(ROWS.data.x, ROWS.data.u))
    model = gs.GP.create([A, B], [0.01, 0.09], nx=2, nu=1, noise_std=vector(0.3, 0.1), outputs=(1, 0))
    bound = gs.Mixture(rkhs_norm=(1.0, 5.0), subgaussian=(0.1, 0.3), delta=0.1)
    for stated in ({"model": model, "rkhs_norm": (1.0, 5.0)}, {"model": gs.ConfidenceSet(bound).update(model)}):
        assert told(claimed(ROWS, **stated)) == told(turned)
    data = gs.Transitions(*(getattr(recorded(40), name) for name in ("x", "u", "x_next")))
    options = {"kernels": (A, B), "noise_std": vector(0.3, 0.1)}
    found = gs.algorithms.from_data.estimate_rows(data, outputs=(1, 0), **options)
    swapped = gs.algorithms.from_data.estimate_rows(data, outputs=(0, 1), **(options | {"kernels": (B, A)}))
    assert found.outputs == (1, 0) and found.rkhs_norm == pytest.approx(swapped.rkhs_norm[::-1])
    assert told(claimed(ROWS, model=found))[0] == (1, rbf, found.rkhs_norm[0], pytest.approx(0.1))


@pytest.mark.parametrize("name", ["kernels", "prior", "outputs"])
def test_what_a_model_states_is_not_stated_beside_it(name):
    """Kernels that were given beside a model were not judged: the model's were, without a word."""
    model = gs.GP.create(A, 0.01, nx=2, nu=1, noise_std=0.1)
    value = {"kernels": B, "prior": zero_prior, "outputs": [0]}[name]
    with pytest.raises(ValueError, match=f"either a model or {name}"):
        claimed(ROWS, model=model, **{name: value})


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "too many kernels": ({"kernels": (A, B, A)}, "2 kernels, got 3"),
    "too few kernels": ({"kernels": (A,)}, "2 kernels, got 1"),
    "no kernel": ({"kernels": "rbf"}, "kernel"),
    "kernel of other inputs": ({"kernels": kernels.rbf([1.0] * 4)}, "4 inputs|3 inputs|inputs"),
    "no outputs": ({"outputs": []}, "distinct outputs"),
    "an output twice": ({"outputs": [0, 0]}, "distinct outputs"),
    "no such output": ({"outputs": [2]}, "outputs as integers in 0..1"),
    "three norms": ({"rkhs_norm": (1.0, 1.0, 1.0)}, "rkhs_norm, one number or 2"),
    "three noises": ({"subgaussian": (1.0, 1.0, 1.0)}, "subgaussian, one number or 2"),
    "no noise": ({"subgaussian": (0.1, 0.0)}, "subgaussian > 0"),
    "no norm": ({"rkhs_norm": math.inf}, "finite rkhs_norm"),
    "no model": ({"model": object()}, "model to be a GP"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_claim_is_refused(case):
    options, message = WRONG[case]
    kept = {} if "model" in options else STATED
    with pytest.raises(ValueError, match=message):
        claimed(ROWS, **(kept | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ("x",)}, "names, 2 that differ"),
        ({"names": ("x", "x")}, "names, 2 that differ"),
        ({"origin": "made"}, "origin in {drawn, recorded}"),
    ],
)
def test_outputs_are_told_apart_by_their_names_and_origins_are_two(options, message):
    with pytest.raises(ValueError, match=message):
        examine(recorded(), **STATED, **options)


def test_a_number_is_that_of_every_output_and_an_estimate_or_model_states_what_is_not_stated_beside_it():
    one = claimed(ROWS, kernels=A, rkhs_norm=2.0, subgaussian=0.2, prior=zero_prior)
    assert (one.norm, one.noise, one.outputs) == ((2.0, 2.0), (0.2, 0.2), (0, 1)) and len(one.kernels) == 2
    assert one.stated == {"kernel", "B", "R"} and one.notes == ()
    estimate = Estimate((A,), (3.0,), vector(0.1, 0.4), (1,), 9, 2.0, (1.0,), 0.1, Verdict(0, 0, 1), prior=zero_prior)
    assert told(claimed(ROWS, model=estimate))[0][2:] == (3.0, 0.4)
    assert told(claimed(ROWS, model=estimate, rkhs_norm=7.0, subgaussian=0.5))[0][2:] == (7.0, 0.5)
    bound = gs.Mixture(rkhs_norm=3.0, subgaussian=0.2, delta=0.1)
    model = gs.GP.create(A, 0.01, nx=2, nu=1, noise_std=0.1)
    F = gs.ConfidenceSet(bound).update(model)
    assert told(claimed(ROWS, model=F))[0][2:] == (3.0, 0.2)
    assert told(claimed(ROWS, model=F, rkhs_norm=7.0, subgaussian=0.5))[0][2:] == (7.0, 0.5)
    assert told(claimed(ROWS, model=model, rkhs_norm=7.0))[0][2:] == (7.0, 0.1)
    assert claimed(ROWS, model=model, rkhs_norm=7.0).prior is model.prior


def test_a_claim_is_tested_with_the_size_of_the_first_rows():
    found = claimed(ROWS, **STATED)
    y = found.residuals(ROWS.data)[:, 1]
    given = found.design(ROWS, y, 1, 0.01)
    assert (given.norm, given.noise, given.delta, given.first, given.spent) == (5.0, 0.3, 0.01, 20, False)
    assert given.scale == pytest.approx(float(y[:20].square().mean()) - 0.3**2)
    assert torch.equal(given.z, ROWS.data.z) and given.links is ROWS.links and given.kernel is found.kernels[1]
    small = found.design(ROWS, 0.01 * y, 1, 0.01)
    assert small.scale == pytest.approx(0.1 * 0.3**2)
    part = replace(found, stated=frozenset({"kernel", "B"}))
    assert part.design(ROWS, y, 1, 0.01).spent
    assert (len(found.unspent(ROWS)), len(part.unspent(ROWS))) == (60, 40)
    assert torch.equal(part.unspent(ROWS).x, ROWS.data.x[20:])
    assert (part.words("B"), part.words("R")) == ("stated", "chosen from the first rows")


def test_the_posterior_of_a_claim_has_its_noise_for_a_regulariser():
    found = claimed(ROWS, kernels=A, rkhs_norm=1.0, subgaussian=0.3, outputs=[1], prior=zero_prior)
    model = found.model(ROWS.data)
    assert model.regularizer.tolist() == pytest.approx([0.09]) and model.noise_std.tolist() == pytest.approx([0.0, 0.3])
    assert (model.outputs, model.mode, model.num_data) == ((1,), "theory", 60)


def test_noise_below_what_arithmetic_carries_is_lifted_and_told():
    y = ROWS.data.x_next[:20]
    size = y.square().mean(0).sqrt()
    found = claimed(ROWS, **(STATED | {"subgaussian": (1e-9, 0.3)}))
    assert found.noise == (pytest.approx(1e-4 * float(size[0])), 0.3)
    assert len(found.notes) == 1 and "R of states [0] is below 0.0001" in found.notes[0]
    assert (
        found.stated == {"kernel", "B"} and len(found.unspent(ROWS)) == 40
    )  # λ would be of the rows that it regularises
    assert claimed(ROWS, **(STATED | {"subgaussian": (float(1e-4 * size[0]), 0.3)})).notes == ()
    about = claimed(ROWS, **(STATED | {"subgaussian": 1e-9, "prior": known}))
    rest = ROWS.data.x_next - known(ROWS.data.x, ROWS.data.u)
    assert about.noise == pytest.approx((1e-4 * rest[:20].square().mean(0).sqrt()).tolist(), rel=1e-12)


def test_states_that_do_not_move_cannot_be_judged():
    data = ROWS.data
    still = arranged(gs.Transitions(data.x, data.u, torch.cat([data.x_next[:, :1], 0 * data.x_next[:, 1:]], -1)), None)
    with pytest.raises(ValueError, match=r"constant \[1\]"):
        claimed(still, **STATED)
    away = replace(ROWS, data=replace(data, x_next=vector(0.25, 4.0).expand(60, 2)))  # from the known part 0
    with pytest.raises(ValueError, match=r"constant \[0, 1\]"):
        claimed(away, **STATED)
    assert claimed(away, **(STATED | {"prior": known})).outputs == (0, 1)
    assert claimed(still, **(STATED | {"kernels": A, "rkhs_norm": 1.0, "subgaussian": 0.1}), outputs=[0]).outputs == (
        0,
    )


def test_what_was_not_stated_is_chosen_from_the_first_rows_with_what_was(monkeypatch):
    asked: list[tuple[gs.Transitions, dict[str, Any]]] = []

    def chosen(data: gs.Transitions, **options: Any) -> Estimate:
        asked.append((data, options))
        return Estimate((A, B), (3.0, 4.0), vector(0.5, 0.6), (0, 1), 20, 2.0, (1.0,), 0.1, Verdict(0, 0, 1))

    monkeypatch.setattr(claim, "estimate_rows", chosen)
    nothing = claimed(ROWS)
    assert (nothing.norm, nothing.noise, nothing.stated) == ((3.0, 4.0), (0.5, 0.6), frozenset())
    data, options = asked[0]
    assert torch.equal(data.x, ROWS.data.x[:20]) and options["outputs"] == (0, 1)
    assert options["kernels"] is None and options["noise_std"] is None
    assert torch.equal(options["prior"](data.x, data.u), data.x)  # the identity, where none is stated
    part = claimed(ROWS, subgaussian=0.3, outputs=[0], kernels=A, prior=zero_prior)
    _, options = asked[1]
    assert options["noise_std"].tolist() == [0.3, 1.0] and len(options["kernels"]) == 1
    assert options["prior"] is zero_prior and part.noise == (0.3,) and part.stated == {"kernel", "R"}
    model = gs.GP.create(A, 0.01, nx=2, nu=1, noise_std=0.1)
    F = gs.ConfidenceSet(Constant(value=2.0)).update(model)
    heuristic = claimed(ROWS, model=F)  # which states neither B nor R; its model's noise is R
    assert heuristic.stated == {"kernel", "R"} and (heuristic.norm, heuristic.noise) == ((3.0, 4.0), (0.1, 0.1))
    few, enough = (arranged(recorded(n), None) for n in (35, 36))
    assert claimed(enough).norm == (3.0, 4.0)
    with pytest.raises(
        ValueError, match="at least 36 transitions, or kernel, B and R all stated, got 35 and none of them"
    ):
        claimed(few)
    with pytest.raises(ValueError, match="got 35 and B, R"):
        claimed(few, rkhs_norm=1.0, subgaussian=1.0)
    assert claimed(few, **STATED).norm == (1.0, 5.0)


def test_rows_that_show_no_noise_are_fitted_with_a_hundredth_of_what_they_move_by(monkeypatch):
    seen: list[Tensor | None] = []

    def fit(data: gs.Transitions, **options: Any) -> Estimate:
        warnings.warn("no start converged", OptimizationWarning, stacklevel=1)
        seen.append(options["noise_std"])
        if options["noise_std"] is None or len(seen) > 2:
            raise ModelFittingError("no fit")
        return Estimate((A,), (3.0,), options["noise_std"], (0,), 20, 2.0, (1.0,), 0.1, Verdict(0, 0, 1))

    monkeypatch.setattr(claim, "estimate_rows", fit)
    data = recorded()
    change = torch.stack([0.3 * data.x_next[:, 0], 0 * data.u[:, 0]], -1)
    rows = arranged(gs.Transitions(data.x, data.u, known(data.x, data.u) + change), None)
    rows = replace(rows, data=replace(rows.data, x_next=known(rows.data.x, rows.data.u) + change))
    found = claimed(rows, outputs=[0], prior=known)
    moved = float(change[:20, 0].square().mean().sqrt())
    assert seen[0] is None and seen[1] is not None and seen[1].tolist() == pytest.approx([0.01 * moved, 0.01])
    assert found.noise == (pytest.approx(0.01 * moved),) and "R was set to 0.01" in found.notes[0]
    with pytest.raises(ValueError, match=r"rows that some RBF kernel fits .*no fit"):
        claimed(rows, outputs=[0], prior=known)
