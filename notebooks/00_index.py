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
# # gpsafe, to be looked at
#
# Each notebook asks a few questions and answers them with pictures. Where a picture has controls, run the cells (*Run → Run All
# Cells*) and move them; without a running kernel the pictures stand still.
#
# | | |
# |---|---|
# | [![Confidence bounds](thumbnails/01_confidence_bounds.png)](01_confidence_bounds.ipynb) | **[1 · Confidence bounds, live](01_confidence_bounds.ipynb)**: what does a band promise, and what happens if an assumption is false? |
# | [![The safe policy set](thumbnails/02_safe_set_grows.png)](02_safe_set_grows.ipynb) | **[2 · The safe policy set grows](02_safe_set_grows.ipynb)**: who is in, since when, by what right, and why are the others not? |
# | [![Ten particles or a proof](thumbnails/03_pendulum_plans.png)](03_pendulum_plans.ipynb) | **[3 · Ten particles or a proof](03_pendulum_plans.ipynb)**: what does a plan promise, how often are ten particles wrong, and what does a verifier cost? |
# | [![Tubes and the filter](thumbnails/04_tubes_judge_filter.png)](04_tubes_judge_filter.ipynb) | **[4 · Tubes, judge and filter](04_tubes_judge_filter.ipynb)**: how is a proposed input certified, and who acts if it is not? |
# | [![An agent behind the certifier](thumbnails/05_xmpsc_learns.png)](05_xmpsc_learns.ipynb) | **[5 · An agent learns behind the certifier](05_xmpsc_learns.ipynb)**: how does the terminal set grow, who chose the inputs, and what if the filter is taken away? |
# | [![Whose error bars hold](thumbnails/06_gp_or_ensemble.png)](06_gp_or_ensemble.ipynb) | **[6 · Gaussian process or ensemble](06_gp_or_ensemble.ipynb)**: whose error bars hold where nobody has been, at a point and at all points at once? |
# | [![Your own data](thumbnails/07_your_own_data.png)](07_your_own_data.ipynb) | **[7 · Verify your own system, from a CSV](07_your_own_data.ipynb)**: what has to be stated, what can be measured, what is then certified? |
# | [![What theorems cost](thumbnails/08_what_theorems_cost.png)](08_what_theorems_cost.ipynb) | **[8 · What the theorems cost](08_what_theorems_cost.ipynb)**: where is a bound that is true worth nothing? |
# | [![Dreams](thumbnails/09_dreams.png)](09_dreams.ipynb) | **[9 · Dreams](09_dreams.ipynb)**: what does a world model learnt from pictures know, and where does it know that it does not? |
#
# The verdicts on all theorems are in the guarantee report (`make verify`).
