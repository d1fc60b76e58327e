"""The agent: gradients against autograd, an update against stable-baselines3, learning curves, stacks, resuming."""

import importlib.util
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpsafe.planning.mbpo.replay import Ring, train
from gpsafe.planning.mbpo.sac import LOG_STD, SAC, Settings

SMALL = Settings(hidden=(16, 12), learning_rate=1e-3)
LEARNT = ("actor", "critic", "target")


def batches(seed: int, agent: SAC, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """A batch whose inputs lie within the limits, one row in five terminal, and noise."""
    g, nx, nu = np.random.default_rng(seed), agent.nx, agent.nu
    batch = g.standard_normal((len(agent.seeds), rows, 2 * nx + nu + 2)).astype(np.float32)
    batch[..., nx : nx + nu] = agent.middle + agent.radius * g.uniform(-1, 1, batch[..., nx : nx + nu].shape)
    batch[..., -1] = g.random(batch.shape[:2]) < 0.2
    return batch, g.standard_normal((len(agent.seeds), 2, rows, nu)).astype(np.float32)


def as_layers(flat: np.ndarray, sizes: tuple[int, ...]) -> list[torch.Tensor]:
    """W and b of one network, float64 leaves."""
    found, at = [], 0
    for d_in, d_out in itertools.pairwise(sizes):
        for shape in ((d_in, d_out), (d_out,)):
            size = int(np.prod(shape))
            found.append(torch.tensor(flat[at : at + size].reshape(shape), dtype=torch.float64, requires_grad=True))
            at += size
    return found


def run(layers: list[torch.Tensor], z: torch.Tensor) -> torch.Tensor:
    for i in range(0, len(layers), 2):
        z = (torch.relu(z) if i else z) @ layers[i] + layers[i + 1]
    return z


def drawn(
    agent: SAC, layers: list[torch.Tensor], x: torch.Tensor, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """a and log π(a|x), by torch's own distributions."""
    mean, log_std = run(layers, x).split(agent.nu, -1)
    std = log_std.clamp(*LOG_STD).exp()
    raw = mean + std * noise
    squash = torch.distributions.TanhTransform()
    density = torch.distributions.Normal(mean, std).log_prob(raw) - squash.log_abs_det_jacobian(raw, torch.tanh(raw))
    return torch.tanh(raw), density.sum(-1)


def autograd(agent: SAC, before: dict, i: int, batch: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of agent i: of the critics at the weights `before`, of the actor with the critics after their step."""
    s, nx, nu = agent.settings, agent.nx, agent.nu
    rows, eps = torch.tensor(batch[i], dtype=torch.float64), torch.tensor(noise[i], dtype=torch.float64)
    x, u, r, after, done = rows.split([nx, nu, 1, nx, 1], -1)
    actor = as_layers(before["actor.flat"][i], agent.actor.sizes)
    critics, slow = (
        [as_layers(before[f"{n}.flat"][i, k], agent.critic.sizes) for k in range(2)] for n in ("critic", "target")
    )
    with torch.no_grad():
        new, density = drawn(agent, actor, after, eps[1])
        worth = torch.minimum(*(run(q, torch.cat([after, new], -1)) for q in slow)) - s.entropy * density[:, None]
        goal = r + s.discount * (1 - done) * worth
    a = (u - torch.from_numpy(agent.middle)) / torch.from_numpy(agent.radius)
    loss = sum(0.5 * (run(q, torch.cat([x, a], -1)) - goal).square().mean() for q in critics)
    critic = [torch.autograd.grad(loss, q, retain_graph=True) for q in critics]
    stepped = [as_layers(agent.critic.flat[i, k], agent.critic.sizes) for k in range(2)]
    own, density = drawn(agent, actor, x, eps[0])
    least = torch.minimum(*(run(q, torch.cat([x, own], -1)) for q in stepped))
    policy = torch.autograd.grad((s.entropy * density[:, None] - least).mean(), actor)
    flat = [np.concatenate([g.numpy().ravel() for g in gradients]) for gradients in (*critic, policy)]
    return np.stack(flat[:2]), flat[2]


@settings(max_examples=10)
@given(
    st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**16), st.sampled_from([0.0, 3.0, -21.0])
)
def test_the_gradients_are_those_of_autograd(nx: int, nu: int, count: int, seed: int, log_std: float) -> None:
    agent = SAC(nx, nu, [-2.0] * nu, [1.0] * nu, range(seed, seed + count), SMALL)
    agent.actor.layers[-1][1][..., nu:] += log_std  # around a limit of log σ: rows on either side of it
    before = agent.state()
    batch, noise = batches(seed, agent, 9)
    agent.update(batch, noise)
    for i in range(count):
        critic, actor = autograd(agent, before, i, batch, noise)
        for found, true in ((agent.critic.gradient[i], critic), (agent.actor.gradient[i], actor)):
            assert np.abs(found - true).max() <= 3e-5 * np.abs(true).max() + 1e-6


def test_control_a_forgotten_term_of_the_entropy_is_noticed() -> None:
    agent = SAC(2, 1, [-1.0], [1.0], [0], SMALL)
    before = agent.state()
    batch, noise = batches(0, agent, 9)
    agent.update(batch, noise)
    _, actor = autograd(agent, before, 0, batch, noise)
    for wrong in (actor * 1.01, actor + 1e-2 * np.eye(1, len(actor), len(actor) - 1)[0]):
        assert np.abs(agent.actor.gradient[0] - wrong).max() > 3e-5 * np.abs(wrong).max() + 1e-6


def test_adam_and_the_slow_copies_take_torchs_step() -> None:
    agent = SAC(2, 2, [-1.0, -3.0], [1.0, 2.0], [3], SMALL)
    slow, flat = agent.target.flat.copy(), torch.tensor(agent.critic.flat, requires_grad=True)
    adam = torch.optim.Adam([flat], lr=SMALL.learning_rate)
    for seed in range(3):
        agent.update(*batches(seed, agent, 9))
        flat.grad = torch.tensor(agent.critic.gradient)
        adam.step()
        np.testing.assert_allclose(agent.critic.flat, flat.detach().numpy(), atol=2e-7)
        slow = 0.995 * slow + 0.005 * agent.critic.flat
        np.testing.assert_allclose(agent.target.flat, slow, atol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("stable_baselines3") is None, reason="needs the extra 'rl'")
@pytest.mark.parametrize("updates", [1, 3])
def test_an_update_is_that_of_stable_baselines3(updates: int) -> None:
    from gymnasium import Env, spaces
    from stable_baselines3 import SAC as Theirs
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.type_aliases import ReplayBufferSamples

    class Sizes(Env):
        observation_space, action_space = spaces.Box(-9, 9, (3,), np.float32), spaces.Box(-2, 2, (2,), np.float32)

    theirs = Theirs(
        "MlpPolicy",
        Sizes(),
        ent_coef=0.2,
        buffer_size=1,
        policy_kwargs={"net_arch": [16, 12], "activation_fn": torch.nn.ReLU},
        learning_rate=1e-3,
        device="cpu",
    )
    theirs.set_logger(Logger(None, []))
    agent = SAC(3, 2, [-2.0] * 2, [2.0] * 2, [0], SMALL)

    def joined(net: torch.nn.Module, of: tuple[str, ...]) -> np.ndarray:
        """Their weights in our order: layers in turn, W turned; μ and log σ are one layer here."""
        parameters = dict(net.named_parameters())
        found = []
        for group in of:
            pairs = [(parameters[f"{n}.weight"].T, parameters[f"{n}.bias"]) for n in group.split("+")]
            found += [torch.cat([w for w, _ in pairs], 1).flatten(), torch.cat([b for _, b in pairs])]
        return torch.cat(found).detach().numpy()

    def weights() -> dict[str, np.ndarray]:
        critics = {
            name: np.stack([joined(net, tuple(f"qf{k}.{j}" for j in (0, 2, 4))) for k in (0, 1)])
            for name, net in (("critic", theirs.critic), ("target", theirs.critic_target))
        }
        return {"actor": joined(theirs.actor, ("latent_pi.0", "latent_pi.2", "mu+log_std")), **critics}

    for name, value in weights().items():
        getattr(agent, name).flat[0] = value
    start = weights()
    for seed in range(updates):
        batch, _ = batches(seed, agent, 32)
        x, u, r, after, done = torch.from_numpy(batch[0]).split([3, 2, 1, 3, 1], -1)
        theirs.replay_buffer.sample = lambda *_, b=(x, u / 2, after, done, r), **__: ReplayBufferSamples(*b)  # type: ignore[union-attr]
        torch.manual_seed(seed)
        noise = torch.stack([torch.normal(torch.zeros(32, 2), torch.ones(32, 2)) for _ in range(2)])
        torch.manual_seed(seed)
        theirs.train(1, 32)
        agent.update(batch, noise.numpy()[None])
    for name, value in weights().items():
        moved, ours = value - start[name], getattr(agent, name).flat[0] - start[name]
        assert np.abs(moved).max() > 1e-6
        # Adam's first steps are ±rate whatever the size of a gradient: those of rounding size may differ in sign
        assert (np.abs(ours - moved) > 1e-2 * np.abs(moved).max()).mean() < 5e-3, name


def test_stacked_seeds_give_the_bits_of_single_ones_and_a_resumed_run_those_of_one_that_was_not() -> None:
    def advance(agent: SAC, rings: list[Ring], updates: int) -> SAC:
        train(agent, rings, rings[::-1] if len(rings) == 1 else None, updates, group=4, real_ratio=0.5, batch=32)
        return agent

    seeds, rings = (5, 1, 9), []
    for seed in seeds:
        ring, g = Ring(50, 2, 1), np.random.default_rng(seed)
        ring.extend(g.standard_normal((50, 7)).astype(np.float32) * np.array([1, 1, 0.5, 1, 1, 1, 0], np.float32))
        rings.append(ring)
    stacked = SAC(2, 1, [-1.0], [1.0], seeds, Settings())
    x = np.random.default_rng(2).standard_normal((3, 40, 2)).astype(np.float32)
    stacked.imitate(x, np.tanh(x[..., :1]), steps=3, batch=16)
    advance(stacked, rings, 5)
    whole = stacked.state()
    for i, seed in enumerate(seeds):
        single = SAC(2, 1, [-1.0], [1.0], [seed], Settings())
        single.imitate(x[i : i + 1], np.tanh(x[i : i + 1, :, :1]), steps=3, batch=16)
        saved = advance(single, rings[i : i + 1], 2).state()
        resumed = SAC(2, 1, [-1.0], [1.0], [77], Settings())
        resumed.load(saved)
        for name, value in advance(resumed, rings[i : i + 1], 3).state().items():
            expected = whole[name][i : i + 1] if value.ndim else whole[name]
            np.testing.assert_array_equal(value, expected, err_msg=name)
        np.testing.assert_array_equal(resumed.sample(x[i : i + 1])[0], stacked.policy(i)(x[i]))


def test_a_terminal_row_does_not_bootstrap_and_a_time_out_does() -> None:
    agent = SAC(2, 1, [-1.0], [1.0], [0], SMALL)
    agent.target.layers[-1][1][:] = 1e3  # worth of what comes after
    batch, noise = batches(1, agent, 8)
    for terminal in (True, False):
        batch[..., -1] = terminal
        fresh = agent.state()
        agent.update(batch, noise)
        pulls = agent.critic.gradient[0, :, -1]  # of the last bias: mean of Q − y
        assert (np.abs(pulls) < 20).all() if terminal else (pulls < -900).all()
        agent.load(fresh)


@given(st.floats(-1e4, 1e4), st.floats(-30, 10), st.floats(-4, 4))
def test_the_density_is_finite_and_right_where_tanh_rounds_to_one(mean: float, log_std: float, noise: float) -> None:
    agent = SAC(1, 1, [-1.0], [1.0], [0], SMALL)
    a, density, _ = agent._draw(np.array([[[mean, log_std]]], np.float32), np.array([[[noise]]], np.float32))
    m, s = np.float64(np.float32(mean)), np.clip(np.float64(np.float32(log_std)), *LOG_STD)
    raw = m + np.exp(s) * noise
    slope = 2 * (np.log(2) - abs(raw) - np.log1p(np.exp(-2 * abs(raw))))
    true = -0.5 * noise**2 - s - 0.5 * np.log(2 * np.pi) - slope
    assert abs(a.item()) <= 1 and abs(density.item() - true) <= 1e-4 * (1 + abs(true))


def test_actions_keep_each_inputs_limits_and_imitation_learns_them() -> None:
    agent = SAC(2, 2, [-2.0, 0.0], [1.0, 10.0], [0, 1])
    x = np.random.default_rng(0).uniform(-1, 1, (2, 200, 2))
    wanted = np.stack([-0.5 + x[..., 0], 5.0 + 4.0 * x[..., 1]], -1)
    before = agent.state()
    agent.imitate(x, wanted, steps=300)
    error = np.abs(agent.act(x) - wanted) / agent.radius
    assert error.mean() < 0.05
    after = agent.state()
    assert all(np.array_equal(before[n], after[n]) for n in before if n not in ("actor.flat", "generators"))
    u = agent.sample(np.full((2, 500, 2), 30.0))
    assert (u >= [-2.0, 0.0]).all() and (u <= [1.0, 10.0]).all()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((2, 1, [-1.0], [-1.0], [0]), "high - low > 0"),
        ((2, 1, [-1.0], [1.0, 2.0], [0]), r"low, high of shape \(1,\)"),
        ((2, 1, [-1.0], [1.0], []), "number of seeds"),
        ((2, 1, [-1.0], [1.0], [0.5]), "seed"),
        ((0, 1, [-1.0], [1.0], [0]), "nx"),
    ],
)
def test_wrong_arguments_are_refused(arguments: tuple, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SAC(*arguments)


def test_wrong_states_settings_and_files_are_refused() -> None:
    agent = SAC(2, 1, [-1.0], [1.0], [0], SMALL)
    with pytest.raises(ValueError, match=r"x of shape \(1, n, 2\)"):
        agent.act(np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"u of shape \(1, n, 1\)"):
        agent.imitate(np.zeros((1, 4, 2)), np.zeros((1, 4, 2)))
    with pytest.raises(ValueError, match="flat of shape"):
        agent.load(SAC(3, 1, [-1.0], [1.0], [0], SMALL).state())
    for wrong in ({"discount": 1.5}, {"polyak": -0.1}, {"learning_rate": 0.0}, {"entropy": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Settings(**wrong)


def test_it_learns_to_return_to_the_origin_from_random_data() -> None:
    """x⁺ = x + u/2, reward −x²: after 250 updates on uniform transitions the mean action takes x to 0."""
    g = np.random.default_rng(0)
    x, u = g.uniform(-1, 1, (2000, 1)), g.uniform(-1, 1, (2000, 1))
    after = x + u / 2
    ring = Ring(2000, 1, 1)
    ring.add(x, u, -10 * after[:, 0] ** 2, after, np.zeros(2000))
    agent = SAC(1, 1, [-1.0], [1.0], [0], Settings(hidden=(32, 32), learning_rate=3e-3, discount=0.9, entropy=0.02))

    def cost() -> float:
        state, total = np.linspace(-1, 1, 21)[None, :, None], 0.0
        for _ in range(5):
            state = state + agent.act(state) / 2
            total += float(np.square(state).mean())
        return total

    before = cost()
    train(agent, [ring], None, 250, group=1, real_ratio=1.0)
    assert cost() < 0.15 < 0.5 < before


@pytest.mark.slow
def test_it_learns_gymnasiums_pendulum() -> None:
    """Two stacked seeds, an update a step: means of the last ten of 50 episodes above −300, where random inputs have −1200."""
    import gymnasium

    agent = SAC(3, 1, [-2.0], [2.0], [0, 1], Settings(learning_rate=1e-3))
    envs, rings = [gymnasium.make("Pendulum-v1") for _ in range(2)], [Ring(10_000, 3, 1) for _ in range(2)]
    returns = np.zeros((50, 2))
    for episode in range(50):
        states = np.stack([env.reset(seed=100 * i + episode)[0] for i, env in enumerate(envs)])
        for _ in range(200):
            actions = agent.sample(states[:, None])[:, 0]
            for i, env in enumerate(envs):
                after, reward, ended, *_ = env.step(actions[i])
                rings[i].add(states[i], actions[i], reward, after, ended)
                states[i] = after
                returns[episode, i] += float(reward)
            if len(rings[0]) >= 500:
                train(agent, rings, None, 1, group=1, real_ratio=1.0)
    assert (returns[-10:].mean(0) > -300).all() and (returns[:3].mean(0) < -800).all(), returns
