# `make demo` shows it, `make test` proves it. Both make .venv first; nothing outside this folder is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
CORE := $(VENV)/.core
DEV := $(VENV)/.dev

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types bench soak lock clean

help: ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/' | expand -t 16

setup: $(CORE) ## make .venv with what sse-relay needs

demo: setup ## talk to a relay with a built-in upstream: no key, no network
	@$(BIN)/sse-relay demo

test: $(DEV) ## everything that must hold: style, types, tests
	@tests/install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q -n 2 --dist loadfile

lint: $(DEV) ## style alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV) ## types alone
	$(BIN)/mypy

bench: $(DEV) ## measure it on this machine, and write docs/benchmarks.md
	$(BIN)/python -m benchmarks.run --write

soak: $(DEV) ## 100,000 streams of every kind, and nothing may grow
	$(BIN)/python -m benchmarks.soak

lock: $(DEV) ## write requirements/ anew with releases older than a week: make lock BEFORE=2026-01-31
	PATH="$(CURDIR)/$(BIN):$$PATH" requirements/lock.sh $(BEFORE)

clean: ## remove .venv and every cache
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .schemathesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "sse-relay needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
	    echo "Name another one: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "$(PYTHON) has no venv module; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

# The stamps come last, so that an installation that was cut off is begun again.
$(CORE): requirements/core.txt pyproject.toml | $(BIN)/python
	@echo "Installing what sse-relay needs into $(VENV) …"
	@$(PIP) install --require-hashes -r requirements/core.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(DEV): requirements/dev.txt $(CORE)
	@echo "Installing what its tests need …"
	@$(PIP) install --require-hashes -r requirements/dev.txt
	@touch $@
