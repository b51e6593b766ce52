# The front door. Needs Python 3.11 or newer (with venv) and nothing else; `make help` lists the rest.
SHELL := /bin/sh
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One more than cores: tests wait for servers more than they work.
WORKERS ?= 3

# The first that runs, is new enough and can make a virtual environment.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	>/dev/null 2>&1 && echo $$python && break; done)

# pyproject.toml alone says it.
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

.PHONY: demo test long wheel-test check fmt bench settings chaos histories screenshots lock dist image \
	clean help

demo: $(STAMP) ## See it work: a closed month, servers, a simulated fleet, the books (half a minute)
	@$(BIN)/python -m accounting demo

test: $(STAMP) ## Run the tests (real Postgres and Valkey; Redis and coturn where installed)
	$(BIN)/pytest -n $(WORKERS) --dist worksteal

long: $(STAMP) ## Run the long forms of some tests (six minutes)
	$(BIN)/pytest -m long -n $(WORKERS) --dist worksteal

wheel-test: $(STAMP) ## Build wheels and sdist, test them, and install them as operators do (four minutes)
	@PYTEST_ADDOPTS="-n $(WORKERS)" $(BIN)/python -m tests.wheel

check: $(STAMP) ## Check style, types and the walls between packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(STAMP) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

BENCH ?= --json bench.jsonl
bench: $(STAMP) ## Measure, each beside the limit of the machine (an hour; BENCH="--only load")
	@$(BIN)/python -m benchmarks $(BENCH)

settings: $(STAMP) ## Try every setting of Postgres one at a time (ten minutes)
	@EACH_SETTING=1 $(BIN)/pytest -n $(WORKERS) tests/db/test_database_settings.py

FAULTS ?= 100
chaos: $(STAMP) ## Break it at random and count: FAULTS=500, SEED=7 to play a run again
	@$(BIN)/python -m tests.chaos --faults $(FAULTS) $(if $(SEED),--seed $(SEED))

SEEDS ?= 1-10
histories: $(STAMP) ## Play random months and compare with an oracle: SEEDS=1-50, CELLS=3 of a front
	@$(BIN)/python -m tests.histories --seeds $(SEEDS) $(if $(CELLS),--cells $(CELLS))

reference: $(STAMP) ## Write the pages of docs/reference that list what the code has
	@$(BIN)/python -m tests.support.reference

screenshots: $(STAMP) ## Take the pictures in docs/images again (half a minute; needs chromium)
	@$(BIN)/python -m tests.screenshots

# Without --upgrade versions stay as they are; `make lock UPGRADE=--upgrade` takes the newest.
COMPILE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url \
	--python-version 3.11 --custom-compile-command "make lock" $(UPGRADE)
lock: $(STAMP) ## Lock the dependencies with their hashes
	$(COMPILE) pyproject.toml --all-extras --group dev --output-file requirements-dev.lock
	$(COMPILE) pyproject.toml --extra web --extra webhooks --constraint requirements-dev.lock --output-file requirements.lock
	$(COMPILE) --group build --constraint requirements-dev.lock --output-file requirements-build.lock

dist: $(STAMP) ## Build what a release publishes: the sdist, and the wheel of Python only
	rm -rf dist
	ACCOUNTING_COMPILE=0 $(BIN)/python -m hatchling build -d dist

DOCKER ?= docker
image: ## Build the container image, tagged with its version (DOCKER=podman)
	$(DOCKER) build --build-arg VERSION=$(VERSION) --tag turn-accounting:$(VERSION) --tag turn-accounting .

clean: ## Remove the environment, caches and the demo's data
	if [ -e .demo/turn-accounting-demo ]; then rm -rf .demo; fi  # not after an `up` on it
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find accounting migrations tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | while IFS="$$(printf '\t')" read -r name what; do \
		printf '  make %-11s %s\n' "$$name" "$$what"; done

$(STAMP): pyproject.toml requirements-dev.lock
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer with venv found: install one" \
		"(Debian: apt-get install python3-venv), or name it: make PYTHON=/path/of/python" >&2; exit 1; }
	@echo "setting up $(VENV) with $(PYTHON), about a minute"
	@"$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes \
		--requirement requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--no-build-isolation --editable .
	@touch $(STAMP)
