# make quickstart [DATA=folder]   set up, then go the whole way from behaviors to a served score
# make test                       set up, then every test
# make check                      lint, types and the quick tests
# make fmt                        sort imports and format
# make bench                      every benchmark; each ends with one JSON object
# make clean                      remove .venv and caches, keep what was learned

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install quickstart test check lint types quick fmt bench clean

DATA := synthetic
PYTHON := python3.11 python3 python
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
STAMP := .venv/.installed
BENCHMARKS := $(patsubst benchmarks/%.py,%,$(filter-out benchmarks/_%,$(wildcard benchmarks/*.py)))

# The stamp holds the folder it was made in: an environment that was moved or copied is made afresh.
$(shell [ ! -e $(STAMP) ] || [ "$$(cat $(STAMP))" = "$(CURDIR)" ] || rm -f $(STAMP))

help:
	@sed -n 's/^# make /make /p' Makefile

install: $(STAMP)

# The stamp is written last: without it an environment is absent or half made, and is made from scratch.
# With an older one only what changed is installed.
$(STAMP): requirements.lock pyproject.toml
	@if [ ! -e $@ ]; then \
	  for name in $(PYTHON); do \
	    if "$$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; then \
	      echo "Setting up .venv with $$("$$name" --version); this takes some minutes, once." >&2; \
	      exec "$$name" -m venv --clear .venv; \
	    fi; \
	  done; \
	  echo "Python 3.11 with its venv module is not among: $(PYTHON)." \
	    "Install it, or name it: make PYTHON=/path/to/python3.11" >&2; \
	  exit 1; \
	fi
	@rm -f $@
	@$(PIP) install --requirement requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@echo "$(CURDIR)" > $@

quickstart: $(STAMP)
	@$(BIN)/liber quickstart "$(DATA)" --repo feature_repo

test: $(STAMP)
	@$(BIN)/python -m pytest

check: $(STAMP)
	@$(MAKE) --no-print-directory --jobs 2 lint types quick

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP)
	@$(BIN)/mypy

quick: $(STAMP)
	@HYPOTHESIS_PROFILE=quick $(BIN)/python -m pytest -m "core and not slow" --quiet

fmt: $(STAMP)
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

bench: $(STAMP)
	@for name in $(BENCHMARKS); do echo "benchmarks.$$name" >&2; $(BIN)/python -m "benchmarks.$$name" || exit 1; done

# feature_repo/data and runs stay: their texts and weights cost time.
clean:
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage build dist liber_feast.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
