# make setup · check · test · demo · bench · protos. Every target sets up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := smile services tools demo deploy benchmarks tests

.PHONY: setup protos format check test test-fast demo bench bench-quick clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

# Regenerate smile/v1 from protos/.
protos: setup
	$(BIN)/python tools/protos.py generate

format: setup
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

# Static gates: format, lint, types, import contracts, generated-code drift, tidy.
check: setup
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy $(SOURCES)
	$(BIN)/lint-imports
	$(BIN)/python tools/protos.py check
	$(BIN)/python tools/sync_client.py check
	$(BIN)/pytest -q tests/test_tidy.py

# Everything there is.
test: setup
	$(BIN)/pytest -q tests

# Unit tests only: no sockets, no sleeps.
test-fast: setup
	$(BIN)/pytest -q tests/unit

# Three tenants create, train and use their own models on BBC news text. Leaves nothing running.
demo: setup
	$(BIN)/python -m demo

# Measure every claim and record it, then write benchmarks/REPORT.md. Wants an idle machine.
bench: setup
	$(BIN)/python -m benchmarks.all --record
	$(BIN)/python -m benchmarks.report

# The same in a few minutes each; nothing is recorded.
bench-quick: setup
	$(BIN)/python -m benchmarks.all --quick

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist
