# The commands of a fresh machine: Python 3.11 or newer, git and make are all they need.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# A file's tests in one of two processes: half of the time goes by in waiting, for servers, signals and leases.
# In the order of the files, since the slowest are among the first.
TWO := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: sweep test quick check ui clean

sweep: $(INSTALLED)  ## set up, then train, prune and compare fifty CNNs on the embedded digits
	$(BIN)/orch sweep recipe=cnn trials=50

test: $(INSTALLED)  ## set up, then run the whole test suite
	$(BIN)/python -m pytest $(TWO)

quick: $(INSTALLED)  ## the tests that take no more than a few seconds each
	$(BIN)/python -m pytest $(TWO) -m "not slow"

check: $(INSTALLED)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

ui: $(INSTALLED)  ## MLflow's UI, optuna-dashboard and TensorBoard on this machine
	$(BIN)/orch ui

clean:  ## remove the environment and all caches; mlruns/ holds results and stays
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --constraint constraints.txt
	touch $@
