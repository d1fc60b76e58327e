"""B and kernels from data: large enough where it says so, heuristic until declared, and refuted by rows that refute it."""

import math

import numpy as np
import pytest
import torch

import gpsafe as gs
from gpsafe.algorithms import Estimate, RecedingActSafe
from gpsafe.rkhs import RKHSFunction, kernels, random_function

pytestmark = pytest.mark.filterwarnings("ignore")
NORM = 2.0
DT = 0.1


def well(x, u):
    """A Duffing step."""
    return torch.stack(
        [x[..., 0] + DT * x[..., 1], x[..., 1] + DT * (-0.3 * x[..., 1] + x[..., 0] - x[..., 0] ** 3 + 2 * u[..., 0])],
        -1,
    )


def plant():
    return gs.plant(
        well, x0=[1.0, 0.0], horizon=5, noise_std=[1e-3, 1e-3], states=([0.0, -1.5], [2.0, 1.5]),
        inputs=([-1.0], [1.0]), safe=([0.3, -1.0], [1.7, 1.0]),
    )  # fmt: skip


def norm_in(f: RKHSFunction, scale: float, lengthscale: torch.Tensor, variance: float) -> float:
    """‖f‖ of f = Σ α k_ℓ(z_i, ·), ℓ = scale, variance 1, in the RKHS of another RBF kernel.

    k̂_ℓ²/k̂_ℓ′ is the transform of an RBF of ℓ″² = 2ℓ² − ℓ′²; there is no norm where that is not positive.
    """
    q = 2 * scale**2 - lengthscale.square()
    if bool((q <= 0).any()):
        return math.inf
    size = float((scale**2 / (lengthscale * q.sqrt())).prod()) / variance
    gram = size * torch.exp(-0.5 * torch.cdist(f.centers / q.sqrt(), f.centers / q.sqrt()).square())
    return math.sqrt(float(f.weights @ gram @ f.weights))


def draw(seed: int, *, d: int = 2, n: int = 60, scale: float = 0.5, noise: float = 0.01):
    """A function of norm 2 on [−1, 1]^d and n one-step episodes of the plant x⁺ = (f(x), …)."""
    g = torch.Generator().manual_seed(seed)
    box = torch.ones(d, dtype=torch.float64)
    f = random_function(kernels.rbf([scale] * d), -box, box, norm=NORM, generator=g)
    z = 2 * torch.rand(n, d, dtype=torch.float64, generator=g) - 1
    y = f(z) + noise * torch.randn(n, dtype=torch.float64, generator=g)
    return (
        f,
        [torch.stack([a, torch.cat([b.reshape(1), a[1:]])]) for a, b in zip(z, y, strict=True)],
        [np.zeros((1, 0))] * n,
    )


@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_with_the_kernel_given_b_is_large_enough(noise):
    for seed in range(4):
        _, states, inputs = draw(seed, noise=noise)
        found = gs.estimate(states, inputs, outputs=[0], kernels=kernels.rbf([0.5, 0.5]), noise_std=noise)
        assert found.rkhs_norm[0] >= NORM
        assert found.held_out.outcome == "HOLDS" and found.kernels[0] is not None


def test_with_a_fitted_kernel_b_is_large_enough_where_it_settled():
    enough = []
    for seed in range(4):
        f, states, inputs = draw(seed)
        found = gs.estimate(states, inputs, outputs=[0])
        form = kernels.stationary(found.kernels[0])
        assert form is not None and not kernels.is_stated(found.kernels[0])
        if found.settled:
            enough.append(found.rkhs_norm[0] >= norm_in(f, 0.5, form.lengthscale, float(form.variance)))
    assert len(enough) >= 3 and sum(enough) >= 0.95 * len(enough)


def test_few_rows_of_a_rough_function_say_that_the_norm_still_grows():
    _, states, inputs = draw(0, d=3, n=24, scale=0.25)
    found = gs.estimate(states, inputs, outputs=[0], kernels=kernels.rbf([0.25] * 3), noise_std=0.01)
    assert not found.settled and "still grows" in str(found.heuristic)


def test_held_out_rows_refute_what_the_others_do_not_show():
    """Control: the last quarter is of another function, far away from the first."""
    _, states, inputs = draw(1, n=40)
    late = [x + torch.tensor([[0.0, 0.0], [9.0, 0.0]]) for x in states[30:]]
    found = gs.estimate(states[:30] + late, inputs, outputs=[0], kernels=kernels.rbf([0.5, 0.5]), noise_std=0.01)
    honest = gs.estimate(states, inputs, outputs=[0], kernels=kernels.rbf([0.5, 0.5]), noise_std=0.01)
    assert honest.held_out.outcome == "HOLDS"
    small = Estimate(honest.kernels, (0.01,), *(getattr(honest, n) for n in ("noise_std", "outputs", "rows", "margin")),
                     honest.growth, 0.0, found.held_out)  # fmt: skip
    assert (
        found.held_out.outcome == "VIOLATED"
        and "refute" in str(found.heuristic)
        and "outside" in found.held_out.witness
    )
    for refuted in (found, small):
        with pytest.raises(ValueError, match=r"Estimate\.declare: .*outside"):
            refuted.declare()


