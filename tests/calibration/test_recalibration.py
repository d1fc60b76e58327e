"""Each recalibration does what it says where its assumption holds, and fails where it is broken."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from gpsafe.assumptions import Assumption
from gpsafe.calibration import (
    Adaptive,
    Conformal,
    Isotonic,
    Rate,
    ScaledStd,
    Weighted,
    conformal_quantile,
    likelihood_ratio,
    total_std,
)
from gpsafe.data import Transitions
from gpsafe.models import GP, DynamicsModel, Prediction
from gpsafe.planning.mbpo.rollouts import sampler
from gpsafe.rkhs import kernels
from gpsafe.verdict import clopper_pearson, clopper_pearson_upper
from proofs_checks._defects import forged

F64 = {"dtype": torch.float64}
DELTA = 0.1


class Unit:
    """Says x⁺ ~ N(0, 1) everywhere, of two outputs of which the second is known."""

    nx, nu, outputs = 2, 1, (0,)

    def predict(self, x, u):
        x, u = torch.broadcast_tensors(x[..., :1], u)
        mean = torch.cat([0 * (x + u), torch.zeros_like(x)], dim=-1)
        std = torch.cat([torch.full_like(x, 0.6), torch.zeros_like(x)], dim=-1)
        return Prediction(mean, std, torch.tensor([0.8, 0.0], **F64))

    def condition(self, data):
        return self


def rows(y: torch.Tensor, x: torch.Tensor | None = None) -> Transitions:
    x = torch.zeros_like(y) if x is None else x
    zero = torch.zeros_like(y)
    return Transitions(torch.stack([x, zero], -1), zero.unsqueeze(-1), torch.stack([y, zero], -1))


def normal(seed: int, n: int) -> torch.Tensor:
    return torch.randn(n, **F64, generator=torch.Generator().manual_seed(seed))


def inside(model, data: Transitions) -> torch.Tensor:
    low, high = model.interval(data.x, data.u)
    return ((low <= data.x_next) & (data.x_next <= high)).all(-1)


KINDS = {
    "scaled": lambda data: ScaledStd.fit(Unit(), data, delta=DELTA),
    "isotonic": lambda data: Isotonic.fit(Unit(), data, delta=DELTA),
    "conformal": lambda data: Conformal.fit(Unit(), data, delta=DELTA),
    "weighted": lambda data: Weighted.fit(Unit(), data, lambda z: torch.ones_like(z[..., 0]), delta=DELTA),
    "adaptive": lambda data: Adaptive.fit(Unit(), data, delta=DELTA),
}
BELIEFS = {
    "scaled": {Assumption.SCALED_GAUSSIAN, Assumption.EXCHANGEABLE, Assumption.HELD_OUT},
    "isotonic": {Assumption.SAME_SHAPE, Assumption.EXCHANGEABLE, Assumption.HELD_OUT},
    "conformal": {Assumption.EXCHANGEABLE, Assumption.HELD_OUT},
    "weighted": {Assumption.LIKELIHOOD_RATIO, Assumption.HELD_OUT},
    "adaptive": {Assumption.FEEDBACK},
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_model_and_says_what_it_rests_on(kind):
    model = KINDS[kind](rows(3 * normal(0, 400)))
    assert isinstance(model, DynamicsModel)
    assert {entry.kind for entry in model.assumptions} == BELIEFS[kind]
    assert (model.nx, model.nu, model.outputs) == (2, 1, (0,))
    found = model.predict(torch.zeros(5, 2, **F64), torch.zeros(5, 1, **F64))
    std = total_std(found)
    assert std[:, 0].tolist() == pytest.approx([3.0] * 5, rel=0.15)  # three times as wide as believed
    assert torch.equal(std[:, 1], torch.zeros(5, **F64))  # what is known stays known
    assert float(found.std[0, 0] / found.noise_std.expand(5, 2)[0, 0]) == pytest.approx(0.75)
    assert torch.equal(model.condition(rows(normal(1, 3))).predict(found.mean, found.mean[:, :1]).std, found.std)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0.2, 1.0, 5.0])
def test_on_its_assumption_the_share_inside_is_not_refuted(kind, size):
    """Gaussian residuals of any size, many held-out rows; one-sided at 99.9 %."""
    model = KINDS[kind](rows(size * normal(10, 4000)))
    held = inside(model, rows(size * normal(11, 2000)))
    assert clopper_pearson_upper(int(held.sum()), len(held), 1e-3) >= 1 - DELTA
    assert clopper_pearson_upper(int((~held).sum()), len(held), 1e-3) > 0.08  # nor is it needlessly wide


def test_whatever_draws_from_a_model_draws_from_a_recalibrated_one():
    step = sampler(Conformal.fit(Unit(), rows(3 * normal(0, 400)), delta=DELTA))
    drawn = step(np.zeros((4000, 2)), np.zeros((4000, 1)), np.random.default_rng(0))
    assert drawn[:, 0].std() == pytest.approx(3.0, rel=0.15) and not drawn[:, 1].any()


# ---------------------------------------------------------------------------------- finite samples, exactly
@given(st.integers(1, 60), st.sampled_from([0.05, 0.1, 0.3, 0.5]), seeds())
def test_the_quantile_is_an_order_statistic(n, delta, seed):
    scores = normal(seed, n).abs()
    rank = math.ceil((n + 1) * (1 - delta))
    expected = math.inf if rank > n else float(scores.sort().values[rank - 1])
    assert float(conformal_quantile(scores, delta)) == expected


@pytest.mark.parametrize("n", [9, 14, 19])
def test_split_conformal_covers_with_few_rows_and_the_plain_quantile_does_not(n):
    """4000 fresh sets of n scores and one more: ⌈(n+1)(1−δ)⌉ is enough, ⌈n(1−δ)⌉ is refuted where it differs."""
    scores = torch.rand(n + 1, 4000, **F64, generator=torch.Generator().manual_seed(n)).log().neg()
    held = scores[-1] <= conformal_quantile(scores[:-1], DELTA)
    assert clopper_pearson_upper(int(held.sum()), 4000, 1e-3) >= 1 - DELTA
    plain = scores[:-1].sort(0).values[math.ceil(n * (1 - DELTA)) - 1]
    if math.ceil(n * (1 - DELTA)) < math.ceil((n + 1) * (1 - DELTA)):
        assert clopper_pearson_upper(int((scores[-1] <= plain).sum()), 4000, 1e-3) < 1 - DELTA


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match="at least 9 held-out rows"):
        Conformal.fit(Unit(), rows(normal(0, 8)), delta=DELTA)
    with pytest.raises(ValueError, match="at least 9 held-out trajectories"):
        Conformal.fit(Unit(), rows(normal(0, 80)), delta=DELTA, groups=[i // 10 for i in range(80)])
    with pytest.raises(ValueError, match="five finite residuals"):
        Isotonic.fit(Unit(), rows(normal(0, 4)))
    wrong = Transitions([[0.0, 0.0]], [[0.0]], [[0.0, 1.0]])  # errs where it is certain
    with pytest.raises(ValueError, match="a spread > 0"):
        ScaledStd.fit(Unit(), wrong)


def walks(seed: int, count: int, steps: int = 25) -> tuple[torch.Tensor, torch.Tensor]:
    """Residuals of trajectories, each with a size of its own: exchangeable as trajectories, not as rows."""
    size = 0.3 * torch.exp(1.2 * normal(seed, count)).unsqueeze(1)
    return (size * normal(seed + 1, count * steps).reshape(count, steps)).flatten(), torch.arange(
        count
    ).repeat_interleave(steps)


def test_a_band_for_steps_is_not_a_band_for_trajectories():
    held_out, labels = walks(0, 400)
    later, runs = walks(5, 600)
    found = {}
    for name, groups in {"step": None, "trajectory": labels}.items():
        held = inside(Conformal.fit(Unit(), rows(held_out), delta=DELTA, groups=groups), rows(later))
        found[name] = Rate(int(held.reshape(600, -1).all(1).sum()), 600)
    assert clopper_pearson_upper(found["trajectory"].hits, 600, 1e-3) >= 1 - DELTA
    assert found["step"].interval(0.999)[1] < 0.8
    assert len(runs) == 600 * 25


def test_outputs_jointly_is_wider_than_each():
    class Both(Unit):
        def predict(self, x, u):
            zero = 0 * (x + u)
            return Prediction(zero, zero + 1, torch.tensor(0.0, **F64))

    def two(seed: int, n: int) -> Transitions:
        y = normal(seed, 2 * n).reshape(n, 2)
        return Transitions(0 * y, 0 * y[:, :1], y)

    later, held = two(3, 2000), {}
    for outputs in ("each", "jointly"):
        held[outputs] = int(inside(Conformal.fit(Both(), two(2, 4000), delta=DELTA, outputs=outputs), later).sum())
    assert clopper_pearson_upper(held["jointly"], 2000, 1e-3) >= 1 - DELTA
    assert clopper_pearson(held["each"], 2000, 0.999)[1] < 1 - DELTA


# --------------------------------------------------------------------------------- what a broken assumption does
def refuted(model, data: Transitions) -> bool:
    held = inside(model, data)
    return clopper_pearson_upper(int(held.sum()), len(held), 1e-3) < 1 - DELTA


def test_damage_a_scale_for_residuals_that_are_not_gaussian():
    """Six in seven hardly err, the others err by 2: s = 0.77, and 1.64 s is not 2."""

    def two_sized(seed: int, n: int):
        return torch.where(torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.15, 2.0, 0.05) * torch.sign(
            normal(seed, n)
        )

    held_out, later = rows(two_sized(0, 2000).double()), rows(two_sized(1, 2000).double())
    assert refuted(KINDS["scaled"](held_out), later)
    assert not refuted(KINDS["conformal"](held_out), later)  # which assumes no shape


def test_damage_one_shape_for_residuals_that_change_from_place_to_place():
    """Left of 0 the model errs little, right of it much: the average is right, every place is wrong."""
    x = normal(0, 4000)
    y = torch.where(x < 0, 0.1, 3.0) * normal(1, 4000)
    model = KINDS["isotonic"](rows(y[:2000], x[:2000]))
    test_x, test_y = x[2000:], y[2000:]
    assert not refuted(model, rows(test_y, test_x))
    right = test_x > 0
    assert refuted(model, rows(test_y[right], test_x[right]))


def test_damage_exchangeability_under_a_shift_and_what_weights_repair():
    """Held-out rows from the left, new ones from the right, where errors are larger."""

    def at(seed: int, n: int, centre: float) -> Transitions:
        x = normal(seed, n) + centre
        return rows(torch.exp(0.8 * x) * normal(seed + 1, n), x)

    held_out, later = at(0, 6000, 0.0), at(2, 2000, 0.8)
    assert refuted(KINDS["conformal"](held_out), later)
    fitted = likelihood_ratio(held_out.z, at(4, 3000, 0.8).z)
    exact = Weighted.fit(Unit(), held_out, lambda z: torch.exp(0.8 * z[..., 0]), delta=DELTA)
    for model in (exact, Weighted.fit(Unit(), held_out, fitted, delta=DELTA)):
        assert not refuted(model, later)
        assert bool(torch.isfinite(model.predict(later.x[:50], later.u[:50]).mean).all())
    wrong = Weighted.fit(Unit(), held_out, lambda z: torch.exp(-0.8 * z[..., 0]), delta=DELTA)
    assert refuted(wrong, later)  # damage: weights of another shift


def test_exact_weights_cover_with_few_rows():
    """600 fresh sets of 25 rows and one row of the shifted kind: the theorem's finite sample, one-sided at 99.9 %."""
    held = 0
    for seed in range(600):
        x = normal(seed, 26)
        x[25] += 0.8
        data = rows(torch.exp(0.8 * x) * normal(seed + 10_000, 26), x)
        old, new = (Transitions(data.x[p], data.u[p], data.x_next[p]) for p in (slice(25), slice(25, 26)))
        model = Weighted.fit(Unit(), old, lambda z: torch.exp(0.8 * z[..., 0]), delta=DELTA)
        held += bool(inside(model, new))
    assert clopper_pearson_upper(held, 600, 1e-3) >= 1 - DELTA


