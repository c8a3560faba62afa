# make demo   install, then the whole pipeline on the procedural data set
# make test   install, then ruff, mypy and the default tests
# make torture   install, then faults and bad input: docs/faults.md
# make bench     every benchmark in one table (arguments: BENCH="--photos DIR")
# make gpu       what only a GPU can tell: runs/gpu/gpu.md (arguments: GPU="--voc DIR --weights R50.pth")
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test torture gpu bench lint clean

help: ## show this text
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

install: $(INSTALLED) ## make .venv and install wsss into it

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("wsss needs Python 3.11 or newer, this is %d.%d: make PYTHON=python3.11 ..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

demo: install ## run the whole pipeline on shapes (two cores: a few minutes), print mIoU per stage and the report's path
	$(BIN)/wsss run configs/shapes.yaml

test: install lint ## ruff, mypy and the default tests
	$(BIN)/python -m pytest

torture: install ## break running pipelines on purpose and try bad input (a quarter of an hour); writes docs/faults.md
	rm -rf runs/torture
	$(BIN)/python benchmarks/torture.py runs/torture --page docs/faults.md

gpu: install ## tests, agreement, speed and launch paths on a GPU, in at most eight minutes; writes runs/gpu
	rm -rf runs/gpu
	$(BIN)/python benchmarks/gpu.py runs/gpu $(GPU)

bench: install ## every benchmark with its peer: runs/bench/bench.md (BENCH="--photos DIR", on an idle machine)
	$(BIN)/python benchmarks/bench.py runs/bench $(BENCH)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove .venv and caches (runs/ and data/ stay)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
