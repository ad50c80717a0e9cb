# make setup    .venv with the package and its tools       make test    the tests (CPU, a few minutes)
# make demo     render videos, pretrain, probe, report      make check   what CI runs: lint, types, test, short demo
# make bench    side-by-side timings against peers          make clean   remove caches (runs/ and .venv stay)

PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
SOURCE := jepa evals app tests benchmarks
# A process per core; a file of tests stays in one of them, for tests of a file share what was trained once. No more than
# 8, each with its own PyTorch in memory. The order is that of tests/conftest.py, not that of xdist.
SIDE_BY_SIDE := -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo test lint types demo-short check bench clean

setup: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed: install one, or run: make setup PYTHON=/path/to/python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

$(VENV)/.bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e '.[dev,bench]'
	touch $@

demo: setup
	$(BIN)/jepa demo

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(SIDE_BY_SIDE)

lint: setup
	$(BIN)/ruff check $(SOURCE)

types: setup
	$(BIN)/mypy jepa

demo-short: setup
	$(BIN)/jepa demo --short

check: lint types test demo-short

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/encode.py

clean:
	rm -rf .pytest_cache .ruff_cache .mypy_cache build dist
	find $(SOURCE) -name __pycache__ -type d -prune -exec rm -rf {} +
