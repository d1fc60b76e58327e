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
# # 2 · The safe policy set grows
#
# ActSafe starts with a few policies that are known to be safe, and flies only what it can prove. Here everything is known to
# the judge and nothing to the learner: one state, $x^+ = x + u/4 + f(x, u) + w$, where $f$ lies exactly in the hypothesis class.
# The state must stay below 1. There are 81 policies, one for each set-point; five of them are given.

# %%
import torch

import gpsafe as gs
from gpsafe import lab, plotting
from gpsafe.lab.growth import Growth

plant = gs.systems.reference_1d()
policies, given = gs.systems.reference_1d_policies()
model = gs.GP.create(plant.kernels, 1e-4, nx=1, nu=1, noise_std=plant.noise_std, prior=plant.known)
bound = gs.Mixture(rkhs_norm=tuple(plant.rkhs_norm.tolist()), subgaussian=0.01, delta=0.1)
worst_case = gs.RobustDP(gs.Grid(gs.Box([-1.0], [1.5]), (300,)), gs.Task.of(plant))
run = gs.ActSafe(plant, policies, given.tolist(), model, bound, worst_case, episodes=12, patience=0).run(0)
growth = Growth.of(run, torch.linspace(-0.5, 1.5, 81, dtype=torch.float64))

# %% [markdown]
# ## Who is in, since when, and by what right?
#
# Move through the episodes. Each mark is a policy, at the largest cost that any function in the confidence set would give it;
# below the dashed line it enters, and stays. Click a policy: its witness if it is in, what keeps it out if it is not, and
# what is true, which the learner never sees.

# %%
growth.explorer()

# %% [markdown]
# ## Where does the knowledge come from?
#
# The band along $u = 0$ before the first flight and after the last. Policies enter in the order in which the band closes: what
# has not been visited is not certified, however harmless it is.

# %%
x = torch.linspace(-1, 1.4, 200, dtype=torch.float64)
z = torch.stack([x, torch.zeros_like(x)], -1)
with plotting.style(size=9):
    figure = plotting.figure(10, 3.2)
    for axes, number in zip(figure.subplots(1, 2, sharey=True), (1, len(run.confidence.generations)), strict=True):
        known = gs.ConfidenceSet(bound, run.confidence.generations[:number])
        low, high = known.bounds(z)
        seen = known.model.inputs
        plotting.band(axes, x, low[:, 0], high[:, 0], truth=plant.residual_fn(z)[:, 0], label="$F_n$")
        axes.set(xlabel="x", title=f"after {0 if seen is None else len(seen)} transitions")
        axes.legend(loc="lower left")
    figure.axes[0].set_ylabel("f(x, 0)")
lab.show(figure)

# %% [markdown]
# ## What would a learner without a theorem have done?
#
# Take the mean of the untrained model for the truth and ask the same dynamic program. It certifies more, at once and without
# a flight, and one of its policies breaks the limit; nothing warns it.

# %%
trusting = gs.confidence.Constant(rkhs_norm=bound.rkhs_norm, subgaussian=0.01, delta=0.1, value=1e-6)
naive = worst_case.evaluate(gs.ConfidenceSet(trusting).update(model), policies).upper <= plant.budget
unsafe = growth.truth[0] > plant.budget
with plotting.style(size=9):
    figure = plotting.figure(10, 1.9)
    axes = figure.subplots()
    ours = torch.isin(torch.arange(policies.num), run.safe_set.members)
    for row, chosen in enumerate((ours, naive)):
        for mask, noun in ((chosen & ~unsafe, "safe"), (chosen & unsafe, "unsafe")):
            label = noun if row == 1 else None
            axes.plot(growth.targets[mask], [row] * int(mask.sum()), label=label, **plotting.look(noun).points)
    axes.set(xlabel="policy (set-point)", ylim=(1.6, -0.6), xlim=(-0.55, 1.55))
    axes.set_yticks([0, 1], ["ActSafe, 12 episodes", "trusting the mean"])
    plotting.legend_beside(axes)
lab.show(figure)
