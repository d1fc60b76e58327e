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
# # 1 · Confidence bounds, live
#
# A function $f$ is seen at a few points, with noise. A Gaussian process gives a mean $\mu_n$ and a deviation $\sigma_n$; a
# *bound* says by how many deviations the truth can be off: $|f - \mu_n| \le \beta_n \sigma_n$, with probability $1-\delta$,
# **at every point and for every number of observations at once**. All safety that rests on a model rests on this one line.

# %%
from gpsafe import lab, plotting
from gpsafe.lab import bands

# %% [markdown]
# ## What does a band promise, and what is it paid with?
#
# On the left one run: the band, the truth, the observations. On the right a hundred runs with functions and noise of their own:
# the share of them whose truth has left the band *anywhere*, *at any time so far*. The theorem allows the share $\delta$.
#
# The truth has norm 1 and is observed with noise of deviation 0.1. What you declare is yours: $B$ (how large the function
# may be), $R$ (how large the noise), $\lambda$ (what the model takes the noise for), $\delta$ and the bound. Declare $B$ or
# $R$ too small, or a bound outside of its theorem, and watch the right side.

# %%
bands.explorer()

# %% [markdown]
# Things to try: $B = 0.5$ (the function is larger than declared); `chowdhury-gopalan` at $\lambda = 1 + 2/N$, where it is
# a theorem, and elsewhere, where it is none; `srinivas`, which is valid and useless; `constant 2` with the adaptive design.
#
# ## Which assumption carries the weight?
#
# Each row breaks one assumption of the mixture bound, or replaces it by a number. Filled: points drawn at random. Open: points
# chosen where $\mu + 2\sigma$ is largest, by what was seen before. Blue has to stay left of the line; red shows what the
# assumption was for. Not every false assumption shows: a function half as smooth as declared, but of the same norm, is
# still covered here, by luck and not by the theorem.

# %%
with plotting.style(size=9):
    figure = plotting.figure(10, 3.6)
    bands.draw_broken(figure.subplots())
lab.show(figure)

# %% [markdown]
# That $\beta = 2$ covers 95 % of a normal variable is true, and beside the point: the band has to hold at all points at
# once, and after data that the band itself has chosen. The bounds that hold need to know $B$, which no data can prove
# (`gs.estimate` asks what data can say about it).
#
# ## What does the choice of bound cost?
#
# All of these are theorems, for the same data. What differs is the width, and with it how many policies can be certified
# ([notebook 8](08_what_theorems_cost.ipynb)).

# %%
with plotting.style(size=9):
    figure = plotting.figure(10, 3.4)
    bands.draw_widths(figure.subplots())
lab.show(figure, closer=True)
