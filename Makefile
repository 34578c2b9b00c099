# Every target does its own set-up: only Python 3.11 or newer has to be there.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
JOBS ?= 2

.PHONY: help demo data test quick lint studies bench docs clean

help:
	@echo "make demo     watch an unstable training run, and test remedies on it"
	@echo "make test     lint, types, imports and all tests"
	@echo "make data     fetch the packages whose data files the tests and studies read, outside the environment"
	@echo "make quick    the tests without the slow ones"
	@echo "make studies  run every study at its default budget with two sets of seeds and write its results"
	@echo "make bench    compare with peers, in an environment of their own"
	@echo "make docs     build the documentation into site/"

.venv/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "poise needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	@echo "setting up .venv (once; a few minutes)"
	@$(PYTHON) -m venv .venv

.venv/core: .venv/pyvenv.cfg pyproject.toml constraints.txt
	@$(PIP) install --constraint constraints.txt --editable .
	@touch $@

.venv/test: .venv/core
	@echo "installing what the tests need"
	@$(PIP) install --constraint constraints.txt --editable ".[test,docs]"
	@touch $@

.venv/tables: .venv/core
	@$(PIP) install --constraint constraints.txt --editable ".[tables]"
	@touch $@

.venv/docs: .venv/core
	@$(PIP) install --constraint constraints.txt --editable ".[docs]"
	@touch $@

demo: .venv/core
	@rm -rf demo
	@$(BIN)/poise run --out demo/run examples/tiny_gpt.py
	@echo
	@$(BIN)/poise trial --findings-from demo/run --out demo/trial --jobs $(JOBS) \
	  --remedy logit_soft_cap --remedy lr_scale=0.1 examples/tiny_gpt.py

lint: .venv/test
	@$(BIN)/ruff check src tests benchmarks examples docs
	@$(BIN)/ruff format --check src tests benchmarks examples docs/*.py
	@$(BIN)/mypy
	@$(BIN)/lint-imports

data: .venv/core
	@$(BIN)/python -m poise.data

test: lint
	-@$(BIN)/python -m poise.data  # without it, the tests that need the files are skipped and say how to fetch them
	@$(BIN)/python tests/report_browser.py
	$(BIN)/python -m pytest -n $(JOBS) --dist loadscope --durations=20

quick: .venv/test
	-@$(BIN)/python -m poise.data
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow"

studies: .venv/tables data
	$(BIN)/python -m poise.studies

bench: .venv/core
	@test -d .venv-bench || $(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt --editable ".[tables]" -r benchmarks/requirements.txt
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; .venv-bench/bin/python $$script || exit 1; done

docs: .venv/docs
	@NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict

clean:
	rm -rf demo site .mypy_cache .ruff_cache .pytest_cache
