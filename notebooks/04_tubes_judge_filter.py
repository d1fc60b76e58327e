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
# # 4 · Tubes, judge and filter
#
# A learner proposes an input; the filter lets it pass if there is a plan that begins near it, whose *tube* (a set for every
# step that is to contain the state) stays within the limits and ends where one can stay. The plant is the Simple Pendulum of
# the X-MPSC experiments, $\theta = 0$ upright; the model is an ensemble of three small networks.

# %%
import math

import torch

import gpsafe as gs
from gpsafe import lab, plotting
from gpsafe.lab.flights import flown
from gpsafe.linalg import vector
from gpsafe.models import Training
from gpsafe.models.gp import identity_prior
from gpsafe.systems.xmpsc import SimplePendulum
from gpsafe.tube import EnsembleTube, constant_gain, propagate

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
plant = SimplePendulum()
limits = (plant.state_box.lower, plant.state_box.upper)


def measured(count):
    x, u = plant.state_box.sample(count, generator), plant.input_box.sample(count, generator)
    return gs.Transitions(x, u, plant.advance(x, u, generator))


model = gs.Ensemble.create(
    2, 1, generator=generator, members=3, hidden=(10, 10), prior=identity_prior, training=Training(epochs=1, steps=1000)
).condition(measured(2000))

# %% [markdown]
# ## How much wider is a tube that may be believed?
#
# The same plan twice. *Published*: one standard deviation, no linearisation error; nobody claims that it contains the plant.
# *Sound*: a radius calibrated on transitions held out, and a rigorous bound of what the linearisation leaves out; what is
# believed is that the calibration carries over. One tube for each member; the dots are twenty flights of the true plant.

# %%
held_out = measured(1000)
paper, sound = EnsembleTube.paper(model), EnsembleTube.calibrated(model, held_out, steps=5, delta=0.1)
start, inputs, gain = vector(3.4, 0.5), torch.full((5, 1), 0.3, dtype=torch.float64), constant_gain(0.5, 2, 1)

with plotting.style(size=9):
    figure = plotting.figure(10, 3.8)
    for axes, tube_model, noun in zip(
        figure.subplots(1, 2, sharey=True), (paper, sound), ("paper", "sound"), strict=True
    ):
        tube = propagate(tube_model, start, inputs, gain)
        for member in range(tube.num_members):
            plotting.tube(axes, gs.Ellipsoid(tube.center[member], tube.factor[member]), noun=noun)
        for _ in range(20):
            x = start
            for k in range(len(inputs)):
                x = plant.advance(x, inputs[k] + tube.gain[k] @ (x - tube.center[:, k].mean(0)), generator)
                axes.plot(*x, **plotting.look("data").points)
        axes.set(title={"paper": "published", "sound": "sound, if calibrated"}[noun], xlabel="θ (rad)")
    figure.axes[0].set_ylabel("ω (rad/s)")
lab.show(figure, closer=True)

# %% [markdown]
# ## What does the judge accept?
#
# A search proposes a plan; the judge makes its tube anew and checks every row of every constraint. What the search says about
# itself counts for nothing. From which states is there a certified plan that begins without torque? The frame is the set in
# which plans must end.

# %%
terminal = gs.Polytope.of_box(plant.initial_box)
states, allowed = gs.Polytope.of_box(plant.state_box), gs.Polytope.of_box(plant.input_box)
problem = gs.CertificationProblem(paper, states, allowed, terminal, gain, steps=5)
search = gs.CondensedSQP()
angles, speeds = torch.linspace(0.6, 1.4, 9).double() * math.pi, torch.linspace(-2.4, 2.4, 5).double()
certified = torch.zeros(len(speeds), len(angles), dtype=torch.bool)
for row, speed in enumerate(speeds):
    for column, angle in enumerate(angles):
        x = torch.stack([angle, speed])
        certified[row, column] = gs.judge(problem, x, vector(0.0), search.propose(problem, x, vector(0.0))).certified

with plotting.style(size=9):
    figure = plotting.figure(5.4, 3.6)
    axes = figure.subplots()
    plotting.certified_map(axes, angles, speeds, certified.numpy())
    plotting.draw(axes, plant.initial_box, **plotting.look("terminal").line)
    axes.set(xlabel="θ (rad)", ylabel="ω (rad/s)")
lab.show(figure)

# %% [markdown]
# ## Who acts, step by step?
#
# A learner that pumps energy into the pendulum with full torque, once alone and once behind the filter. Scrub through the
# flight: the tube of the plan that the filter holds at that moment, and who chose the input: a new plan, the stored plan of an
# earlier step, or the least-violating one.

# %%
flight = flown(plant, gs.SafetyFilter(problem, search), vector(math.pi, 0.0), steps=50, seed=0)
flight.explorer(step=21)

# %% [markdown]
# The tubes are the published ones, so no theorem stands behind this flight: it shows what the filter does, and the verdicts of
# `gpsafe verify` (the check `xmpsc-filter`) show what it guarantees where everything is provable.