@pytest.mark.parametrize("wrong", [-1.0, -50.0, math.nan, math.inf])
def test_a_ratio_that_is_none_promises_nothing(wrong):
    """A negative one shortened the interval, to the least score in the end; NaN never did."""
    model = Weighted.fit(Unit(), rows(normal(0, 50)), lambda z: torch.ones_like(z[..., 0]), delta=DELTA)
    model = forged(model, ratio=lambda z: torch.where(z[..., 0] < 0, wrong, 1.0))
    assert torch.isinf(model.multiple(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).double())).tolist() == [True, False]


def test_weights_that_leave_the_rows_make_no_promise():
    model = Weighted.fit(Unit(), rows(normal(0, 50)), lambda z: torch.exp(3 * z[..., 0]), delta=DELTA)
    far = model.predict(torch.tensor([[5.0, 0.0]], **F64), torch.zeros(1, 1, **F64))
    assert bool(torch.isinf(far.std).all())  # also of the state without spread, of which the rows say as little


class Half(Unit):
    """Says that it knows the second state, and does not: it is wrong at every step."""

    def predict(self, x, u):
        found = super().predict(x, u)
        return Prediction(found.mean + torch.tensor([0.0, 1.0], **F64), found.std, found.noise_std)


def test_adaptive_keeps_its_average_where_a_state_of_no_spread_is_wrong():
    """Everything was said to be inside while the interval of that state was a point: of 600 outcomes 600 were outside, where at
    most 79 are promised and 42 were counted."""
    model, outside = Adaptive.fit(Half(), rows(normal(0, 100)), delta=DELTA, rate=0.05), 0
    data = rows(normal(3, 600))
    for i in range(600):
        low, high = model.interval(data.x[i], data.u[i])
        outside += not bool(((low <= data.x_next[i]) & (data.x_next[i] <= high)).all())
        model = model.observe(data.x[i], data.u[i], data.x_next[i])
    assert outside == model.misses and abs(outside / 600 - DELTA) <= model.promised()


