# make demo   install, then find where a small trained model keeps what it knows about epilepsy
# make test   install, then run the tests
# make bench  install two other libraries as well, then time sweeps in all three; ARGS="--quick" and others, ARGS=--help
# Needs Python 3.11 or newer and nothing else; PYTHON=... chooses another interpreter.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
DEMO   ?= engramscope-demo

.PHONY: demo test test-slow test-gpu lint bench clean

demo: $(VENV)/.installed
	$(BIN)/engramscope demo --out $(DEMO)

test: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "slow and not gpu"

test-gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m gpu

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/pyright

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks $(ARGS)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Engramscope needs Python 3.11 or newer; $(PYTHON) is older. Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# pip is brought up to date first: dependency groups need a recent one
$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing Engramscope into $(VENV) (PyTorch is large: this takes a minute or more) ..."
	@$(PIP) --upgrade pip
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(PIP) --group dev
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	@$(PIP) --editable '.[bench]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
