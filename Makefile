# make demo: set up .venv and take resnet20 to a verified INT8 bundle.
# make quick: tests that need no model and no process, in less than a minute.
# make attack: fuzzes every reader and kills every writer for SECONDS (1800); prints what was tried and what broke.
# make test: lint, types, all tests: what CI runs, after .ci/system has installed what they need of the system.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

SECONDS := 1800

.PHONY: demo quick site attack test lint types unit audit clean

demo: $(VENV)/.installed
	$(BIN)/edgeres build --model resnet20 --int8

quick: $(VENV)/.installed-dev
	$(BIN)/pytest --quick -n 2

attack: $(VENV)/.installed-dev
	PYTHONPATH=tests $(BIN)/python tests/attack/fuzzers.py $(SECONDS)
	PYTHONPATH=tests $(BIN)/python tests/attack/kill_points.py 300

test: lint types unit

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

unit: $(VENV)/.installed-dev
	$(BIN)/pytest -n 2 --dist loadgroup

# The docs as a site in build/site, with a search that works without a network; a warning is an error.
site: $(VENV)/.installed-dev
	$(BIN)/python docs/make_site.py

# Known vulnerabilities of what is installed and allowed; says so where PyPI cannot be asked.
audit: $(VENV)/.installed-dev
	$(BIN)/python .ci/audit

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
