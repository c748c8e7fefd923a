# `make demo` and `make test` need python3 (3.11 or newer) and make; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test lint bench paper clean
.DEFAULT_GOAL := setup

setup: .venv/installed

# The exact torch first: that wheel is the small one, whereas an open version may pull gigabytes of CUDA libraries.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/nestling demo

# One thread a process: two processes with a pool of threads each would fight over the same cores.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --durations=10

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: setup
	$(BIN)/nestling bench

# docs/paper.md: every equation of the paper, its code and its tests.
paper: setup
	$(BIN)/python tests/paper/table.py

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
