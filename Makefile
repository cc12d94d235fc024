# Each target sets up .venv by itself. Needs python3 (3.11 to 3.13) with venv, and a package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Data of demo and dev: in the checkout, unless you name another place.
export EMBED_HOME ?= $(CURDIR)/.embed_pipeline

.PHONY: demo test lint dev format clean
.DEFAULT_GOAL := demo

demo: $(VENV)/ready ## make a sample project, sync it through Dagster, search it
	$(BIN)/embed-pipeline demo

dev: $(VENV)/ready ## open the Dagster UI on the same data
	$(BIN)/embed-pipeline dev

test: $(VENV)/ready ## run the tests
	$(BIN)/pytest --numprocesses 3

lint: $(VENV)/ready ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/ready ## mend the style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove the environment and the data of demo and dev
	rm -rf $(VENV) .embed_pipeline

$(VENV)/ready: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 to 3.13, or name one: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo "error: $$($(PYTHON) --version) is not supported; install Python 3.11 to 3.13, or name one: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) has no venv; on Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "setting up $(VENV) (some minutes the first time: torch, transformers, dagster)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet pip==26.3
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --build-constraint constraints.txt --editable '.[heif,supervisely]' --group dev
	@touch $@
