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
# # 5 · An agent learns behind the certifier
#
# The Simple Pendulum of the X-MPSC experiments, $\theta = 0$ upright. Soft actor-critic is rewarded for swinging up, which needs
# to come near the limits; an ensemble of three small networks learns what the known part (masses and lengths 20 % off) leaves
# out; every proposed input goes through a safety filter built on that ensemble. The budget is a fortieth of the published one.

# %%
from dataclasses import replace

import torch

import gpsafe as gs
from gpsafe import lab, plotting
from gpsafe.algorithms.xmpsc import SOURCES
from gpsafe.lab.flights import flown
from gpsafe.planning.mbpo import preset
from gpsafe.systems import SimplePendulum

torch.set_num_threads(1)
plant = SimplePendulum()
settings = replace(
    preset("pendulum"), warm_up=1500, warm_up_epochs=20, epochs=5, group=2, rollouts=20, members=3, horizon=5, delay=1
)
learner = gs.XMPSC.create(plant, settings, prior=plant.prior())

# %% [markdown]
# ## How does the terminal set grow?
#
# A plan must end in the terminal set. The published one is the convex hull of the states certified so far: first of the states
# in which the warm-up episodes began, then, after every epoch of 256 steps, of more. It is drawn after each epoch, from light to
# dark.

# %%
sets = []
while learner.steps < settings.epochs * settings.steps:
    learner.learn(1)
    hull = learner.standing.hull
    if hull is not None and (not sets or sets[-1] is not hull.hulls[-1]):
        sets.append(hull.hulls[-1])

with plotting.style(size=9):
    figure = plotting.figure(6.5, 3.8)
    axes = figure.subplots()
    for age, (terminal, shade) in enumerate(zip(sets, plotting.ramp(len(sets)), strict=True)):
        plotting.draw(axes, terminal, color=shade, label=f"epoch {age}: {len(terminal.vertices())} corners")
    plotting.state_box(axes, plant.state_box.lower, plant.state_box.upper)
    axes.set(xlabel="θ (rad), 0 upright", ylabel="ω (rad/s)")
    plotting.legend_beside(axes)
lab.show(figure)

# %% [markdown]
# ## Who chose the inputs?
#
# Each step after the warm-up is exactly one of five: a plan certified now, the stored plan, the backup law, a least-violating plan
# (soft), or nobody (unfiltered).

# %%
log = learner.logger.frame()
trained = log[log["phase"] == "train"].reset_index(drop=True)
with plotting.style(size=9):
    figure = plotting.figure(10, 3)
    axes = figure.subplots()
    below = torch.zeros(len(trained), dtype=torch.float64)
    for name in SOURCES:
        count = torch.as_tensor(trained[f"from_{name}"].to_numpy(dtype=float))
        axes.bar(range(len(trained)), count, bottom=below, label=name, color=plotting.colour(name))
        below = below + count
    axes.set(xlabel="episode after the warm-up", ylabel="steps")
    plotting.legend_beside(axes)
lab.show(figure)

# %% [markdown]
# ## Who keeps the limits: the agent or the filter?
#
# An agent of so short a life hardly swings, so that its own inputs would not leave the limits yet. To see what the filter does,
# someone else takes the agent's place who pushes along the swing with full torque, once behind the learner's filter and once
# without it, with the same start and the same noise. Scrub through the flight.

# %%
start = plant.initial(1, torch.Generator().manual_seed(0))[0]
flown(plant, learner.filter(), start, steps=80, seed=0).explorer(step=30)

# %% [markdown]
# ## What is not promised?
#
# In paper mode no theorem stands behind an episode: tubes are one standard deviation wide, and a hull of certified states need
# not be invariant. On the cart-pole, whose hull in position and angle knows nothing of speeds, most adversarial episodes break
# it (`gpsafe run xmpsc-terminal`). `Certification(terminal="invariant")` mends that much; `mode="sound"` adds tubes with a
# stated assumption and counts the decisions that were backed.
