# Every target sets up .venv first (scripts/bootstrap.py; at once when nothing changed). `make` alone lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The first of these that starts; choose another with `make PYTHON=... TARGET`.
ifndef PYTHON
PYTHON := $(shell for p in python3.11 python3; do "$$p" -c "" >/dev/null 2>&1 && { echo "$$p"; break; }; done)
endif

BIN := .venv/bin
ifeq ($(CI),true)
PROFILE := ci
else
PROFILE := dev
endif

# One thread each: two workers with two BLAS threads each on two cores run several times slower.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest -n 2
ARGS ?=
# Kept, whatever the surroundings say: half of a short process's time goes into compiling what it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup verify theorems test test-all nightly mutate bench experiments gifs notebooks lab docs lint format lock dist clean distclean

help: ## list the targets
	@echo "gpsafe: make TARGET, with ARGS='...' for more options to the command behind it"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## set up .venv
	@test -n "$(PYTHON)" || { echo "error: no Python found: install Python 3.11 or newer, or say make PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" scripts/bootstrap.py

verify: setup ## run the checks of the theorems, write report/index.html and report/report.json
	@echo "verify: the theorems' checks on a small budget -> report/index.html, report/report.json"
	@mkdir -p report
	@$(ONE_THREAD) $(BIN)/gpsafe verify --budget quick --html report/index.html --json report/report.json $(ARGS)

theorems: setup ## write docs/theorems.md from the statements, the checks and the last `make verify`
	@echo "theorems: docs/theorems.md and proofs_checks/verdicts.json"
	@$(ONE_THREAD) $(BIN)/python scripts/theorems.py $(ARGS)

test: setup ## run the tests, without the slow ones
	@echo "test: the tests without the slow ones, Hypothesis profile $(PROFILE)"
	@HYPOTHESIS_PROFILE=$(PROFILE) $(PYTEST) $(ARGS)

test-all: setup ## run the tests with the slow ones
	@echo "test-all: the tests with the slow ones, Hypothesis profile $(PROFILE)"
	@HYPOTHESIS_PROFILE=$(PROFILE) $(PYTEST) -m "" $(ARGS)

nightly: setup ## run every test, with many more examples
	@echo "nightly: every test, Hypothesis profile nightly"
	@HYPOTHESIS_PROFILE=nightly $(PYTEST) -m "" $(ARGS)

mutate: setup ## plant small errors in the believed modules: which do the tests notice? -> report/mutation.json
	@echo "mutate: single-point mutants against the tests -> report/mutation.json (a stopped run goes on)"
	@$(ONE_THREAD) $(BIN)/python scripts/mutate.py $(ARGS)

bench: setup ## run the benchmarks, write bench/results.json
	@echo "bench: the benchmarks -> bench/results.json"
	@mkdir -p bench
	@$(ONE_THREAD) $(BIN)/python -m experiments.benchmarks --json bench/results.json $(ARGS)

experiments: setup ## run every experiment at the quick budget, write results/*/report
	@echo "experiments: all at the quick budget -> results/NAME/report/index.md (a stopped run goes on)"
	@for name in $$($(BIN)/python -c 'from gpsafe.testbed.experiment import discover; print(*discover()[0])'); do \
		$(BIN)/gpsafe run $$name --budget quick $(ARGS) && $(BIN)/gpsafe report $$name || exit 1; \
	done

gifs: setup ## film the X-MPSC plants with and without a filter, and the front page -> docs/figures
	@echo "gifs: pendulum, cart-pole, arm, drone with and without a filter -> docs/figures/gifs"
	@$(ONE_THREAD) $(BIN)/python -m experiments.filter_gifs $(ARGS)
	@$(ONE_THREAD) $(BIN)/python -m experiments.readme_animation

notebooks: setup ## run the notebooks from top to bottom, write them with their outputs
	@echo "notebooks: every notebooks/NAME.py -> notebooks/NAME.ipynb, thumbnails"
	@$(ONE_THREAD) $(BIN)/python scripts/notebooks.py $(ARGS)

lab: setup ## open JupyterLab on the index of the notebooks
	@echo "lab: JupyterLab on notebooks/00_index.ipynb"
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/jupyter lab --notebook-dir notebooks --LabApp.default_url=/lab/tree/00_index.ipynb $(ARGS)

docs: setup ## build the site -> site/index.html
	@echo "docs: the site, strictly, from docs/, README.md and docstrings -> site/index.html"
	@NO_MKDOCS_2_WARNING=1 $(ONE_THREAD) $(BIN)/python -m mkdocs build --quiet $(ARGS)

lint: setup ## check style, formatting and types
	@echo "lint: ruff check"
	@$(BIN)/ruff check .
	@echo "lint: ruff format --check"
	@$(BIN)/ruff format --check .
	@echo "lint: pyright on gpsafe, proofs_checks and a user's code"
	@$(BIN)/pyright

format: setup ## format the code and sort the imports
	@echo "format: ruff check --fix and ruff format"
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

lock: ## resolve the dependencies anew into requirements.lock
	@"$(PYTHON)" scripts/bootstrap.py --relock

dist: setup ## build the wheel and the source distribution into dist/
	@echo "dist: wheel and sdist -> dist/"
	@rm -rf build dist
	@$(BIN)/python scripts/dist.py

clean: ## remove reports, results, the site and caches
	@echo "clean: removing reports, results, the site and caches"
	@rm -rf report results site build *.egg-info .pytest_cache .ruff_cache .hypothesis
	@rm -f bench/*.json
	@find . \( -name .git -o -name '.venv*' \) -prune -o \
		\( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +

distclean: clean ## the same, and .venv
	@echo "distclean: removing .venv"
	@rm -rf .venv .venv.*
