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
# # 9 · Dreams: what does a world model know?
#
# Where only pictures are seen, ActSafe's last experiment replaces the Gaussian process by an ensemble of recurrent world models. A
# point among three hazards, seen as a 16×16 picture, moves by $|u| \le 1$ a fifth at most. Five members learn from 40 episodes
# with uniform inputs. **Nothing of this notebook is certified**; it is here to see why.

# %%
import torch

from gpsafe import lab, plotting
from gpsafe.lab.dreams import Dreams

torch.set_num_threads(1)
dreams = Dreams.learn()

# %% [markdown]
# ## Does it dream what will happen?
#
# Some frames are shown, then it goes on alone, told only the inputs. Choose an episode that it has not learnt from, and how much is
# shown. A dream is the mean over the members. The point is smeared where they part, and by the little training; where a member puts
# it is asked in the next section.

# %%
dreams.explorer()

# %% [markdown]
# ## Does it know how wrong it is?
#
# In each dream a member says where the point is. Its error grows with the length of the dream; so does the spread of the members
# around their mean, which is all that the ensemble could know of the error.

# %%
with plotting.style(size=9):
    figure = plotting.figure(10, 2.5)
    axes = figure.subplots()
    error, spread, still = dreams.errors(5)
    steps = 1 + torch.arange(len(error))
    for name, noun, values in (
        ("error of a member", "unsafe", error),
        ("spread of the members", "ensemble", spread),
        ("standing still", "unknown", still),
    ):
        axes.plot(steps, values, label=name, **plotting.look(noun).line)
    axes.set(xlabel="steps into the dream", ylabel="distance (root mean square)", ylim=(0, None))
    plotting.legend_beside(axes)
ratio = error / spread
print(f"error over spread: {ratio[0]:.1f} after one step, {ratio[9]:.1f} after ten, {ratio[-1]:.1f} after {len(ratio)}")
lab.show(figure)

# %% [markdown]
# ## Do the members disagree where nobody has been?
#
# This is what ActSafe explores by. The point walks straight to each place of the arena, seen on all the way; then the members say
# what comes next. Left, dark is disagreement; right, how far the place is from where the model takes itself to be. Dots: the states
# that were learnt from; circles: the hazards, and the goal.

# %%
doubt, misread, visited = dreams.doubt(), dreams.misread(), dreams.visited()
with plotting.style(size=9):
    figure = plotting.figure(10, 3.4)
    for axes, values, title in zip(
        figure.subplots(1, 2), (doubt, misread), ("disagreement", "error of the place that is read"), strict=True
    ):
        dreams.draw_map(axes, values)
        axes.set_title(f"{title}, up to {float(values.max()):.2g}", loc="left")
for name, values in (("disagreement", doubt), ("error of the place", misread)):
    print(
        f"mean {name}: {values[visited].mean():.2f} where the data are, {values[~visited].mean():.2f} where nobody has been"
    )
lab.show(figure)

# %% [markdown]
# ## Where does it expect a cost?
#
# The same walks in the same world model. Left, the hazards are a known function of the place, and only the place is read from the
# latent state; right, a head has learnt the cost from the steps inside hazards that the data has. Pessimism over members works on
# what is there: it makes nothing of a hazard that was never met, nor of a known one where the model takes itself to be elsewhere.

# %%
maps = {"known cost of what is read": dreams.hazard(known=True), "learnt cost": dreams.hazard(known=False)}
with plotting.style(size=9):
    figure = plotting.figure(10, 3.4)
    for axes, (title, values) in zip(figure.subplots(1, 2), maps.items(), strict=True):
        dreams.draw_map(axes, values, top=1.0, data=False)
        axes.set_title(title, loc="left")
inside = (dreams.plant.cost(dreams.places) > 0).reshape(visited.shape)
print(
    f"steps inside hazards in the data: {int(dreams.plant.cost(dreams.seen[:, :-1]).sum())} of {dreams.seen[:, :-1, 0].numel()}"
)
for title, values in maps.items():
    seen, unseen = (100 * (values[inside & where] > 0.5).double().mean() for where in (visited, ~visited))
    wrong = 100 * (values[~inside] > 0.5).double().mean()
    print(
        f"{title}: finds {seen:.0f} % of the hazards where the data are, {unseen:.0f} % elsewhere; {wrong:.0f} % false alarms"
    )
lab.show(figure)

# %% [markdown]
# ## What to take from it
#
# A world model can be good where it was, and be lost where it was not, without a word. Its members do disagree more out there, so
# disagreement is something to explore by; but it is a log-ratio without units, of five members with one encoder, and nothing ties it
# to an error or to a cost. On a plant where every policy's true cost is known, what such an ensemble calls safe is counted in
# [ActSafe from pixels](../docs/pixels.md), beside what a Gaussian process certifies from the same episodes; and there, who explores
# this arena how far, and at whose cost.