def drifting(seed: int, steps: int) -> torch.Tensor:
    return normal(seed, steps) * torch.linspace(1, 6, steps, **F64)


@pytest.mark.parametrize("sequence", [normal(3, 600), drifting(4, 600), torch.full((600,), 9.0, **F64)])
def test_adaptive_keeps_its_average_on_any_sequence(sequence):
    model = Adaptive.fit(Unit(), rows(normal(0, 100)), delta=DELTA, rate=0.05)
    data = rows(sequence)
    for i in range(len(sequence)):
        model = model.observe(data.x[i], data.u[i], data.x_next[i])
    assert model.steps == 600
    assert abs(model.misses / 600 - DELTA) <= model.promised() == pytest.approx((0.9 + 0.05) / (0.05 * 600))


def test_damage_adaptive_without_feedback():
    """Never told what happened, it is `Conformal`, and a drift leaves it behind."""
    model = Adaptive.fit(Unit(), rows(normal(0, 100)), delta=DELTA, rate=0.05)
    assert math.isinf(model.promised())
    assert refuted(model, rows(drifting(4, 600)))


def test_damage_rows_that_were_trained_on():
    """A model that passes through its own rows thinks itself perfect."""

    class Memory(Unit):
        def predict(self, x, u):
            found = super().predict(x, u)
            return Prediction(torch.where(x[..., 1:] == 1, x, found.mean), found.std, found.noise_std)

    y = normal(0, 500)
    seen = Transitions(
        torch.stack([y, torch.ones_like(y)], -1), torch.zeros(500, 1), torch.stack([y, torch.ones_like(y)], -1)
    )
    model = Conformal.fit(Memory(), seen, delta=DELTA)
    assert refuted(model, rows(normal(2, 500)))


