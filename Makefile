# Each target does its own set-up. Nothing is installed outside .venv and .venv-oldest; models go to the user's cache.
PYTHON ?= python3
OLDEST_PYTHON ?= python3.10
BIN := .venv/bin
INSTALL := -m pip install --disable-pip-version-check --progress-bar off -q
PIP := $(BIN)/python $(INSTALL)
OLDEST := .venv-oldest/bin/python
WORKERS ?= 2

.PHONY: help setup demo test test-fast oldest wheel-check check docs lessons notebooks fuzz lossless figures clean

help:
	@echo "make setup      create .venv with all that lessons, exercises and tests need"
	@echo "make demo       quantize Whisper tiny.en and print the word error rates"
	@echo "make test       all tests, real checkpoints included, with coverage"
	@echo "make test-fast  the tests that need no checkpoint"
	@echo "make oldest     test-fast with Python 3.10, torch 2.4 and the oldest other packages, in .venv-oldest (5 GB)"
	@echo "make wheel-check  build sdist and wheel, install the wheel elsewhere and use it there"
	@echo "make check      ruff, ruff format, mypy --strict"
	@echo "make lessons    run every numbered lesson; all tables and pictures on out/lessons/index.html"
	@echo "make notebooks  write every lesson as a notebook, into out/notebooks"
	@echo "make fuzz       10,000 damaged files of each kind, every write failed once (25 minutes)"
	@echo "make lossless   100 answers of real models stay the same while the drafter learns, 8 ways (an hour)"
	@echo "make figures    draw the pictures of the pages anew"
	@echo "make docs       check links, code blocks and excerpts of the pages (docs/excerpts.py refreshes excerpts)"

.venv/bin/python:
	@echo "creating .venv"
	@$(PYTHON) -m venv .venv

.venv/demo.stamp: requirements/cpu.txt setup.cfg pyproject.toml | .venv/bin/python
	@echo "installing requirements/cpu.txt (a minute or two, once)"
	@$(PIP) -r requirements/cpu.txt
	@$(PIP) --no-build-isolation --no-deps -e .
	@touch $@

.venv/dev.stamp: requirements/dev.txt .venv/demo.stamp
	@echo "installing requirements/dev.txt (once)"
	@$(PIP) -r requirements/dev.txt
	@touch $@

setup: .venv/dev.stamp

demo: .venv/demo.stamp
	@$(BIN)/python examples/quickstart.py

test: .venv/dev.stamp
	@$(BIN)/python -m qlib.models fetch whisper-tiny.en whisper-base moonshine-tiny smollm2-135m-instruct
	@$(BIN)/python -m pytest -n $(WORKERS) --cov=qlib --cov=draftlib --cov-report=term --cov-fail-under=95

test-fast: .venv/dev.stamp
	@$(BIN)/python -m pytest -n $(WORKERS) -m "not weights and not slow"

.venv-oldest/stamp: requirements/oldest.txt setup.cfg pyproject.toml
	@$(OLDEST_PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 10))' || \
	  { echo "make oldest needs Python 3.10: make oldest OLDEST_PYTHON=/path/to/python3.10"; exit 1; }
	@echo "creating .venv-oldest, installing requirements/oldest.txt (5 GB with CUDA, once)"
	@$(OLDEST_PYTHON) -m venv .venv-oldest
	@$(OLDEST) $(INSTALL) -r requirements/oldest.txt
	@$(OLDEST) $(INSTALL) --no-build-isolation --no-deps -e .
	@touch $@

oldest: .venv-oldest/stamp
	@$(OLDEST) -m pytest -n $(WORKERS) -m "not weights and not slow"

wheel-check: .venv/dev.stamp
	@$(BIN)/python -m pytest tests/test_installed.py

check: .venv/dev.stamp
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy

lessons: .venv/demo.stamp
	@$(BIN)/python examples/lesson_page.py

notebooks: .venv/demo.stamp
	@$(BIN)/python examples/notebooks.py

fuzz: .venv/dev.stamp
	@QUANTDRAFT_ROUNDS=10000 $(BIN)/python -m pytest -n $(WORKERS) tests/test_mutations.py tests/test_failures.py tests/benchmark/test_study_failures.py

lossless: .venv/dev.stamp
	@$(BIN)/python -m qlib.models fetch smollm2-135m-instruct
	@QUANTDRAFT_ROUNDS=100 $(BIN)/python -m pytest -rP tests/draftlib/test_lossless_learning.py

docs: .venv/dev.stamp
	@$(BIN)/python -m pytest tests/test_docs.py

figures: .venv/dev.stamp
	@$(BIN)/python docs/figures/make.py
	@$(BIN)/python docs/figures/house.py

clean:
	rm -rf .venv .venv-oldest out .pytest_cache .mypy_cache .ruff_cache .coverage*
