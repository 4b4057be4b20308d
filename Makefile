# Everything here runs in .venv, which the targets make and keep up to date by themselves.
# Another interpreter for it: `make install PYTHON=python3.13`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install serve test check format bench smoke clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.test ## Make .venv with the service and what its tests need

serve: $(VENV)/.serve ## Run the service; INNERLOOP_* variables are its settings
	exec $(BIN)/innerloop serve

test: check ## Run the static checks, then the tests, file by file in two processes
	$(BIN)/pytest --numprocesses 2 --dist loadfile

check: $(VENV)/.test ## Run the static checks: lint, format, types, import floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.test ## Format the code and fix what the linter can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.bench ## Install what benchmarks/ needs beside it

smoke: ## Build the image, run the stack and adapt one session in it (needs Docker)
	$(PYTHON) scripts/docker_smoke.py

clean: ## Remove .venv and the tools' caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# Two stamps, so that `make serve` on a fresh clone does not wait for, or fail on, a test tool.
# Each is older than its inputs exactly when pip has something to do.
$(VENV)/.serve: pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt -e .
	touch $@

$(VENV)/.bench: $(VENV)/.test
	$(BIN)/pip install -c constraints.txt -e '.[test,bench]'
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt -e '.[test]'
	touch $(VENV)/.serve $@
