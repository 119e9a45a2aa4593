# `make help` lists everything a contributor does.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
# More than there are cores: many tests wait.
PROCESSES ?= 3
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help demo demo-native test test-slow chaos soak mutants benchmarks lint format services lock clean

help: ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(VENV)/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

demo: $(VENV)/installed ## 24 pictures from prompts, nothing else needed
	$(BIN)/zimage demo

demo-native: $(VENV)/installed ## the same on real Kafka and MinIO, exactly once (needs Java, Maven and Go)
	$(BIN)/python -m tests.services run --no-registry -- $(BIN)/zimage demo --configured

test: $(VENV)/installed ## the tests, on real services, in processes that share them
	$(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal

test-slow: $(VENV)/installed ## more cases of what some tests show with few
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

chaos: $(VENV)/installed test-slow ## the whole fault suite, three quarters of an hour; and its table in docs/reliability.md
	$(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) --page docs/reliability.md --json chaos.json

soak: $(VENV)/installed ## scenarios at random: make soak MINUTES=30 [SEED=n]
	$(BIN)/python -m tests.chaos --soak $(or $(MINUTES),30) $(if $(SEED),--seed $(SEED)) --page docs/reliability.md --json soak.json

mutants: $(VENV)/installed ## break the product on purpose, and see what notices
	$(BIN)/python -m tests.chaos.mutate --page docs/reliability.md

benchmarks: $(VENV)/installed ## all benchmarks, an hour; and docs/benchmarks.md: make benchmarks [ONLY="fairness peers"]
	$(BIN)/python -m tests.services run --no-registry -- $(BIN)/python -m benchmarks $(ONLY) $(if $(QUICK),--quick)

lint: $(VENV)/installed ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed ## put the code into the agreed form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

services: $(VENV)/installed ## run Kafka, MinIO and a schema registry until Ctrl-C
	$(BIN)/python -m tests.services

lock: ## pin every dependency anew
	$(BIN)/uv pip compile --quiet pyproject.toml --extra worker --extra otel --extra dev --extra bench --universal \
		--python-version 3.11 --generate-hashes --no-emit-index-url --no-header -o requirements.lock

clean: ## remove the virtual environment and what tools left
	rm -rf $(VENV) dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis zimage-demo
