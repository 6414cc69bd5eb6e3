# Needs Python 3.11 or later, make and a package index; everything else is installed into $(VENV).

PYTHON ?= python3
VENV ?= .venv
PEER_VENV ?= .venv-peer
PEER_PYTHON ?= $(PEER_VENV)/bin/python
GARDEN_VENV ?= .venv-garden
GARDEN_PYTHON ?= $(GARDEN_VENV)/bin/python

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := keras_mrcnn tests examples benchmarks

export TF_CPP_MIN_LOG_LEVEL ?= 2

.DEFAULT_GOAL := help
.PHONY: help test proof demo format bench bench-garden ops clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.venv: $(INSTALLED)  ## the environment, with the package installed for development

# Made anew whenever the dependencies may have changed, otherwise once.
$(INSTALLED): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "keras_mrcnn needs Python 3.11 or later; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	@touch $@

test: $(INSTALLED)  ## formatting, lint and every test but the slow proofs
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/python -m pytest -m "not proof" -n 2 --dist loadfile --no-loadscope-reorder --durations=15

proof: $(INSTALLED)  ## the slow proofs
	$(BIN)/python -m pytest -m proof -s

demo: $(INSTALLED)  ## train on 72 microscopy images, score, draw, export
	$(BIN)/python examples/demo.py

format: $(INSTALLED)  ## rewrite the code as `make test` wants it
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

bench: $(INSTALLED) $(PEER_PYTHON)  ## time inference and training beside torchvision
	$(BIN)/python benchmarks/compare_torchvision.py --peer-python $(PEER_PYTHON)

bench-garden: $(INSTALLED) $(PEER_PYTHON) $(GARDEN_PYTHON)  ## the same, and training beside Model Garden
	$(BIN)/python benchmarks/compare_torchvision.py --peer-python $(PEER_PYTHON) --garden-python $(GARDEN_PYTHON)

ops: $(INSTALLED)  ## compile RoIAlign for the TensorFlow in the environment
	$(BIN)/mrcnn build-ops

# torch lives in an environment of its own.
$(PEER_VENV)/bin/python:
	$(PYTHON) -m venv $(PEER_VENV)
	$@ -m pip install --quiet torch torchvision==0.26.* || { rm -rf $(PEER_VENV); exit 1; }

# Only what its vision models import, without what its language models ask for.
$(GARDEN_VENV)/bin/python:
	$(PYTHON) -m venv $(GARDEN_VENV)
	$@ -m pip install --quiet --no-deps "tf-models-official==2.20.*" && \
	$@ -m pip install --quiet "tf-keras==2.20.*" gin-config matplotlib opencv-python-headless pycocotools \
	  pyyaml scipy tensorflow-datasets || { rm -rf $(GARDEN_VENV); exit 1; }

clean:  ## remove the environments and what tools left behind
	rm -rf $(VENV) $(PEER_VENV) $(GARDEN_VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find $(SOURCES) -type d -name __pycache__ -prune -exec rm -rf {} +
