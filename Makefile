# The verbs of this project. Set-up runs once, into .venv, and again when what it installs from has changed.
#
#   PYTHON=python3.12    the interpreter to make .venv with
#   TORCH=torch==2.13.0  the torch to install where none is installed
#   SERVE=0              `make demo` builds the atlas and ends

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin
SERVE ?= 1
BROWSERS := chromium chromium-browser google-chrome
export PYTHON TORCH

.PHONY: help
help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# -------------------------------------------------------------------------------------------------------------- set-up

.venv/.run: requirements/run.txt requirements/install.sh pyproject.toml
	requirements/install.sh run
	@touch $@

.venv/.dev: requirements/dev.txt requirements/install.sh pyproject.toml
	requirements/install.sh dev
	@touch $@ .venv/.run

.venv/.docs: requirements/docs.txt .venv/.run
	requirements/install.sh docs
	@touch $@

# --------------------------------------------------------------------------------------------------------------- verbs

.PHONY: demo
demo: .venv/.run ## fetch SmolLM2-135M and a text, build an atlas, serve it (SERVE=0: do not serve)
	$(BIN)/microtome demo --serve $(if $(filter 0 no false,$(SERVE)),no,yes)

.PHONY: test
test: .venv/.dev ## the tests: offline, without real weights
	$(BIN)/pytest

.PHONY: test-real
test-real: .venv/.dev browser ## the tests that need packaged weights or a browser
	MICROTOME_TEST_CACHE=$(CURDIR)/.cache/real $(BIN)/pytest -m "weights or browser" tests

.PHONY: browser
browser:
	@for name in $(BROWSERS); do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	else \
		echo "the browser tests need a Chromium: run  sudo apt-get install chromium" >&2; exit 1; \
	fi

.PHONY: ui
ui: .venv/.run ## build the page of ui/ into the package (needs Node, which users of it do not)
	@command -v npm >/dev/null || { echo "building the page needs Node 20.19 or later, with npm" >&2; exit 1; }
	$(BIN)/python -m microtome.web.schema > ui/openapi.json.new && mv ui/openapi.json.new ui/openapi.json
	cd ui && npm install && npm run build

.PHONY: lint
lint: .venv/.dev ## ruff, pyright, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache

.PHONY: format
format: .venv/.dev ## format, and fix what ruff can fix
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

.PHONY: gen
gen: .venv/.run ## write the generated pages of docs/ again
	$(BIN)/python docs/generate.py

.PHONY: docs
docs: .venv/.docs gen ## build the documentation into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.PHONY: bench
bench: .venv/.dev ## speed of observing SmolLM2, and memory, against its bare forward
	$(BIN)/python -m benchmarks.capture
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.factors_coding
	$(BIN)/python -m benchmarks.factors_learning
	$(BIN)/python -m benchmarks.factors_training
	$(BIN)/python -m benchmarks.geometry
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.neurons
	$(BIN)/python -m benchmarks.pages
	$(BIN)/python -m benchmarks.quick
	$(BIN)/python -m benchmarks.vocabulary
	$(BIN)/python -m benchmarks.large

.PHONY: bench-peers
bench-peers: .venv/.dev ## the same beside other tools, each in an environment of its own (6 GB)
	$(BIN)/python -m benchmarks.peers

.PHONY: lock
lock: ## write requirements/*.txt again (needs uv; UPGRADE=1: move to the latest versions)
	UPGRADE=$(UPGRADE) requirements/lock.sh

.PHONY: clean
clean: ## remove what was built here, but not .venv
	rm -rf build dist .cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests docs -name __pycache__ -type d -prune -exec rm -rf {} +
