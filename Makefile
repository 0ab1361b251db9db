# make quickstart [DATA=folder]   set up, then go the whole way from behaviors to a served score
# make test [PROCESSES=2]         set up, then every test but those of the vLLM engine
# make test-vllm                  set up .venv-vllm, then the tests of the vLLM engine
# make test-nightly               the crash tests with 200 killed processes, the outage tests with services away for 60 s
# make check                      lint, types and the quick tests
# make fmt                        sort imports and format
# make bench                      every benchmark; each ends with one JSON object
# make clean                      remove both environments and caches, keep what was learned

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-vllm test-nightly check lint types quick fmt bench clean

DATA := synthetic
PROCESSES := 2
PYTHON := python3.11 python3 python
BIN := .venv/bin
STAMP := .venv/.installed
VLLM_STAMP := .venv-vllm/.installed
# Each file of tests in one process, in the order of tests/conftest.py.
IN_PARALLEL := --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder
BENCHMARKS := $(patsubst benchmarks/%.py,%,$(filter-out benchmarks/_%,$(wildcard benchmarks/*.py)))

# A stamp holds the folder it was made in: an environment that was moved or copied is made afresh.
$(foreach stamp,$(STAMP) $(VLLM_STAMP), \
  $(shell [ ! -e $(stamp) ] || [ "$$(cat $(stamp))" = "$(CURDIR)" ] || rm -f $(stamp)))

# $(call environment,FOLDER,OPTIONS,LOCK): make FOLDER from scratch if it has no stamp, then install what pip's OPTIONS
# name, and what LOCK, if there is one, lists, without what that asks for.
# The stamp is written last: without it an environment is absent or half made.
# With an older one only what changed is installed.
define environment
	@if [ ! -e $@ ]; then \
	  for name in $(PYTHON); do \
	    if "$$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; then \
	      echo "Setting up $(1) with $$("$$name" --version); this takes some minutes, once." >&2; \
	      exec "$$name" -m venv --clear $(1); \
	    fi; \
	  done; \
	  echo "Python 3.11 with its venv module is not among: $(PYTHON)." \
	    "Install it, or name it: make PYTHON=/path/to/python3.11" >&2; \
	  exit 1; \
	fi
	@rm -f $@
	@$(1)/bin/python -m pip --disable-pip-version-check --quiet install $(2)
	@$(if $(3),$(1)/bin/python -m pip --disable-pip-version-check --quiet install --no-deps --requirement $(3))
	@$(1)/bin/python -m pip --disable-pip-version-check --quiet install --no-deps --no-build-isolation --editable .
	@echo "$(CURDIR)" > $@
endef

help:
	@sed -n 's/^# make /make /p' Makefile

install: $(STAMP)

$(STAMP): requirements.lock requirements-peers.lock pyproject.toml
	$(call environment,.venv,--requirement requirements.lock,requirements-peers.lock)

$(VLLM_STAMP): requirements-vllm.lock pyproject.toml
	$(call environment,.venv-vllm,--no-deps --requirement requirements-vllm.lock)

quickstart: $(STAMP)
	@$(BIN)/liber quickstart "$(DATA)" --repo feature_repo

test: $(STAMP)
	@$(BIN)/python -m pytest $(IN_PARALLEL)

test-vllm: $(VLLM_STAMP)
	@.venv-vllm/bin/python -m pytest tests/vllm

test-nightly: $(STAMP)
	@LIBER_KILLS=200 LIBER_OUTAGE_S=60 $(BIN)/python -m pytest tests/test_crash_races.py tests/test_outage_processes.py

check: $(STAMP)
	@$(MAKE) --no-print-directory --jobs 2 lint types quick

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP)
	@$(BIN)/mypy

quick: $(STAMP)
	@HYPOTHESIS_PROFILE=quick $(BIN)/python -m pytest -m "core and not slow" --quiet $(IN_PARALLEL)

fmt: $(STAMP)
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

bench: $(STAMP) $(VLLM_STAMP)
	@for name in $(BENCHMARKS); do echo "benchmarks.$$name" >&2; $(BIN)/python -m "benchmarks.$$name" || exit 1; done

# feature_repo/data and runs stay: their texts and weights cost time.
clean:
	@rm -rf .venv .venv-vllm .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage build dist liber_feast.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
