# Every command of the project. `make demo` and `make test` need nothing but Python 3.11+ and a package index.
SHELL := /bin/bash
-include .env
export
export DAGSTER_HOME ?= $(CURDIR)/dagster_home
# uv does not read pip's settings; this passes pip's local folder of wheels on to uv.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export PYTHONUNBUFFERED := 1
# Containers often set it; every process would then compile the Python files of torch and transformers again (ten seconds).
unexport PYTHONDONTWRITEBYTECODE

UV := $(or $(shell command -v uv),.uv/bin/uv)
BIN := .venv/bin

.PHONY: demo test coverage dev check format lock clean
.DELETE_ON_ERROR:

demo: .venv/ready ## the main job: every asset, from raw rows to a champion; RECIPE=NAME for another recipe
	@$(BIN)/cs-pipeline demo $(if $(RECIPE),--recipe $(RECIPE))

test: .venv/ready ## the whole test suite
	$(BIN)/pytest

coverage: .venv/ready ## the same with the share of lines that the tests run, which must not fall below the floor in pyproject.toml
	$(BIN)/pytest --cov=cs_pipeline

dev: .venv/ready ## Dagster UI and daemon on port 3000, MLflow UI on 5000, chat and API on 8000; Ctrl-C stops all
	@$(BIN)/cs-pipeline dev

check: .venv/ready ## lint, format, import layers, dependencies, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/deptry cs_pipeline bench
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: .uv/bin/uv ## pin the newest versions that pyproject.toml allows
	$(UV) pip compile -q --upgrade --extra dev --python-version 3.11 --no-annotate --no-header \
	  --no-emit-index-url --no-emit-find-links pyproject.toml <(printf "hatchling\nuv\n") | sed 's/+cpu$$//' > constraints.txt

.venv/ready: pyproject.toml constraints.txt | $(UV)
	@echo "Creating the environment in .venv (about a minute) ..."
	@$(UV) venv -q --clear .venv
	@$(UV) pip install -q --python .venv -c constraints.txt --build-constraint constraints.txt -e '.[dev]'
	@touch $@

.uv/bin/uv:
	@python3 -m venv .uv && .uv/bin/pip install -q "$$(grep '^uv==' constraints.txt)"

clean: ## remove the environment and caches; the lake and the Dagster instance stay
	rm -rf .venv .uv .mypy_cache .pytest_cache .ruff_cache
	find cs_pipeline cs_pipeline_tests -name __pycache__ -prune -exec rm -rf {} +
