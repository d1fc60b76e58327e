"""The world model: divergences against closed forms, gradients, a linear-Gaussian toy with a Kalman filter, its file."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from gpsafe.models._latent import Categorical, Gaussian, Head, disagreement, divergence, gaussian_log_density
from gpsafe.models._recurrent import GRU, Decoder, Encoder
from gpsafe.models.rssm import RSSM, RSSMSettings, State

EXACT, SOLVE = 1e-12, 1e-8
SMALL = RSSMSettings(
    (8, 8, 1), nu=1, deterministic=6, stochastic=3, hidden=7, embedding=5, members=3, depth=2, dtype="float64"
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(seed: int = 0, **changes: object) -> RSSM:
    fields = {name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__} | changes
    return RSSM(RSSMSettings(**fields), generator(seed))  # type: ignore[arg-type]


def sequences(seed: int = 0, batch: int = 4, steps: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    g = generator(seed)
    return torch.rand(batch, steps, 8, 8, 1, dtype=torch.float64, generator=g), torch.randn(
        batch, steps, 1, dtype=torch.float64, generator=g
    )


def latent(kind: str, seed: int, *batch: int) -> Gaussian | Categorical:
    head = Head(kind, size=3, classes=4)  # type: ignore[arg-type]
    return head(3.0 * torch.randn(*batch, head.width, dtype=torch.float64, generator=generator(seed)))  # type: ignore[return-value]


# ------------------------------------------------------------------------------------------------------ divergences
@given(seeds())
def test_the_divergence_of_gaussians_is_that_of_torch_and_zero_only_of_equals(seed):
    p, q = (latent("gaussian", seed + k, 6) for k in (0, 1))
    assert isinstance(p, Gaussian) and isinstance(q, Gaussian)
    of = torch.distributions.kl_divergence(
        *(torch.distributions.Independent(torch.distributions.Normal(d.mean, d.std), 1) for d in (q, p))
    )
    assert torch.allclose(q.kl(p), of, rtol=1e-10, atol=1e-12)
    assert float(q.kl(q).abs().max()) <= EXACT and bool((q.kl(p) > 0).all())


@given(seeds())
def test_the_divergence_of_categoricals_is_the_sum_over_groups(seed):
    p, q = (latent("categorical", seed + k, 6) for k in (0, 1))
    assert isinstance(p, Categorical) and isinstance(q, Categorical)
    of = torch.distributions.kl_divergence(
        *(torch.distributions.Independent(torch.distributions.Categorical(probs=d.probabilities), 1) for d in (q, p))
    )
    assert torch.allclose(q.kl(p), of, rtol=1e-9, atol=1e-10)
    assert float(q.kl(q).abs().max()) <= EXACT and float(p.probabilities.min()) >= 0.01 / 4 - EXACT


@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
@given(seed=seeds(), balance=st.floats(0, 1), free=st.floats(0, 5))
def test_balance_divides_the_gradient_and_leaves_the_value(kind, seed, balance, free):
    head = Head(kind, size=3, classes=4)
    raw = torch.randn(2, 6, head.width, dtype=torch.float64, generator=generator(seed)).requires_grad_(True)
    q, p = head(raw[0]), head(raw[1])
    value, plain = divergence(q, p, balance=balance, free_nats=free)
    assert torch.allclose(value, plain.clamp_min(free), atol=1e-10)
    (found,) = torch.autograd.grad(value.sum(), raw, retain_graph=True)
    (whole,) = torch.autograd.grad(torch.where(plain > free, q.kl(p), 0.0 * q.kl(p)).sum(), raw)
    assert torch.allclose(found[0], (1 - balance) * whole[0], atol=1e-9)
    assert torch.allclose(found[1], balance * whole[1], atol=1e-9)


def test_samples_have_the_moments_of_their_distribution_and_carry_gradients():
    for kind, seed in product(("gaussian", "categorical"), range(2)):
        of = latent(kind, seed, 1)
        many = type(of)(*(getattr(of, f).expand(4000, *getattr(of, f).shape[1:]) for f in of.__dataclass_fields__))
        drawn = many.sample(generator(seed))
        error = (of.std / math.sqrt(4000))[0]
        assert bool(((drawn.mean(0) - of.mean[0]).abs() <= 5 * error + 1e-9).all())
        assert torch.allclose(drawn.std(0), of.std[0], rtol=0.2, atol=0.03)
    p = torch.full((1, 3, 4), 0.25, dtype=torch.float64, requires_grad=True)
    drawn = Categorical(p).sample(generator())
    assert torch.allclose(drawn.unflatten(-1, (3, 4)).sum(-1), torch.ones(3).double())
    assert torch.equal(torch.autograd.grad((drawn * torch.arange(12)).sum(), p)[0].flatten(), torch.arange(12).double())


@given(seeds(), st.floats(0.1, 50.0))
def test_disagreement_is_the_published_formula_and_vanishes_where_members_agree(seed, scale):
    of = latent("gaussian", seed, 5, 4)
    assert isinstance(of, Gaussian)
    found = disagreement(of, scale=scale)
    for b in range(4):
        between = sum(of.mean[:, b, d].var(unbiased=False) for d in range(3)) / 3
        within = sum(of.std[m, b, d] ** 2 for m in range(5) for d in range(3)) / 15
        assert float(found[b]) == pytest.approx(0.5 * math.log(1 + scale * float(between) / (float(within) + 1e-5)))
    same = Gaussian(of.mean[:1].expand(5, -1, -1), of.std)
    assert float(disagreement(same).abs().max()) <= EXACT


# ------------------------------------------------------------------------------------------------------------ parts
def test_a_member_of_the_cell_is_torchs_gated_unit():
    cell = GRU(3, 2, 4, generator()).double()
    x, h = torch.randn(3, 5, 2).double(), torch.randn(3, 5, 4).double()
    found = cell(x, h)
    for m in range(3):
        other = torch.nn.GRUCell(2, 4).double()
        with torch.no_grad():
            other.weight_ih.copy_(cell.into.weight[m].T)
            other.weight_hh.copy_(cell.around.weight[m].T)
            other.bias_ih.copy_(cell.into.bias[m, 0])
            other.bias_hh.copy_(cell.around.bias[m, 0])
        assert torch.allclose(found[m], other(x[m], h[m]), atol=1e-12)


@pytest.mark.parametrize("size", [8, 16, 32, 64])
@pytest.mark.parametrize("depth", [0, 2])
def test_encoder_and_decoder_have_the_shapes_of_the_images(size, depth):
    shape = (size, size, 3)
    encode = Encoder(shape, depth=depth, hidden=(5,), out=7, generator=generator()).double()
    decode = Decoder(shape, depth=depth, hidden=(5,), d_in=7, generator=generator()).double()
    images = torch.rand(2, *shape, dtype=torch.float64)
    assert encode(images).shape == (2, 7) and decode(encode(images)).shape == images.shape
    with pytest.raises(ValueError, match="power of 2"):
        Encoder((size, 12, 3), depth=2, hidden=(), out=7, generator=generator())


# ------------------------------------------------------------------------------------------------------------ model
@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
def test_the_loss_reaches_every_weight_and_members_are_trained_by_their_own_sequences(kind):
    model, (o, a) = small(latent=kind, free_nats=0.0), sequences()
    model.loss(o, a, generator()).total.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert without == []
    model.zero_grad()
    weights = torch.zeros(3, 4)
    weights[1] = 1.0
    model.loss(o, a, generator(), weights=weights).total.backward()
    heads = model.prior.layers[-1].weight.grad
    assert heads is not None
    assert [bool(g.abs().sum() > 0) for g in heads] == [False, True, False]


def test_free_nats_silence_the_prior_and_the_posterior_gets_no_gradient_of_the_divergence():
    model, (o, a) = small(free_nats=1e6), sequences()
    model.loss(o, a, generator()).total.backward()
    heads = model.prior.layers[-1].weight.grad
    assert heads is None or not bool(heads.abs().sum() > 0)


def test_everything_is_determined_by_generators_and_settings():
    (o, a), found = sequences(), []
    for _ in range(2):
        model = small(7)
        found.append((model.loss(o, a, generator(3)).total, model.filter(o, a, generator(4)).states.feature))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert not torch.equal(small(8).loss(o, a, generator(3)).total, found[0][0])
    assert torch.equal(small(7).filter(o, a, None).states.feature, small(7).filter(o, a, None).states.feature)


@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
def test_a_saved_model_is_the_same_model(tmp_path, kind):
    model, (o, a) = small(latent=kind), sequences()
    model.save(tmp_path / "model.pt")
    again = RSSM.load(tmp_path / "model.pt")
    assert again.settings == model.settings
    assert torch.equal(again.loss(o, a, generator(1)).total, model.loss(o, a, generator(1)).total)
    torch.save({"format": "another"}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"RSSM.load"):
        RSSM.load(tmp_path / "other.pt")


def test_the_model_follows_its_weights_to_another_device():
    """No tensor is made on the CPU by name: on the meta device an operation would mix devices."""
    model, (o, a) = small().to("meta"), (v.to("meta") for v in sequences())
    h, prior = model.predict(model.initial(4), a[:, 0])
    posterior = model.infer(h[0], model.encoder(o[:, 0]))
    assert posterior.mean.device.type == prior.mean.device.type == disagreement(prior).device.type == "meta"
    assert model.decode(State(h[0], posterior.mean)).shape == (4, 8, 8, 1)


def test_members_apart_are_each_their_own_model_and_together_one_is_drawn_anew():
    model, (o, a) = small(), sequences(batch=2)
    start = model.filter(o, a, None).states[-1]

    def still(state: State) -> torch.Tensor:
        return state.stochastic[..., :1] * 0.0

    with torch.no_grad():
        states, actions, doubt = model.imagine(start, still, 4, generator(1), apart=True)
    assert states.feature.shape == (5, 3, 2, 9) and actions.shape == (4, 3, 2, 1) and doubt.shape == (4, 2)
    assert torch.equal(states.feature[0], start.feature.expand(3, -1, -1))
    h, _ = model.predict(start, torch.zeros(2, 1))
    assert torch.allclose(states.deterministic[1], h)
    with torch.no_grad():
        one, *_ = model.imagine(start, still, 4, generator(1))
    assert one.feature.shape == (5, 1, 2, 9)
    assert any(torch.allclose(one.deterministic[1, 0], h[m]) for m in range(3))
    assert bool((doubt >= 0).all())


def test_what_makes_no_sense_is_refused():
    o, a = sequences()
    with pytest.raises(ValueError, match="balance"):
        small(balance=1.5)
    with pytest.raises(ValueError, match="latent"):
        small(latent="cauchy")
    with pytest.raises(ValueError, match="observations"):
        small().filter(o[..., :4, :], a, None)
    with pytest.raises(ValueError, match="actions"):
        small().filter(o, a[:, :3], None)


# --------------------------------------------------------------------------------------- where the truth is known
A, B, C, Q, R = 0.9, 0.5, 1.3, 0.04, 0.09


def unsoftplus(x: float) -> float:
    return math.log(math.expm1(x))


def linear(gain: float, prior_std: float, posterior_std: float) -> RSSM:
    """s⁺ = As + Ba + N(0, Q), o = Cs + N(0, R), written into an affine model: h is the predicted mean, s the filtered one."""
    settings = RSSMSettings(
        (1,), nu=1, deterministic=1, stochastic=1, hidden=0, embedding=1, members=1, depth=0, cell="linear", least_std=0.0,
        free_nats=0.0, observation_std=math.sqrt(R), dtype="float64",
    )  # fmt: skip
    model = RSSM(settings, generator())
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.cell.into.weight[0, :, 0] = torch.tensor([A, B], dtype=torch.float64)  # type: ignore[union-attr,index]
        model.prior.layers[0].weight[0, 0, 0] = 1.0  # type: ignore[index]
        model.prior.layers[0].bias[0, 0, 1] = unsoftplus(prior_std)  # type: ignore[index]
        model.encoder.dense.layers[0].weight[0, 0, 0] = 1.0  # type: ignore[index]
        model.posterior.layers[0].weight[0, :, 0] = torch.tensor([1 - gain * C, gain], dtype=torch.float64)  # type: ignore[index]
        model.posterior.layers[0].bias[0, 0, 1] = unsoftplus(posterior_std)  # type: ignore[index]
        model.decoder.dense.layers[0].weight[0, :, 0] = torch.tensor([0.0, C], dtype=torch.float64)  # type: ignore[index]
    return model


def riccati() -> tuple[float, float]:
    """Stationary variance of s_t given o_1 … o_{t−1}, and the gain."""
    p = Q
    for _ in range(500):
        k = p * C / (C * C * p + R)
        p = A * A * (1 - k * C) * p + Q
    return p, p * C / (C * C * p + R)


def data(batch: int = 3, steps: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    g = generator(11)
    return tuple(torch.randn(batch, steps, 1, dtype=torch.float64, generator=g) for _ in range(2))  # type: ignore[return-value]


def test_filtering_a_linear_gaussian_plant_is_the_kalman_filter():
    variance, gain = riccati()
    model, (o, a) = linear(gain, math.sqrt(variance), math.sqrt((1 - gain * C) * variance)), data()
    found = model.filter(o, a, None)
    mean, spread = torch.zeros(3, 1).double(), (variance - Q) / A**2  # stationary from the first step on
    for t in range(40):
        predicted, ahead = A * mean + B * a[:, t], A * A * spread + Q
        k = ahead * C / (C * C * ahead + R)
        mean, spread = predicted + k * (o[:, t] - C * predicted), (1 - k * C) * ahead
        assert torch.allclose(found.prior.mean[0, t], predicted, atol=EXACT)
        assert torch.allclose(found.posterior.mean[t], mean, atol=EXACT)
        assert float(found.prior.std[0, t].detach().square().max()) == pytest.approx(ahead, rel=1e-9)
        assert float(found.posterior.std[t].detach().square().max()) == pytest.approx(spread, rel=1e-9)


def test_with_the_exact_posterior_the_bound_on_the_evidence_is_the_evidence():
    """E_q log p(o|s) − KL(q ‖ p) = log p(o | s_{t−1}, a) for q = p(s | s_{t−1}, a, o); for any other q it is less."""
    gain = Q * C / (C * C * Q + R)
    o, a = data(batch=50, steps=1)
    evidence = gaussian_log_density(o[:, 0], B * a[:, 0] * C, math.sqrt(C * C * Q + R)).mean()

    def bound(factor: float) -> float:
        std = factor * math.sqrt((1 - gain * C) * Q)
        model = linear(gain, math.sqrt(Q), std)
        found = model.filter(o, a, None)  # s_0 = 0, and the means are enough: the decoder is linear
        fit = gaussian_log_density(o[:, 0], model.decode(found.states)[0], math.sqrt(R)) - 0.5 * (C * std) ** 2 / R
        gap = found.posterior.kl(found.prior[0])[0]  # type: ignore[arg-type]
        return float((fit[:, 0] - gap).mean().detach())

    assert bound(1.0) == pytest.approx(float(evidence), abs=1e-9)
    assert bound(0.5) < float(evidence) - 0.01 and bound(1.5) < float(evidence) - 0.01
    sampled = linear(gain, math.sqrt(Q), math.sqrt((1 - gain * C) * Q))
    many = (v.repeat(400, 1, 1) for v in (o, a))
    assert float(-sampled.loss(*many, generator(2)).total.detach()) == pytest.approx(float(evidence), abs=0.03)


def test_control_a_wrong_gain_is_no_kalman_filter():
    variance, gain = riccati()
    (o, a), right = data(), linear(gain, math.sqrt(variance), 0.1)
    wrong = linear(0.5 * gain, math.sqrt(variance), 0.1)
    gap = right.filter(o, a, None).states.stochastic - wrong.filter(o, a, None).states.stochastic
    assert float(gap.detach().abs().max()) > 0.1


@pytest.mark.slow
def test_a_moving_dot_is_predicted_to_a_pixel_and_far_better_than_by_standing_still():
    """A dot of 16×16 pixels pushed left and right by actions: seen for five steps, imagined for ten, read from the picture."""
    g = generator(0)
    steps, size = 15, 16

    def episodes(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        push = torch.randint(-1, 2, (count, steps, 1), generator=g).float()
        push[:, 0] = 0
        start = 3 + 9 * torch.rand(count, 1, generator=g)
        place = start.clone()
        places = []
        for t in range(steps):
            place = (place + push[:, t]).clamp(1, 14)
            places.append(place)
        at = torch.stack(places, 1)  # (count, steps, 1)
        columns = (torch.arange(size) - at).square()
        rows = (torch.arange(size) - 7.5).square()
        return torch.exp(-0.3 * (columns.unsqueeze(-2) + rows.unsqueeze(-1))).unsqueeze(-1), push, at

    settings = RSSMSettings(
        (size, size, 1), nu=1, deterministic=32, stochastic=4, hidden=48, embedding=32, members=3, depth=4,
        observation_std=0.1, least_std=0.02, free_nats=0.0,
    )  # fmt: skip
    model = RSSM(settings, g)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    images, push, _ = episodes(256)
    for _ in range(400):
        rows = torch.randint(256, (32,), generator=g)
        loss = model.loss(images[rows], push[rows], g)
        optimiser.zero_grad()
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 100.0)
        optimiser.step()
    images, push, at = episodes(64)
    with torch.no_grad():
        start = model.filter(images[:, :5], push[:, :5], None).states[-1]
        ahead = iter(push[:, 5:].unbind(1))
        states, *_ = model.imagine(start, lambda _: next(ahead).unsqueeze(0), 10, g)
        light = (
            model.decode(State(states.deterministic[1:, 0], states.stochastic[1:, 0]))[..., 0].clamp_min(0.0).sum(-2)
        )
    found = (light * torch.arange(size)).sum(-1) / light.sum(-1)
    error = (found - at[:, 5:, 0].T).square().mean().sqrt()
    still = (at[:, 4] - at[:, 5:, 0]).square().mean().sqrt()
    assert float(error) <= 1.0 and float(error) <= 0.45 * float(still)
