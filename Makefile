# `make` alone says what there is. Nothing here needs an activated virtual environment.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime-installed
DEV := $(VENV)/.dev-installed
BENCH := $(VENV)/.bench-installed

# The first interpreter on the PATH that is new enough; `make PYTHON=/path/to/python setup` overrides it.
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p $(NEW_ENOUGH) 2>/dev/null && echo $$p && break; done)

PIP := $(BIN)/python -m pip --disable-pip-version-check --retries 5 --timeout 60
# CI takes exactly the versions that were tested; a person gets what the ranges in pyproject.toml allow.
INSTALL := $(PIP) install --quiet $(if $(filter true,$(CI)),-c constraints.txt)
PYTEST := $(BIN)/python -m pytest
# Most tests wait more than they work, so several files at a time; what measures or needs the machine is long or system.
BESIDE := -n 3 --dist loadfile

.PHONY: help setup demo up test long system guard soak image compose-demo quick check proto bench wheel release clean

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(DEV) ## Make .venv and install Ringpost in it, with all that developing it needs

demo: $(RUNTIME) ## Show the broker at work on real data: crash, restart, proof (below two minutes)
	@$(BIN)/ringpost demo

up: $(RUNTIME) ## Start a local node in the background; `.venv/bin/ringpost down` stops it
	@$(BIN)/ringpost up

test: $(DEV) ## Run the tests (below ten minutes)
	@$(PYTEST) $(BESIDE) -m 'not long and not system'

long: $(DEV) ## Run the tests that `make test` leaves out: crashes, memory, many channels, other languages
	@$(PYTEST) -m long

system: $(DEV) ## Run all faults on a cluster of processes with etcd (about nine minutes)
	@$(PYTEST) tests/system

guard: $(DEV) ## Count the instructions of the hot path: has something become dearer? (needs valgrind)
	@$(BIN)/python -m tests.benchmarks.guard

quick: $(DEV) ## Run the tests that take seconds
	@$(PYTEST) -m 'not slow and not long and not system'

check: $(DEV) ## Lint, types, import borders, .proto style, generated code
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/mypy --no-error-summary
	$(BIN)/lint-imports --no-cache >/dev/null || $(BIN)/lint-imports --no-cache
	$(BIN)/buf lint proto
	proto/breaking.sh $(BIN)/buf
	$(BIN)/python proto/generate.py --check

proto: $(DEV) ## Generate the Python code from the .proto files
	@$(BIN)/python proto/generate.py

soak: $(DEV) ## Ten minutes of random faults on a cluster of processes, then every promise is checked
	@$(PYTEST) -s tests/system/soak.py

image: $(RUNTIME) ## Build the container image, also where no base image can be pulled
	@PYTHON=$(BIN)/python deploy/image/build.sh

compose-demo: image ## Show a cluster of containers that are killed, paused, cut off and made anew (two minutes)
	@PYTHON=$(BIN)/python deploy/image/build.sh etcd
	@$(BIN)/python deploy/compose_demo.py

bench: $(BENCH) ## Measure Ringpost beside raw gRPC, NATS, Redis and RabbitMQ; writes .benchmarks/ (ARGS=--full: all of it)
	@$(BIN)/python -m tests.benchmarks $(ARGS)

wheel: $(DEV) ## Build the wheel in dist/
	@$(BIN)/python -m build --no-isolation --wheel --outdir dist >/dev/null && ls dist/*.whl

release: $(DEV) ## Make in dist/ what a release consists of, with a bill of materials and hashes
	@PYTHON=$(abspath $(BIN)/python) deploy/release.sh

clean: ## Remove what was made here
	rm -rf $(VENV) build dist *.egg-info .benchmarks .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache tests/interop/*/target tests/benchmarks/load/target

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "Ringpost needs Python 3.11 or newer, and python3 is $$(python3 --version 2>&1 || true)." >&2; \
		echo "Install one, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; fi
	@if ! $(PYTHON) $(NEW_ENOUGH); then \
		echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); Ringpost needs Python 3.11 or newer." >&2; exit 1; fi
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "Could not make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 1; }

$(RUNTIME): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing Ringpost and what it needs to run"
	@$(INSTALL) --editable '.[local]'
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing Ringpost and what it needs for development"
	@$(INSTALL) --editable '.[dev]'
	@touch $(RUNTIME) $@

$(BENCH): pyproject.toml constraints.txt | $(DEV)
	@echo "installing the peers' clients"
	@$(INSTALL) --editable '.[dev,bench]'
	@touch $@
