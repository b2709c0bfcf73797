# One virtual environment, made when it is missing or when the dependencies changed.
#   make test PYTHON=python3.12 VENV=/some/where/else

PYTHON ?= python3
VENV ?= .venv
RUNS ?= 20
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help install lint types check test test-machines test-processes chaos wordcount bench perf instructions paper paper-check clean

help:  ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "%-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed  ## Make the virtual environment and install zray into it.

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "zray needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable '.[dev]'
	$(BIN)/python -m compileall -q zray sim  # else, where Python is to write no bytecode, each process compiles anew
	@touch $@

lint: install  ## Lint, and check the format.
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .

types: install  ## Check the types.
	$(BIN)/mypy

check: lint types  ## What to run before every commit: lint, types and the fast tests.
	$(BIN)/python -m pytest -q -m 'not slow and not chaos'

test: lint types  ## Lint, types and all tests, in two runs at once: what CI runs.
	@echo "two runs at once, each shown when it has ended (minutes); make test-machines or test-processes shows one"
	@+$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-machines test-processes

# Those that keep one CPU busy, behind those that mostly wait for processes.
MACHINES := $(addprefix tests/,core pairs paper paper_experiments property protocol serialize sim store tidy)

# Those tests of what users see that need no process of their own.
VIRTUAL := tasks.py task_failures.py cancel.py objects.py generators.py actors.py actor_kinds.py checkpoints.py conformance.py \
	progress.py dag.py util.py executor.py joblib.py

test-machines: install  ## Tests of machines, simulations and experiments; then those of users on three nodes, and in virtual time.
	nice -n 5 $(BIN)/python -m pytest $(MACHINES)
	nice -n 5 $(BIN)/python -m pytest -q tests/integration --nodes 3 --shards 2
	nice -n 5 $(BIN)/python -m pytest -q --simulate $(addprefix tests/integration/test_,$(VIRTUAL))

test-processes: install  ## All other tests: of real processes, mostly.
	$(BIN)/python -m pytest tests $(addprefix --ignore=,$(MACHINES))

chaos: install  ## Shuffle 1 GiB on ten nodes while nodes and replicas are killed, and judge what all saw; RUNS times.
	$(BIN)/python -m tests.chaos.shuffle --size 1G --runs $(RUNS)

wordcount: install  ## Run the example job on this machine.
	$(BIN)/zray run examples/wordcount.py

bench: install  ## Measure zray beside whichever of its peers can be imported; writes docs/benchmarks.md.
	$(BIN)/python -m benchmarks.compare

AGAINST ?=
perf: install  ## Measure this tree against the last tag, or AGAINST=COMMIT, in pairs; fails on a regression.
	$(BIN)/python -m benchmarks.instructions $(if $(AGAINST),--against $(AGAINST))
	$(BIN)/python -m benchmarks.paired $(if $(AGAINST),--against $(AGAINST))

instructions: install  ## Count the instructions of three hot paths; fails if they are more than those that are kept.
	$(BIN)/python -m benchmarks.instructions --check

paper: install  ## Run the paper's experiments at the small scale; writes docs/paper-report/. PEERS='--python ray=PATH'.
	-$(BIN)/python -m paper_experiments run all $(PEERS)
	$(BIN)/python -m paper_experiments report

paper-check: install  ## Run the simulated experiments at the small scale: what the stored runs reproduced is reproduced.
	$(BIN)/python -m paper_experiments run all --sim --check

clean:  ## Remove the virtual environment, caches and build products.
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
