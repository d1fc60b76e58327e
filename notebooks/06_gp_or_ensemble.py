# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6 · Gaussian process or ensemble: whose error bars hold?
#
# A certificate is only as good as the error bars that it rests on. Here everybody learns the same 60 transitions of the
# reference plant, $x^+ = x + u/4 + f(x, u) + w$, and all of them with $x < 0.5$: as a backup policy would give them. The truth
# $f$ is known, to us.

# %%
import torch

import gpsafe as gs
from gpsafe import calibration, lab, plotting
from gpsafe.calibration import Effort
from gpsafe.lab.trust import Trust

torch.set_num_threads(1)
plant, generator = gs.systems.reference_1d(), torch.Generator().manual_seed(0)


def rows(low, high, count):
    """Transitions with x between low and high and any input, and the states without noise."""
    x = low + (high - low) * torch.rand(count, 1, dtype=torch.float64, generator=generator)
    u = 2 * torch.rand(count, 1, dtype=torch.float64, generator=generator) - 1
    true = plant.mean(x, u)
    noise = plant.noise_std * torch.randn(count, 1, dtype=torch.float64, generator=generator)
    return gs.Transitions(x, u, true + noise), true


seen, _ = rows(-0.8, 0.5, 60)
tests = {"where the data are": rows(-0.8, 0.5, 400), "beyond them": rows(0.5, 1.4, 400)}
names = {
    "gp": "Gaussian process",
    "ensemble-5": "ensemble of 5",
    "ensemble-10": "ensemble of 10",
    "dropout": "MC dropout",
    "laplace": "last-layer Laplace",
}
options = {"prior": plant.known, "noise_std": plant.noise_std, "kernels": plant.kernels}
fitted = calibration.fit(list(names), seen, effort=Effort(hyperparameters=60, steps=800), **options)
models = {names[one.name]: one.model for one in fitted}

# %% [markdown]
# ## What do they say where nobody has been?
#
# Bands of $\pm 2\sigma$ along $u = 0$, without noise; the process also with the multiple $\beta$ that its theorem asks for, with
# the true norm. To the right of 0.5 there are no data. All agree where the data are. Beyond, some bands open and some follow a
# line confidently.

# %%
x = torch.linspace(-0.8, 1.4, 160, dtype=torch.float64).unsqueeze(-1)
u = torch.zeros_like(x)
known = plant.known(x, u)
theory = calibration.theory_band(models["Gaussian process"], rkhs_norm=plant.rkhs_norm, delta=0.1)
beta = float(theory.beta.max())
panels = [("Gaussian process", beta), ("Gaussian process", 2.0), ("ensemble of 5", 2.0), ("MC dropout", 2.0)]
panels += [("last-layer Laplace", 2.0)]
nouns = {
    "Gaussian process": "gp",
    "ensemble of 5": "ensemble",
    "MC dropout": "mc-dropout",
    "last-layer Laplace": "laplace",
}
with plotting.style(size=9):
    figure = plotting.figure(10, 2.6)
    for axes, (name, multiple) in zip(figure.subplots(1, 5, sharey=True), panels, strict=True):
        told = models[name].predict(x, u)
        mean, half = (told.mean - known)[:, 0].detach(), multiple * told.std[:, 0].detach()
        truth = (plant.mean(x, u) - known)[:, 0]
        plotting.band(axes, x[:, 0], mean - half, mean + half, truth=truth, noun=nouns[name])
        held = bool(((truth - mean).abs() <= half).all())
        kind = f"{multiple:.2g}σ: {'holds' if held else 'does not hold'}"
        axes.set_title(f"{name}\n{kind}", loc="left")
        axes.set(xlabel="x", ylim=(-0.3, 0.3), xticks=(-0.5, 0.5, 1.0))
    figure.axes[0].set_ylabel("f(x, 0)")
lab.show(figure, closer=True)

# %% [markdown]
# ## At a point, or at all points at once?
#
# "95 % bars" are right if they hold 95 of 100 points. A certificate needs *all* of them, since a plan goes through many points and
# the worst one decides. One mark a test point: choose a model, where it is tested, and the multiple of $\sigma$.

# %%
trust = Trust.of(
    models, seen, {name: test for name, (test, _) in tests.items()}, {name: true for name, (_, true) in tests.items()}
)
trust.explorer(model="ensemble of 10", test="beyond them")

# %% [markdown]
# ## Can one measure the right multiple, and use it elsewhere?
#
# Stretch each model's $\sigma$ until the bars hold at all points where the data are (round), as recalibration does. Beyond the data
# another multiple would have been needed (square). Where the square lies to the right, a multiple that was made valid here fails
# there, and nothing in the model's spread says so. $\beta$ (dashed) was not measured: it follows from $\|f\|_k \le B$, which has to
# be true, and of the process alone. The process is told the true kernel and noise here; where they are fitted, it needs more.

# %%
with plotting.style(size=9):
    figure = plotting.figure(10, 2.4)
    axes = figure.subplots()
    for place, name in enumerate(trust.models):
        ends = [trust.needed(name, test) for test in trust.tests]
        axes.plot(ends, [place] * 2, linewidth=1.0, **plotting.look("proposed").line)
        for end, noun, test in zip(ends, ("same-kind", "other-kind"), trust.tests, strict=True):
            axes.plot(end, place, label=test if place == 0 else None, **plotting.look(noun).points)
    plotting.limit(axes, beta, upright=True)
    axes.set(xscale="log", xlabel="multiple of σ that holds at all points", ylim=(len(trust.models) - 0.5, -0.7))
    axes.set_xticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(trust.models)), list(trust.models))
    plotting.legend_beside(axes)
lab.show(figure)

# %% [markdown]
# ## What to take from it
#
# This is one plant and one seed. The study [Whose uncertainty can be trusted](../docs/calibration.md) does the same on five plants
# and four recordings of real ones: at a point and near the data all of these models are nearly right, and conformal
# recalibration makes them so; away from the data all are over-confident; everywhere at once nobody's 90 % bars hold, and only
# the theorem's do, at about three times the width that was needed. With bars from networks a learner executed an unsafe policy
# in up to 10 of 20 runs; with $\beta$, in none.
#
# For transitions of your own: `gs.calibrate(data)`, or `gpsafe calibrate DATA.csv --state … --input …`; and `Trust.of` above takes
# any models and any tests, with or without the truth.
