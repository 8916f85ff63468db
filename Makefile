# make demo | make test: nothing is needed before them but Python 3.11 or newer.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.secvec-installed
TESTS := $(wildcard tests/test_*.py tests/components tests/manifests tests/pipelines tests/faults tests/end_to_end)

.PHONY: help setup demo test test-slow test-containers test-faults bench-efficacy bench-ingest fuzz mutation \
	tampers promoters docs lint
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

# Two at a time: a file's tests stay in one process, and both collect them in the same order.
test: setup ## Run all tests but the slow ones
	PYTHONHASHSEED=0 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(TESTS)

test-slow: setup ## Run the tests that take many minutes
	$(BIN)/python -m pytest -m slow $(TESTS)

test-containers: setup ## Build the image and run the pipeline in containers, where there is an engine
	variables=$$(tests/containers/engine.sh) && eval "$$variables" && $(BIN)/python -m pytest tests/containers

test-faults: setup ## Kill runs, spoil traffic, end trainings; OUT=folder, goes on where it was; POINTS, RUNS, WORKERS
	$(BIN)/python -m pytest tests/faults tests/components/fine_tune_guarded/test_termination.py \
		tests/components/fine_tune_guarded/test_checkpoints.py \
		tests/components/fine_tune_guarded/test_checkpoint_places.py \
		tests/components/fine_tune_guarded/test_memory.py -m "not slow"
	$(BIN)/python -m tests.faults.kill_anywhere --out $(or $(OUT),test-faults)/kills \
		--points $(or $(POINTS),200) --workers $(or $(WORKERS),2)
	$(BIN)/python -m tests.faults.faulty_s3 --out $(or $(OUT),test-faults)/s3 \
		--runs $(or $(RUNS),20) --workers $(or $(WORKERS),2)
	$(BIN)/python -m tests.faults.terminate_large --out $(or $(OUT),test-faults)/termination

bench-efficacy: setup ## Compare the guards side by side; OUT=folder, TIER=quick|core|axes|all, WORKERS, goes on where it was
	$(BIN)/python -m tests.benchmarks.efficacy $(or $(OUT),bench-efficacy) --tier $(or $(TIER),quick) \
		--workers $(or $(WORKERS),2)

mutation: setup ## Change the gate, the audit log and the absence proof: do tests notice? OUT=folder, goes on where it was
	$(BIN)/python -m tests.benchmarks.mutation $(or $(OUT),bench-mutation)

tampers: setup ## Tamper 10,000 times with what a promotion leaves, and promote 1,000 times without
	$(BIN)/python -m tests.benchmarks.tampers

promoters: setup ## Let 32 promoters race and die, 200 times; OUT=folder, goes on where it was
	$(BIN)/python -m tests.benchmarks.promotion $(or $(OUT),bench-promotion)

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
