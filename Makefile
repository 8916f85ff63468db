# make demo | make test: nothing is needed before them but Python 3.11 or newer.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.secvec-installed
TESTS := $(wildcard tests/test_*.py tests/components tests/manifests tests/pipelines tests/faults tests/end_to_end)

.PHONY: help setup demo test test-slow test-containers bench-efficacy bench-ingest fuzz docs lint
.DEFAULT_GOAL := help

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 26

setup: $(INSTALLED) ## Make .venv with everything in it, at the versions of constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing into $(VENV), which takes some minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: setup ## Run the whole pipeline on a tiny model; results in demo-output/
	$(BIN)/secvec demo --output demo-output

test: setup ## Run all tests but the slow ones
	$(BIN)/python -m pytest -m "not slow" $(TESTS)

test-slow: setup ## Run the tests that take many minutes
	$(BIN)/python -m pytest -m slow $(TESTS)

test-containers: setup ## Build the image and run the pipeline in containers, where there is an engine
	eval "$$(tests/containers/engine.sh)" && $(BIN)/python -m pytest tests/containers

bench-efficacy: setup ## Compare the guards side by side; OUT=folder, TIER=quick|core|axes, goes on where it was
	$(BIN)/python -m tests.benchmarks.efficacy $(or $(OUT),bench-efficacy) --tier $(or $(TIER),quick)

bench-ingest: setup ## Measure reading of 10 million rows beside datasets; OUT=folder (35 GB), ROWS=number
	$(BIN)/python -m tests.benchmarks.ingest $(or $(OUT),bench-ingest) --rows $(or $(ROWS),10000000)

fuzz: setup ## Give 50,000 malformed inputs to every parser; INPUTS=number
	$(BIN)/python -m tests.fuzz --inputs $(or $(INPUTS),50000)

docs: setup ## Write each component's README and metadata from its docstring
	$(BIN)/python .ci/describe_components.py

lint: setup ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
