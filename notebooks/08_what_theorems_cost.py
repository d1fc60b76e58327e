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
# # 8 · What the theorems cost
#
# A theorem that is true may still say nothing: a bound larger than what is known without it is *vacuous*. This notebook shows
# where that happens, before an experiment is paid for.

# %%
from gpsafe import lab, plotting
from gpsafe.lab import bands, prices

# %% [markdown]
# ## How wide is a band that is a theorem?
#
# Closed forms for the same function, the same data. Above the dashed line a band says less than $|f| \le B$.

# %%
with plotting.style(size=9):
    figure = plotting.figure(10, 3.2)
    bands.draw_widths(figure.subplots())
lab.show(figure, closer=True)

# %% [markdown]
# ## Where does a bound say nothing?
#
# Left: the widest place of $F_n$ after $n$ observations at the best places, over its width without any; dark is as if nothing
# had been seen. Right: what an error of that width may cost over $T$ steps by the simulation lemma, over the trivial bound
# $TC$; left of the line it fits into a budget of 0.2. The marks are the widths at the left, after 10, 50 and 200 observations.
#
# One more dimension costs more than a hundred observations buy. And a bound through total variation asks for a model that is
# hundreds of times better than the noise before it certifies twenty steps: this is why tubes and dynamic programs, which follow
# the plant itself, are worth their effort.

# %%
prices.width_explorer()

# %% [markdown]
# ## How many episodes does the theorem ask for?
#
# ActSafe reaches the reachable set after $n^\star$ episodes. $n^\star$ grows with $\beta^2\kappa^2/\varepsilon^2$, where $\kappa$
# says how much optimism may be misled about where the uncertainty is. The number is explicit, and astronomical; what is measured
# on the reference plant is eight ([notebook 2](02_safe_set_grows.ipynb)). That is no contradiction: $n^\star$ *suffices*.

# %%
prices.episode_explorer()

# %% [markdown]
# **What to take from it.** Safety does not pay these prices: $S_n$ is safe with the band that there is, in the first episode as
# in the last. Only the promise of *progress* does. So $n^\star$ is printed next to what was measured, and no run waits for it.
