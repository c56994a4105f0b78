# Everything a developer does here. It needs Python 3.11, 3.12 or 3.13 and nothing else: uv is brought into .tools/,
# and .venv/ holds exactly what requirements.lock pins.

PYTHON ?= python3
ARGS ?=
PYTEST_ARGS ?=

UV_VERSION := 0.13.9
UV := .tools/bin/uv
BIN := .venv/bin
STAMP := .venv/.installed
DECLARATIONS := $(wildcard dags/*.yaml)

export UV_PYTHON_DOWNLOADS := never
export UV_LINK_MODE ?= copy
# Python may be told to keep no compiled files; then each of some thousand processes would compile all of it anew.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test lint format docs benchmark benchmark-drift lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## Make .venv/ from requirements.lock

demo: $(STAMP) ## Run the demo, whole, on this machine
	$(BIN)/airflow-mlops demo $(ARGS)

test: $(STAMP) ## Run the tests (PYTEST_ARGS="-k ledger -x")
	$(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(STAMP) ## Check style, types, import layers and declarations
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
ifneq ($(DECLARATIONS),)
	$(BIN)/airflow-mlops lint $(DECLARATIONS)
endif

format: $(STAMP) ## Rewrite the sources in the one style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## Generate docs/reference/ (ARGS=--check to compare only)
	$(BIN)/python docs/build.py $(ARGS)

benchmark: $(STAMP) ## Measure start-up, parsing and whole runs
	$(BIN)/python -m benchmarks $(ARGS)

benchmark-drift: $(STAMP) ## Measure drift against Evidently, and sensors that wait (ARGS=--full: 100 million rows, ARGS="--rows 5000000")
	$(BIN)/python -m benchmarks drift sensors $(ARGS)
	$(BIN)/python -m benchmarks.alarms $(filter --quick,$(ARGS))

lock: $(UV) ## Compile requirements.lock anew from pyproject.toml (ARGS=--upgrade to move the pins)
	$(UV) pip compile pyproject.toml --all-extras --group dev --universal --generate-hashes --no-header --no-annotate \
		--python-version 3.11 --output-file requirements.lock --quiet $(ARGS)

clean: ## Remove what these targets make
	rm -rf .venv .tools dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find airflow_mlops dags docs tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): requirements.lock pyproject.toml | $(UV)
	@rm -f $@
	@test -x $(BIN)/python || $(UV) venv --quiet --allow-existing --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" .venv
# Compiled here, once: Airflow starts a process for every task, and PYTHONDONTWRITEBYTECODE would let each one compile
# what it imports.
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

$(UV): Makefile
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
		echo "error: '$(PYTHON)' is not Python 3.11, 3.12 or 3.13; install one and name it: make PYTHON=python3.12" >&2; \
		exit 1; }
	@rm -rf .tools
	@if $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
		$(PYTHON) -m venv .tools && .tools/bin/python -m pip install --quiet "uv==$(UV_VERSION)"; \
	elif $(PYTHON) -m pip --version >/dev/null 2>&1; then \
		$(PYTHON) -m pip install --quiet --target .tools "uv==$(UV_VERSION)"; \
	else \
		echo "error: '$(PYTHON)' has neither venv with ensurepip nor pip; install python3-venv or python3-pip" \
			"(Debian, Ubuntu: apt install python3-venv)" >&2; \
		exit 1; \
	fi
	@touch $@
