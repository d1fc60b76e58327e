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
# | [![Tubes and the filter](thumbnails/04_tubes_judge_filter.png)](04_tubes_judge_filter.ipynb) | **[4 · Tubes, judge and filter](04_tubes_judge_filter.ipynb)**: how is a proposed input certified, and who acts if it is not? |
# | [![Your own data](thumbnails/07_your_own_data.png)](07_your_own_data.ipynb) | **[7 · Verify your own system, from a CSV](07_your_own_data.ipynb)**: what has to be stated, what can be measured, what is then certified? |
# | [![What theorems cost](thumbnails/08_what_theorems_cost.png)](08_what_theorems_cost.ipynb) | **[8 · What the theorems cost](08_what_theorems_cost.ipynb)**: where is a bound that is true worth nothing? |
#
# The verdicts on all theorems are in the guarantee report (`make verify`).
