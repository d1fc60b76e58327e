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
# # 7 · Verify your own system, from a CSV
#
# What has to be stated about a plant, what can be measured, and which feedback is then certified? Replace the file and the four
# lines below it by your own. The stand-in is a level that an input moves, sampled in closed loop with a random target: columns
# `x` and `u`, one row a step.

# %%
import io

import pandas as pd
import torch
from IPython.display import Markdown

import gpsafe as gs
from gpsafe import lab, plotting
from gpsafe.lab.declared import Declared
from gpsafe.policies import set_point_policies

stand_in, x, generator = (
    gs.systems.reference_1d(),
    torch.tensor([-0.5], dtype=torch.float64),
    torch.Generator().manual_seed(3),
)
rows = ["x,u"]
for step in range(401):
    if step % 10 == 0:
        target = 2.0 * torch.rand(1, dtype=torch.float64, generator=generator) - 1.2
    u = (3 * (target - x)).clamp(-1, 1)
    rows.append(f"{float(x[0]):.6f},{float(u[0]):.6f}")
    x = stand_in.mean(x, u) + 0.01 * torch.randn(1, dtype=torch.float64, generator=generator)

table = pd.read_csv(io.StringIO("\n".join(rows)))  # your file here
states, inputs = torch.tensor(table[["x"]].to_numpy()), torch.tensor(table[["u"]].to_numpy())[:-1]
known = gs.AffineKnown([[1.0]], [[0.25]], [0.0])  # what you know: the level moves by a quarter of the input
cost, budget = gs.IndicatorCost([[1.0]], [1.0]), 0.2  # the level must not pass 1, in expectation 0.2 of 20 steps

# %% [markdown]
# ## What do the data say about the plant?
#
# A theorem needs a kernel, the noise and a bound $B$ of what the known part leaves out. `gs.estimate` reads them off the first
# half of the rows and tests them on rows that it held out. **It proves none of them**: a bump between the rows leaves no trace.

# %%
half = 200
found = gs.estimate(states[: half + 1], inputs[:half], prior=known)
Markdown(
    f"noise {float(found.noise_std[0]):.3g}, B = {found.rkhs_norm[0]:.3g}, the norm grew by {found.growth[0]:.2f} with the second "
    f"half of the rows; rows held out: {found.held_out.witness}. {'Settled' if found.settled else 'Not settled'}: "
    f"{found.heuristic}."
)

# %% [markdown]
# ## How sure is the model after the other half?
#
# From here on you take responsibility: `declare` says that these numbers are true. The second half of the rows, which had no say
# in them, makes the model.

# %%
believed = found.declare()
noise = float(believed.noise_std[0])
empty = gs.GP.create(believed.kernels, noise**2, nx=1, nu=1, noise_std=noise, prior=known, mode="theory")
model = empty.condition(gs.Transitions(states[half:-1], inputs[half:], states[half + 1 :]))
bound = gs.Mixture(rkhs_norm=believed.rkhs_norm, subgaussian=noise, delta=0.1)
grid = torch.linspace(-1.2, 1.3, 200, dtype=torch.float64)
z = torch.stack([grid, torch.zeros_like(grid)], -1)
low, high = gs.ConfidenceSet(bound).update(model).bounds(z)
with plotting.style(size=9):
    figure = plotting.figure(8, 3)
    axes = figure.subplots()
    plotting.band(axes, grid, low[:, 0], high[:, 0], mean=model.posterior(z)[0][:, 0], label="mean")
    near = inputs[half:, 0].abs() < 0.2
    left_out = states[half + 1 :, 0] - states[half:-1, 0] - 0.25 * inputs[half:, 0]
    axes.plot(states[half:-1, 0][near], left_out[near], label="rows with |u| < 0.2", **plotting.look("data").points)
    axes.set(xlabel="x", ylabel="what the known part leaves out", ylim=(-0.3, 0.3))
    axes.legend(loc="lower left", ncols=2)
lab.show(figure, closer=True)

# %% [markdown]
# ## Which set-points are certified, and how much hangs on B?
#
# $u = 3(g - x)$, clipped, for 61 set-points $g$. Certified: whichever function within the band is true, the expected cost of 20
# steps is at most 0.2. Each row declares another $B$: what you could not know is what you should vary.

# %%
targets = torch.linspace(-0.5, 1.5, 61, dtype=torch.float64)
policies = set_point_policies(
    targets[:, None], torch.tensor([[3.0]]).double(), torch.zeros(61, 1).double(), gs.Box([-1.0], [1.0])
)
task = gs.Task(states[0], 20, cost, budget, believed.noise_std)
worst_case = gs.RobustDP(gs.Grid(gs.Box([-1.2], [1.5]), (400,)), task)
factors, certified = (0.25, 0.5, 1.0, 2.0, 4.0), []
for factor in factors:
    stated = gs.Mixture(rkhs_norm=(factor * believed.rkhs_norm[0],), subgaussian=noise, delta=0.1)
    certified.append(worst_case.evaluate(gs.ConfidenceSet(stated).update(model), policies).upper <= budget)
with plotting.style(size=9):
    figure = plotting.figure(8, 3.4)
    axes = figure.subplots()
    plotting.certified_map(axes, targets, range(len(factors)), torch.stack(certified).numpy())
    axes.set(xlabel="set-point g", ylabel="B declared, over the estimate")
    axes.set_yticks(range(len(factors)), [f"× {factor:g}" for factor in factors])
lab.show(figure)

# %% [markdown]
# ## And what would other statements, or fewer rows, have bought?
#
# Move $B$, the noise $R$ and the number of rows. Left the band along $u = 0$ and the rows that it rests on, of any input; right
# the worst cost of every set-point over all functions in the band.

# %%
later = gs.Transitions(states[half:-1], inputs[half:], states[half + 1 :])
bought = Declared.of(empty, later, bound, worst_case, policies, targets=targets, points=z)
bought.explorer()

# %% [markdown]
# A certificate is as good as what it assumes. If the picture changes much between two rows that you find equally credible, measure
# more before you trust either. In more dimensions `gs.ScenarioTube` takes the place of the dynamic program, and
# `gs.sound_learner` explores by itself.
