"""Every output has its own B, R, λ, g and share of δ; half-widths are β√(σ² + rounding) plus what the model adds."""

import math
from dataclasses import replace

import pytest
import torch

from gpsafe.assumptions import Assumption
from gpsafe.confidence import AbbasiYadkori, ActSafeForm, ChowdhuryGopalan, Constant, Fiedler, Mixture, Srinivas
from gpsafe.models import GP, LowRankGP
from gpsafe.rkhs import kernels

NORM, NOISE, DELTA, COUNT = (1.3, 0.7), (0.4, 0.25), 0.06, 11
LOG = math.log(2 / DELTA)  # two outputs share δ
ASSUMED = {"rkhs_norm": NORM, "subgaussian": NOISE, "delta": DELTA}
KERNELS = (kernels.rbf([0.4, 0.6]), kernels.matern(1.5, [0.8, 0.5], variance=2.0))


def model(*regularizer: float, count: int = COUNT, mode: str = "theory") -> GP:
    generator = torch.Generator().manual_seed(5)
    prior = GP.create(KERNELS, regularizer, nx=2, nu=0, noise_std=0.1, mode=mode)
    z, y = (torch.rand(count, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    return prior.condition_on(z, y) if count else prior


def gains(posterior: GP) -> list[float]:
    if posterior.inputs is None:
        return [0.0, 0.0]
    eye = torch.eye(posterior.num_data, dtype=torch.float64)
    return [
        0.5 * float(torch.linalg.slogdet(eye + kernels.cross(k, posterior.inputs, posterior.inputs) / lam).logabsdet)
        for k, lam in zip(KERNELS, posterior.regularizer.tolist(), strict=True)
    ]


def chowdhury_gopalan(B, R, lam, g):
    return B + R * math.sqrt(2 * (g + 1 + LOG))


def srinivas(gain, count=COUNT):
    return lambda B, R, lam, g: math.sqrt(2 * B**2 + 300 * max(g, gain) * (math.log(count + 1) + LOG) ** 3)


GIVEN = []
FORMULAS = {
    "mixture": (
        Mixture(**ASSUMED), (0.3, 2.5), lambda B, R, lam, g: math.sqrt(B**2 + R**2 / lam * (2 * g + 2 * LOG)),
    ),
    "abbasi-yadkori": (
        AbbasiYadkori(**ASSUMED), (0.3, 2.5), lambda B, R, lam, g: B + R * math.sqrt((2 * g + 2 * LOG) / lam),
    ),
    "fiedler": (
        Fiedler(**ASSUMED), (0.3, 2.5),
        lambda B, R, lam, g: B + R * math.sqrt((2 * g + COUNT * math.log(max(1, lam)) + 2 * LOG) / lam),
    ),
    "fiedler-published": (
        Fiedler(**ASSUMED, convention="published"), (0.3, 1.0),
        lambda B, R, lam, g: B + R / lam * math.sqrt(2 * g + 2 * LOG),
    ),
    "chowdhury-gopalan": (ChowdhuryGopalan(**ASSUMED, max_data=COUNT), (1 + 2 / COUNT,) * 2, chowdhury_gopalan),
    "actsafe": (ActSafeForm(**ASSUMED, max_data=COUNT), (1 + 2 / COUNT,) * 2, chowdhury_gopalan),
    "srinivas": (Srinivas(**ASSUMED), tuple(r**2 for r in NOISE), srinivas(0.0)),
    "srinivas-given": (
        Srinivas(**ASSUMED, max_info_gain=lambda n: GIVEN.append(n) or 9.0), tuple(r**2 for r in NOISE), srinivas(9.0),
    ),
    "constant": (Constant(value=2.5, delta=DELTA), (0.3, 2.5), lambda B, R, lam, g: 2.5),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
def test_every_output_has_its_own_formula(name):
    bound, regularizer, formula = FORMULAS[name]
    posterior = model(*regularizer)
    own = gains(posterior)
    assert abs(own[0] - own[1]) > 0.05
    expected = [formula(*of) for of in zip(NORM, NOISE, regularizer, own, strict=True)]
    torch.testing.assert_close(bound.beta(posterior), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)
    if name == "srinivas-given":
        assert set(GIVEN) == {COUNT + 1}

    z = torch.tensor([[0.2, 0.3], [4.0, 4.0], [0.9, 0.1]], dtype=torch.float64)
    mean, std = posterior.posterior(z)
    prior = posterior.prior_variance(z)
    rounding = bound.half_width(posterior, torch.ones(2).double(), std, prior).square() - std.square()
    assert bool((rounding >= 0.999e-12 * prior).all()) and bool((rounding <= 1e-9).all())
    half = torch.tensor(expected, dtype=torch.float64) * (std.square() + rounding).sqrt()
    low, high = bound.interval(posterior, z)
    torch.testing.assert_close(low, mean - half, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(high, mean + half, rtol=1e-9, atol=1e-12)
    assert bool((half > bound.beta(posterior) * std).all())
    norms = torch.tensor([math.inf] * 2 if name == "constant" else NORM, dtype=torch.float64)
    torch.testing.assert_close(
        bound.prior_width(posterior, z), norms * torch.tensor([1.0, 2.0]).double().sqrt().expand(3, 2)
    )


def test_one_number_stands_for_all_outputs_and_other_lengths_are_refused():
    posterior = model(0.3, 0.3)
    one, two = (Mixture(rkhs_norm=b, subgaussian=0.4, delta=DELTA) for b in (1.3, (1.3, 1.3)))
    assert torch.equal(one.beta(posterior), two.beta(posterior))
    given = Mixture(rkhs_norm=torch.tensor([1.25, 2.0]), subgaussian=torch.tensor(0.5), delta=DELTA)
    assert (given.rkhs_norm, given.subgaussian) == ((1.25, 2.0), 0.5)  # kept as numbers
    for field in ("rkhs_norm", "subgaussian"):
        with pytest.raises(ValueError, match=f"{field} scalar or of length 2"):
            Mixture(**{**ASSUMED, field: (1.0, 1.0, 1.0)}).beta(posterior)
        for bad in (0.0, -1.0, math.inf, math.nan, (1.0, 0.0)):
            with pytest.raises(ValueError, match=field):
                Mixture(**{**ASSUMED, field: bad})
    for form in (ActSafeForm, ChowdhuryGopalan):
        with pytest.raises(ValueError, match="max_data >= 1"):
            form(**ASSUMED, max_data=0)
    with pytest.raises(ValueError, match="rkhs_norm"):
        Constant(rkhs_norm=-math.inf)
    assert Constant(rkhs_norm=math.inf, subgaussian=2.0).noise(2).tolist() == [2.0, 2.0]


def test_an_approximate_mean_widens_the_interval_by_its_error():
    exact = model(0.3, 2.5)
    low_rank = LowRankGP.create(exact, 4)
    bound, z = Mixture(**ASSUMED), torch.tensor([[0.2, 0.3], [0.5, 0.9]], dtype=torch.float64)
    mean, std = low_rank.posterior(z)
    error = low_rank.mean_error(z)
    assert bool((error > 1e-6).any())
    half = bound.half_width(low_rank, bound.beta(low_rank), std, low_rank.prior_variance(z)) + error
    low, high = bound.interval(low_rank, z)
    torch.testing.assert_close(low, mean - half, rtol=0, atol=1e-12)
    torch.testing.assert_close(high, mean + half, rtol=0, atol=1e-12)


def test_where_the_prior_has_no_variance_the_width_is_zero_even_without_a_norm():
    flat = GP.create(kernels.linear(2.0), 0.3, nx=1, nu=0, noise_std=0.1)
    z = torch.tensor([[0.0], [3.0]], dtype=torch.float64)
    assert Constant().prior_width(flat, z).flatten().tolist() == [0.0, math.inf]
    assert Constant().beta(flat).tolist() == [2.0]
    given = Mixture(rkhs_norm=1.5, subgaussian=0.1, delta=0.1)
    assert given.prior_width(flat, z).flatten().tolist() == pytest.approx([0.0, 1.5 * math.sqrt(2 * 9)])


N = 20
FIXED = 1 + 2 / N
REFUSED = [
    (ChowdhuryGopalan(**ASSUMED, max_data=N), (FIXED * (1 + 1.3e-15), FIXED), {}, r"lambda = 1 \+ 2/max_data = 1.1 "),
    (ChowdhuryGopalan(**ASSUMED, max_data=N), (FIXED, FIXED * (1 - 1.3e-15)), {}, r"lambda = 1 \+ 2/max_data"),
    (ChowdhuryGopalan(**ASSUMED, max_data=N), (FIXED, FIXED), {"count": N + 1}, f"n <= max_data = {N}"),
    (ChowdhuryGopalan(**ASSUMED, max_data=N), (FIXED, FIXED), {"count": N}, None),
    (ChowdhuryGopalan(**ASSUMED, max_data=N), (FIXED * (1 + 0.7e-15), FIXED), {}, None),
    (ChowdhuryGopalan(**ASSUMED, max_data=N), (FIXED, FIXED), {"mode": "practical"}, "theory-mode"),
    (ChowdhuryGopalan(**ASSUMED, max_data=1), (3.0 * (1 + 0.7e-15), 3.0), {"count": 1}, None),
    (ActSafeForm(**ASSUMED), (0.3, 0.3), {}, "max_data"),
    (ActSafeForm(**ASSUMED, max_data=N), (FIXED, FIXED), {"mode": "practical"}, "theory-mode"),
    (ActSafeForm(**ASSUMED, max_data=N), (FIXED, FIXED), {"count": N + 1}, "n <= max_data"),
    (Fiedler(**ASSUMED, convention="published"), (0.3, 1.0 + 1e-9), {}, "lambda <= 1"),
    (Fiedler(**ASSUMED, convention="published"), (0.3, 1.0), {}, None),
    (Fiedler(**ASSUMED), (0.3, 1.5), {"mode": "practical"}, "theory-mode"),
    (Srinivas(**ASSUMED), (NOISE[0] ** 2, NOISE[1] ** 2 * (1 + 1.3e-15)), {}, r"lambda = subgaussian\^2"),
    (Srinivas(**ASSUMED), (NOISE[0] ** 2 * (1 - 1.3e-15), NOISE[1] ** 2), {}, r"lambda = subgaussian\^2"),
    (Srinivas(**ASSUMED), (NOISE[0] ** 2 * (1 + 0.7e-15), NOISE[1] ** 2), {}, None),
    (Srinivas(**ASSUMED), (NOISE[0] ** 2, NOISE[1] ** 2), {"count": 0}, None),
    (Srinivas(**ASSUMED), (NOISE[0] ** 2, NOISE[1] ** 2), {"mode": "practical"}, "theory-mode"),
    (Mixture(**ASSUMED), (0.3, 0.3), {"mode": "practical"}, "theory-mode"),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_a_theorem_covers_its_models_and_refuses_the_others(case):
    bound, regularizer, options, message = REFUSED[case]
    posterior = model(*regularizer, **options)
    if message is None:
        assert bound.refusal(posterior) is None and bool((bound.beta(posterior) > 0).all())
        return
    with pytest.raises(ValueError, match=message):
        bound.beta(posterior)
    anyway = replace(bound, unchecked=True)
    assert bool((anyway.beta(posterior) > 0).all())
    assert len(anyway.assumptions(posterior)) == len(bound.assumptions(posterior)) + 1


def test_known_noise_scales_are_an_assumption_of_their_own():
    posterior = model(0.3, 0.3)
    scaled = model(0.3, 0.3, count=0).condition_on(
        posterior.inputs, posterior.targets, noise_scale=torch.linspace(1, 2, COUNT).double()
    )
    bound = Mixture(**ASSUMED)
    plain = bound.assumptions(posterior)
    assert bound.assumptions(scaled) == (*plain, Assumption.NOISE_SCALES())


def test_srinivas_compares_itself_with_the_mixture_bound_at_its_own_share_of_delta():
    """B → 0, λ = R², γ ≫ g: β² ≥ mixture² is 300 γ (ln(n + 1) + ln(2/δ))³ ≥ 2 (g + ln(2/δ))."""
    flat = tuple(kernels.rbf([0.4, 0.6], variance=1e-9) for _ in range(2))
    one = torch.tensor([[0.3, 0.3]], dtype=torch.float64)
    posterior = GP.create(flat, [r**2 for r in NOISE], nx=2, nu=0, noise_std=0.1).condition_on(one, one)
    edge = 2 * LOG / (300 * (math.log(2) + LOG) ** 3)
    for share, accepted in ((1.001, True), (0.999, False)):
        bound = Srinivas(rkhs_norm=1e-6, subgaussian=NOISE, delta=DELTA, max_info_gain=lambda n, s=share: s * edge)
        assert (bound.refusal(posterior) is None) == accepted


def test_srinivas_is_a_theorem_only_where_it_is_at_least_the_mixture_bound():
    """One of two outputs too small is enough; before any data nothing is asked."""
    flat = (kernels.rbf([0.4, 0.6], variance=1e-9), KERNELS[1])
    prior = GP.create(flat, [r**2 for r in NOISE], nx=2, nu=0, noise_std=0.1)
    tiny = Srinivas(rkhs_norm=(1e-3, 0.7), subgaussian=NOISE, delta=DELTA)
    assert tiny.refusal(prior) is None
    one = torch.tensor([[0.3, 0.3]], dtype=torch.float64)
    with pytest.raises(ValueError, match="information gain large enough"):
        tiny.beta(prior.condition_on(one, one))


def test_a_claimed_noise_below_the_tasks_is_refused_output_by_output():
    posterior = model(0.3, 2.5)
    sigma = torch.tensor(NOISE, dtype=torch.float64)
    for j in range(2):
        for ceiling, accepted in ((0.0, True), (math.inf, False)):  # one ulp down, one up
            larger = sigma.clone()
            larger[j] = math.nextafter(NOISE[j], ceiling)
            assert (Mixture(**ASSUMED).noise_refusal(posterior, larger) is None) == accepted
    assert Mixture(**ASSUMED).noise_refusal(posterior, sigma) is None
    assert Constant(subgaussian=1e-9).noise_refusal(posterior, sigma) is None  # it claims nothing of the noise
