# One door to everything. `make` alone lists the targets.
# The environment is .venv, made on demand from locks/*.txt with plain pip and hashes; it is remade when a lock changes.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# A user-wide `pip install --user` setting would make every install into .venv fail.
export PIP_USER := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONUNBUFFERED := 1
# Some machines tell Python to keep no bytecode. Each process would then compile all that it imports: 3 s instead of less than one.
export PYTHONDONTWRITEBYTECODE :=

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
PYTEST := $(PY) -m pytest
# Two files at a time: most tests of real parts wait, for a broker, a lease, the end of an outage. The tests of a file share what
# they start, so a file stays whole; the files go out in the order of the arguments, so the long ones come first. A process of
# tests that dies ends the run: xdist's replacement for it waits for ever for files that were done.
PYTEST_PAIRS := $(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# Any Python from 3.11 on will do; PYTHON=... chooses one.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)

# Folders of tests that need no broker; each is one tier of `make check`.
QUICK_TIERS := tests/simulation tests/property tests/twins tests/unit tests/tidy tests/conformance tests/containers
# What tests the engine's core: `make test` runs it interpreted and compiled.
CORE_TIERS := tests/simulation tests/property tests/twins tests/unit tests/conformance
# Real Kafka, the real ClickHouse engine, a real browser.
REAL_TIERS := tests/integration tests/systems tests/strangers tests/badinput tests/page
CODE := schemas streams agents tidemill systems tools tests benchmarks
# The first three are packages of `tidemill`, by links in that folder.
TYPED := tidemill systems tools tests benchmarks
# What is there of a list of folders: a checkout may lack some of them.
present = $(wildcard $(1))

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-16s %s\n", $$1, $$2}'

# --- the environment -------------------------------------------------------------------------------

$(PY):
	@[ -n "$(PYTHON)" ] || { echo "Tidemill needs Python 3.11 or newer, and none was found on PATH. Install one, or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Tidemill needs Python 3.11 or newer; $(PYTHON) is $$("$(PYTHON)" -V 2>&1). Name another: make PYTHON=/path/to/python3.12"; exit 1; }
	@echo "making $(VENV) with $$("$(PYTHON)" -V)"
	@"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment: on Debian and Ubuntu install python3-venv"; exit 1; }

# install-run: what the product needs. install-systems: that and the models that the systems ask.
# install-dev: that and the tools of the tests.
.PHONY: install-run install-systems install-dev
install-run: $(PY)
	@locks/install $(PY) run
install-systems: $(PY)
	@locks/install $(PY) systems
install-dev: $(PY)
	@locks/install $(PY) dev

# --- what people run -------------------------------------------------------------------------------

.PHONY: demo
demo: install-run ## The whole main job on real dialogues: Kafka, ledger, worker, ClickHouse, report
	@$(PY) -m tidemill.demo
	@$(MAKE) native-run || echo "the core stays interpreted: slower, and all else is the same"

.PHONY: demo-prompt-runs
demo-prompt-runs: install-systems ## Prompts at a real language model of this machine, on the whole engine (some 300 MB)
	@$(PY) -m systems.prompt_runs.demo

.PHONY: demo-news
demo-news: install-systems ## systems/news on real texts: feeds, vectors, questions, a model of this machine
	@$(PY) -m systems.news.demo

# With what the product needs and the compiler, without the tools of the tests.
.PHONY: native-run
native-run: install-run
	@locks/install $(PY) native
	@TIDEMILL_NATIVE=0 $(PY) -m tools.native

.PHONY: native
native: install-dev ## Compile the engine's core (mypyc, a C compiler); what runs after it uses it while it fits
	@$(MAKE) native-run

# The peers are servers as Debian and their makers build them; a Python built without profiles is a tenth slower than Debian's.
# So the quickest Python of this machine runs the benchmark, and the Python peers too, in an environment of its own.
.PHONY: bench bench-here
bench: $(PY) ## Speed against the peers, medians of three, one table
	@quickest=$$($(PY) tools/quickest_python.py $(PY) /usr/bin/python3 python3.13 python3.12 || echo $(PY)); \
		if [ "$$quickest" = "$(PY)" ]; then $(MAKE) bench-here; else \
		echo "measuring with $$quickest, the quickest Python here"; \
		$(MAKE) bench-here PYTHON="$$quickest" VENV=".cache/benchmarks/venv$${quickest//\//-}"; fi
bench-here: native
	@$(PY) -m benchmarks

.PHONY: chaos
chaos: native ## The long chaos run: 200,000 jobs, 30 kills, eight bugs put back
	@$(PY) -m tests.chaos --long

# --- checks ----------------------------------------------------------------------------------------

.PHONY: lint types unit check
lint: install-dev ## ruff: rules and format of imports
	@$(BIN)/ruff check $(call present,$(CODE))
types: install-dev ## mypy --strict over everything, tests too
	@$(BIN)/mypy --strict $(addprefix -p ,$(call present,$(TYPED)))
unit: install-dev ## Tests without a broker: unit, property, tidy, conformance, simulation
	@TIDEMILL_NATIVE=0 $(PYTEST_PAIRS) -m "not real" $(call present,$(QUICK_TIERS))
check: lint types unit ## lint, types, unit

.PHONY: debian
debian: install-dev ## Install what the tests need from Debian, where that is possible, and say what is skipped
	@$(PY) -m tests.debian chromium postgresql

# Where no Docker daemon answers, this target fails and `make test` skips them with a line.
.PHONY: test-containers
test-containers: install-dev ## Real parts over the Kafka and ClickHouse of docker-compose.yml (needs Docker)
	@$(PY) -m tests.containers --required

.PHONY: integration
integration: install-dev ## Tests on real parts: Kafka, ClickHouse, foreign clients, browser
	@$(PYTEST) $(call present,$(REAL_TIERS))

.PHONY: test
test: lint types debian native ## Everything that CI runs: check, real parts, short chaos, wheel
	@TIDEMILL_NATIVE=0 $(PYTEST_PAIRS) -m "not real" $(call present,$(QUICK_TIERS))
	@$(PYTEST_PAIRS) --durations=20 $(call present,tests/chaos $(REAL_TIERS) $(CORE_TIERS))
	@$(PY) -m tests.containers

.PHONY: docs lock clean
docs: install-dev ## Write the generated documents again
	@$(PY) -m tools.generate
lock: install-dev ## Resolve the dependencies again, for all Pythons, with hashes
	@$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-annotate --no-header --upgrade --extra dev-stack --extra systems --group install -o locks/run.txt --quiet
	@$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-annotate --no-header --upgrade --all-extras --group install -c locks/run.txt -o locks/systems.txt --quiet
	@$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-annotate --no-header --upgrade --all-extras --group dev -c locks/systems.txt -o locks/dev.txt --quiet
	@$(BIN)/uv pip compile --group pyproject.toml:native --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-annotate --no-header --upgrade -c locks/dev.txt -o locks/native.txt --quiet
clean: ## Remove .venv and everything generated by tools
	@rm -rf $(VENV) .cache/native .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
