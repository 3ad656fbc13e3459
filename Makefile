# make          lists the targets
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: help demo test test-fast test-slow lint docs dist bench clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(VENV)/.run: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[models]'
	touch $@

$(VENV)/.test: $(VENV)/.run
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

$(VENV)/.docs: $(VENV)/.run
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

$(VENV)/.bench: $(VENV)/.run
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $@

demo: $(VENV)/.run  ## make the environment, compile a pruned BERT, print the report and the measured speed-up
	$(BIN)/python -m benchmarks.demo

test: lint test-fast  ## make the environment, check style and types, pass the tests

test-fast: $(VENV)/.test  ## the tests alone
	$(BIN)/python -m pytest --numprocesses auto -rs

test-slow: $(VENV)/.test  ## the full model matrix
	$(BIN)/python -m pytest -m slow --numprocesses auto

lint: $(VENV)/.test  ## ruff and strict mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs  ## the pages as a site, in docs/_build; warnings are errors
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet docs docs/_build

dist: $(VENV)/.test  ## a source archive and a wheel, in dist/
	$(BIN)/python -m build

bench: $(VENV)/.bench  ## models and kernels beside their rivals, memory, overhead, SSL, widths, plans; writes benchmarks/results/
	$(BIN)/python -m benchmarks.models
	$(BIN)/python -m benchmarks.footprint
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.kernels
	$(BIN)/python -m benchmarks.ssl
	$(BIN)/python -m benchmarks.widths
	$(BIN)/python -m benchmarks.sparsify
	$(BIN)/python -m benchmarks.equal_latency
	$(BIN)/python -m benchmarks.wanda_groups

clean:  ## remove the environment and every cache
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info build dist docs/_build
