# One place for every command. Each target first makes .venv as requirements.lock says, once.
# Needs Python 3.11 to 3.13 and make; `make test` also uses Java 17 and Maven where they exist.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
UV_VERSION := 0.13.8
LOCK = $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for each in python3 python3.13 python3.12 python3.11; do \
	$$each -c '$(FITS)' >/dev/null 2>&1 && { echo $$each; break; }; done)

.PHONY: help setup demo kafka test chaos pictures check audit fmt bench docs dashboards lock ci clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(INSTALLED)  ## make .venv with the pinned dependencies and tapewatch itself

demo: $(INSTALLED)  ## watch a synthetic market through an embedded broker, end to end
	$(BIN)/tapewatch demo

test: $(INSTALLED)  ## run the tests, against a real Kafka where Java 17 and Maven exist
	$(BIN)/python -m tests.suite $(PYTEST_ARGS)

kafka: $(INSTALLED)  ## a Kafka to try things with, on localhost:9092 until ctrl-C; needs Java 17 and Maven
	$(BIN)/python -m tests.kafka_broker

chaos: $(INSTALLED)  ## the fault tests in their long form, two hours; ends with a table
	$(BIN)/python -m tests.faults.chaos --long $(CHAOS_ARGS)

check: $(INSTALLED)  ## format, lint, strict types, import rules
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

# The tools have an environment of their own: what is audited must not hold the auditor.
AUDIT := .cache/audit
audit: check $(AUDIT)/.installed  ## check, known vulnerabilities of the pins, bill of materials
	@mkdir -p build
	$(AUDIT)/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
		--output-format JSON --output-file build/sbom.cdx.json requirements.lock
	@echo "build/sbom.cdx.json: written"
	@$(AUDIT)/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements.lock || { \
		echo "make audit: failed: pip-audit found a vulnerable pin, or could not look every pin up;" \
		"what it said stands above" >&2; exit 1; }

$(AUDIT)/.installed: requirements-audit.lock $(INSTALLED)
	$(BIN)/python -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --require-hashes -r requirements-audit.lock
	@touch $@

fmt: $(INSTALLED)  ## put the code into format and mend what the linter can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: $(INSTALLED)  ## measure against ceilings of the same run; writes a table and JSON
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

docs: $(INSTALLED)  ## write the documents that are generated from definitions
	$(BIN)/python -m detector.documents

pictures: $(INSTALLED)  ## draw docs/pictures/terminal.svg from a run of the demo
	$(BIN)/python -m training.demo.picture docs/pictures/terminal.svg

dashboards: $(INSTALLED)  ## write Grafana's dashboards from their code in deploy/grafana/boards
	$(BIN)/python -m deploy.grafana.boards

lock: $(INSTALLED)  ## pin what pyproject.toml asks for, with hashes
	$(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	$(LOCK) pyproject.toml --extra dev -o requirements.lock
	$(LOCK) pyproject.toml -c requirements.lock -o deploy/requirements/cpu.lock
	$(LOCK) pyproject.toml --extra gpu -c requirements.lock -o deploy/requirements/gpu.lock
	echo hatchling | $(LOCK) - -c requirements.lock -o deploy/requirements/build.lock
	$(LOCK) requirements-audit.in -o requirements-audit.lock

ci:  ## exactly what CI runs
	.ci/run

clean:  ## remove build outputs and caches; .venv and the fetched Kafka stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The stamp is written last: an interrupted installation is done again.
$(INSTALLED): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: tapewatch needs Python 3.11, 3.12 or 3.13; none was found" \
		"(name one with: make $(MAKECMDGOALS) PYTHON=/path/to/python3)" >&2; exit 1; }
	@$(PYTHON) -c '$(FITS)' || { echo "make: $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
		"tapewatch needs Python 3.11, 3.12 or 3.13" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "make: $(PYTHON) cannot make virtual environments: its venv module is not complete." \
		"On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Setting up $(VENV): once, a few minutes, about 3 GB."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
