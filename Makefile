# Every command sets up what it needs: a virtual environment in .venv, made anew only when the pins have changed.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_FLAGS ?=
OUT ?= build/demo-checkpoints
BUF_VERSION := 1.75.0

VENV := .venv
BIN := $(VENV)/bin
PINS := pyproject.toml clients/python/pyproject.toml constraints.txt
RUNTIME := $(VENV)/.runtime-installed
DEVELOPMENT := $(VENV)/.development-installed
BUF := .tools/node_modules/.bin/buf

.DEFAULT_GOAL := help
.PHONY: help demo serve test check format bench protos demo-checkpoints

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(RUNTIME) ## Set up and show what Guardwire does, with the small demo checkpoints
	$(BIN)/guardwire-server demo

serve: $(RUNTIME) ## Set up and serve on 127.0.0.1:50051 (ARGS="--stream-model … --gen-model …" for real checkpoints)
	$(BIN)/guardwire-server serve $(ARGS)

test: $(DEVELOPMENT) ## Set up and run all tests (ARGS="tests/core -x" for some)
	$(BIN)/pytest --numprocesses auto --dist worksteal $(ARGS)

check: $(DEVELOPMENT) ## Format, lint, types, import contracts, proto lint and freshness
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	PYTHON=$(BIN)/python BUF_VERSION=$(BUF_VERSION) protos/check.sh

format: $(DEVELOPMENT) ## Format the code and mend what the linter can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(DEVELOPMENT) ## Measure; results go to tests/bench/results (ARGS=--quick for a short run)
	$(BIN)/python -m tests.bench $(ARGS)

protos: $(DEVELOPMENT) ## Generate the Python stubs from protos/
	PYTHON=$(BIN)/python protos/generate.sh

demo-checkpoints: $(DEVELOPMENT) ## Train the demo checkpoints anew, into build/, and print how good they are (up to an hour)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m guardwire_server.demo.train --out $(OUT) $(ARGS)

$(RUNTIME): $(PINS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --constraint constraints.txt torch -e 'clients/python[cli,otel]' -e .
	touch $@

$(DEVELOPMENT): $(RUNTIME)
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --constraint constraints.txt torch -e 'clients/python[cli,otel]' -e '.[dev]'
	touch $@