def _line(count: int, source: torch.Generator) -> Transitions:
    x, u = torch.rand(2, count, 1, **F64, generator=source)
    return Transitions(x, u, torch.sin(9 * x) + 0.1 * torch.randn(count, 1, **F64, generator=source))


WITH = {
    "scaled": ScaledStd.fit,
    "isotonic": Isotonic.fit,
    "conformal": Conformal.fit,
    "weighted": lambda model, held: Weighted.fit(model, held, lambda z: torch.ones_like(z[..., 0])),
    "adaptive": Adaptive.fit,
}


@pytest.mark.parametrize("kind", WITH)
def test_held_out_rows_are_not_learnt(kind):
    source = torch.Generator().manual_seed(5)
    seen, held, new = (_line(count, source) for count in (20, 30, 10))
    model = GP.create(kernels.rbf([0.3, 0.3]), 1e-6, nx=1, nu=1, noise_std=torch.tensor([1e-3], **F64)).condition(seen)
    fitted = WITH[kind](model, held)
    with pytest.raises(ValueError, match="1 of 11 rows held out"):
        fitted.condition(new + held.select(slice(3, 4)))
    with pytest.raises(ValueError, match="2 of 32 are among the model's data"):
        WITH[kind](model, held + seen.select(slice(0, 2)))
    other = Transitions(seen.x[:2], seen.u[:2], seen.x_next[:2] + 0.1)  # the same inputs, seen once more
    assert len(WITH[kind](model, held + other).held_out) == 32
    assert fitted.condition(new).model.num_data == 30


def test_what_learning_held_out_rows_does_to_a_conformal_interval():
    """Nine of ten are claimed; with the rows in the model's data far fewer are inside (so they are refused)."""
    source, found = torch.Generator().manual_seed(6), [0.0, 0.0]
    for _ in range(5):
        seen, held, new = (_line(count, source) for count in (40, 60, 400))
        model = GP.create(kernels.rbf([0.3, 0.3]), 1e-6, nx=1, nu=1, noise_std=torch.tensor([1e-3], **F64))
        honest = Conformal.fit(model.condition(seen), held)
        broken = forged(honest, model=model.condition(seen + held))
        told = broken.model.predict(held.x, held.u)
        scores = (held.x_next - told.mean).abs() / total_std(told)
        broken = forged(broken, multiple=conformal_quantile(scores, DELTA))
        for i, each in enumerate((honest, broken)):
            found[i] += float(inside(each, new).double().mean()) / 5
    assert found[0] > 0.85
    assert found[1] < 0.8