def trajectory(n: int = 80):
    """The plant under random inputs, with its noise."""
    system, g = plant(), torch.Generator().manual_seed(0)
    states, inputs = [system.initial_state], []
    for _ in range(n):
        inputs.append(2 * torch.rand(1, dtype=torch.float64, generator=g) - 1)
        states.append(system.mean(states[-1], inputs[-1]) + 1e-3 * torch.randn(2, dtype=torch.float64, generator=g))
    return system, torch.stack(states), torch.stack(inputs)


def test_a_learner_takes_it_and_is_heuristic_until_declared():
    system, states, inputs = trajectory()
    known = gs.AffineKnown([[1, DT], [-2 * DT, 1 - 0.3 * DT]], [[0], [2 * DT]], [0, 2 * DT])
    kernel = kernels.rbf([2.0], 0.1, dims=[0])
    twin = gs.twin(system, known, kernels=kernel, outputs=(1,), counts=(9, 1, 1))
    found = gs.estimate(states, inputs, prior=known, outputs=[1], kernels=kernel, noise_std=1e-3)
    assert found.held_out.outcome == "HOLDS" and found.rkhs_norm[0] > 0
    learner = gs.sound_learner(twin, known, found).learn(2)
    assert isinstance(learner, RecedingActSafe) and learner.verified
    assert "estimated from 80 rows" in str(learner.unsound) and "heuristic" in repr(learner)
    assert learner.logger.frame()["phase"].tolist() == ["initial", "explore"]
    assert not learner.logger.frame()["guaranteed"].any()
    assert learner.logger.rows[1]["unsound"] == learner.unsound
    believed = gs.sound_learner(twin, known, found.declare())
    assert believed.unsound is None and believed.ask().unsound == "S_0 is assumed safe"
    assert "rkhs_norm" in " ".join(believed.model.confidence.assumptions)
    fitted = gs.estimate(states, inputs, prior=known, outputs=[1], noise_std=1e-3)
    with pytest.raises(ValueError, match="theory"):  # numbers taken out of it are no declaration
        gs.sound_learner(system, known, fitted.kernels, fitted.rkhs_norm, outputs=fitted.outputs)
    with pytest.raises(ValueError, match="rkhs_norm"):
        gs.sound_learner(system, known, [kernel])
    with pytest.raises(ValueError, match="without rkhs_norm"):
        gs.sound_learner(system, known, found, [1.0])
    about_zero = gs.estimate(states, inputs, outputs=[1], kernels=kernel, noise_std=1e-3)
    with pytest.raises(ValueError, match="Estimate of what the known part leaves"):  # its B is of another function
        gs.sound_learner(twin, known, about_zero)
    again = gs.AffineKnown(known.A.clone(), known.B, known.c)
    assert gs.sound_learner(twin, again, found).unsound == learner.unsound  # the same in another object


def test_shapes_and_kinds():
    _, states, inputs = trajectory(40)
    options = {"outputs": [1], "kernels": kernels.rbf([2.0], 0.1, dims=[0]), "noise_std": 1e-3}
    one = gs.estimate(states, inputs, **options)
    narrow = gs.estimate(states.numpy().astype(np.float32), inputs.numpy().tolist(), **options)
    split = gs.estimate([states[:21], states[20:]], [inputs[:20], inputs[20:]], **options)
    assert one.rkhs_norm == split.rkhs_norm and narrow.rows == one.rows == 40
    assert len(repr(one)) < 400 and "<table>" in one._repr_html_()
    still = torch.zeros_like(inputs)
    for match, given, more in (
        ("axis", (states, still), {}),
        ("episodes of each", (states, inputs[:-1]), {}),
        ("states .* of each episode", ([states[:3]], [inputs]), {}),
        ("at least 12", (states[:6], inputs[:5]), {}),
        ("margin", (states, inputs), {"margin": 0.5}),
        ("held_out", (states, inputs), {"held_out": 0.9}),
        ("shrink", (states, inputs), {"shrink": 1.5}),
        ("2 kernels", (states, inputs), {"kernels": [kernels.rbf(1.0)]}),
        ("finite x", (states * math.nan, inputs), {}),
    ):
        with pytest.raises(ValueError, match=match):
            gs.estimate(*given, **more)
    assert one.noise_std.shape == (2,)
