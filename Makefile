# make demo   compile, evaluate, time and call from C a network trained on handwritten digits
# make test   ruff, mypy and the default test run
# make test-gpu  the tests that need an NVIDIA GPU, and its driver
# make bench  time dlcc against other CPU engines on 13 networks (docs/benchmarking.md)
# make bench-gpu-prepare  compile them for NVIDIA GPUs; needs none, makes a folder to carry to one
# make bench-gpu  that, and time them against other engines on this machine's GPU
# All set up everything they need in $(VENV) first; a second run skips that.
#
# Settings: PYTHON=python3.12   interpreter that makes the virtual environment (3.11 or newer)
#           VENV=.venv          where the virtual environment lies
#           WORKERS=2           pytest processes
#           TORCH=torch==2.13.0 also install torch, so that the tests of dlcc.from_torch run
#           BENCH_CACHE=DIR     where make bench keeps the other engines, models and results
#           BENCH=...           options of make bench: --networks a,b --threads 1 --rounds 3 ...
#           GPU_BENCH=DIR       folder of make bench-gpu
#           PREPARE=...         options of its first half: --networks a,b --bits 8 --batches 1,64 ...

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
TORCH ?=
ARGS ?=
BENCH_CACHE ?= $(HOME)/.cache/dlcc-bench
BENCH ?=
GPU_BENCH ?= build/gpu-bench
PREPARE ?=

SHELL := /bin/bash
BIN := $(VENV)/bin
RUN := $(BIN)/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check
PACKAGES := dlcc passes targets
PEERS := $(RUN) -m benchmarks.peers
GPU := $(RUN) -m benchmarks.gpu

.PHONY: help demo bench bench-gpu bench-gpu-prepare test test-slow test-gpu pytest lint format setup clean
.DEFAULT_GOAL := help

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.demo
	$(RUN) examples/digits/demo.py $(ARGS)

# Each step goes on where it ended, so that an interrupted run can be started again.
bench: export DLCC_BENCH = $(BENCH_CACHE)
bench: $(VENV)/.plain
	$(PEERS) setup
	$(PEERS) run $(BENCH)
	$(PEERS) memory
	$(PEERS) table
	$(PEERS) layers

bench-gpu-prepare: export DLCC_BENCH = $(BENCH_CACHE)
bench-gpu-prepare: $(VENV)/.cuda
	$(GPU) setup
	$(GPU) prepare $(GPU_BENCH) $(PREPARE)

bench-gpu: bench-gpu-prepare
	$(GPU) run $(GPU_BENCH) $(BENCH)
	$(GPU) table $(GPU_BENCH)

# Lint and tests both run, whatever the first finds; either failing fails the target.
test: $(VENV)/.dev
	@status=0; \
	$(MAKE) --no-print-directory lint || status=1; \
	$(MAKE) --no-print-directory pytest || status=1; \
	exit $$status

pytest: $(VENV)/.dev
	$(RUN) -m pytest -m "not slow" -n $(WORKERS) --dist worksteal $(ARGS)

test-slow: $(VENV)/.dev
	$(RUN) -m pytest -m slow $(ARGS)

test-gpu: $(VENV)/.dev
	$(RUN) -m pytest -m gpu -rs tests/cuda $(ARGS)

lint: $(VENV)/.dev
	@status=0; \
	$(BIN)/ruff check . || status=1; \
	$(BIN)/ruff format --check . || status=1; \
	$(BIN)/mypy $(PACKAGES) || status=1; \
	exit $$status

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(VENV)/.dev

$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "make: no '$(PYTHON)' on the path; give one by make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: dlcc needs Python 3.11 or newer, '$(PYTHON)' is $$($(PYTHON) --version 2>&1);" \
	       "give a newer one by make PYTHON=python3.12" >&2; exit 1; }
	@echo "making the virtual environment $(VENV)"
	@test -e $(VENV) && was=1 || was=; \
	$(PYTHON) -m venv $(VENV) || { test "$$was" || rm -rf $(VENV); \
	  echo "make: '$(PYTHON) -m venv' failed (see above); on Debian and Ubuntu the package" \
	       "python3-venv provides it" >&2; exit 1; }
	@touch $@

$(VENV)/.plain: $(VENV)/.made pyproject.toml
	@echo "installing dlcc (once; takes a minute)"
	@$(PIP) -e .
	@touch $@

$(VENV)/.cuda: $(VENV)/.made pyproject.toml
	@echo "installing dlcc and the compiler for GPUs (once; takes a minute)"
	@$(PIP) -e '.[cuda]'
	@touch $@

# One stamp for each set of extras; a change of pyproject.toml installs again.
$(VENV)/.demo: $(VENV)/.made pyproject.toml
	@echo "installing dlcc and what the demo needs (once; takes a minute or two)"
	@$(PIP) -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.made $(if $(TORCH),$(VENV)/.torch) pyproject.toml
	@echo "installing dlcc and what the tests need (once; takes a minute or two)"
	@$(PIP) -e '.[demo,dev]'
	@touch $@

# Without torch the tests of from_torch skip themselves, so failing to get it is no failure.
$(VENV)/.torch: $(VENV)/.made
	@echo "installing $(TORCH)"
	@$(PIP) '$(TORCH)' 'onnxscript>=0.5' || echo "make: no $(TORCH); its tests will be skipped"
	@touch $@

clean:
	rm -rf $(VENV) build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
