# Two commands: `make demo` runs the whole loop, `make test` passes the tests.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EVENTS ?=
COLUMNS ?=
RATE ?= 50
DATA ?=
# Demos run beside the parts' tests, a file at a time each. Tests that share an application have the machine to themselves.
BESIDE := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: help demo test check lint types format bench quality lock clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /\1: /p' Makefile

demo: $(STAMP) ## The whole loop on this machine; EVENTS=path replays a log (COLUMNS='theirs=ours ...'), FRESH=1 starts anew
	@$(BIN)/pinrec demo --rate $(RATE) $(if $(EVENTS),--events "$(EVENTS)") $(COLUMNS:%=--columns %) $(if $(FRESH),--fresh)

test: $(STAMP) ## The whole suite, real broker and real application included
	@$(BIN)/python -m pytest $(BESIDE) tests/contract tests/e2e tests/unit; beside=$$?; \
		$(BIN)/python -m pytest tests/docs tests/integration && exit $$beside

check: lint types test ## What a change must pass

lint: $(STAMP) ## ruff
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(STAMP) ## mypy, strict on the three packages
	@$(BIN)/mypy

format: $(STAMP) ## Format the code
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

bench: $(STAMP) ## The benchmarks on this machine; results as JSON and docs/performance.md
	@$(BIN)/python -m benchmarks

quality: $(STAMP) ## The quality benchmark, resumed (training speed aside), and docs/quality.md; DATA=path, LIST=1
	@$(BIN)/python -m benchmarks.quality.queue --data "$(DATA)" $(if $(LIST),--list)

lock: $(STAMP) ## Refresh requirements.lock after a change of dependencies
	@$(BIN)/uv pip compile pyproject.toml --extra dev --generate-hashes --no-header --no-annotate \
		--python-version 3.11 --quiet --output-file requirements.lock

# pip takes minutes over so many packages, uv seconds; both check every hash.
$(STAMP): requirements.lock pyproject.toml
	@echo "Installing into $(VENV) (once; about 5 GB, most of it torch)"
	@test -x "$(BIN)/python" || $(PYTHON) -m venv $(VENV)
	@"$(BIN)/python" -m pip install --quiet --disable-pip-version-check "uv>=0.8,<1"
	@"$(BIN)/uv" pip install --python "$(BIN)/python" --require-hashes --requirement requirements.lock
	@"$(BIN)/uv" pip install --python "$(BIN)/python" --quiet --no-deps --no-build-isolation --editable .
	@touch "$(STAMP)"

clean: ## Remove the state of demos; the virtual environment stays
	rm -rf .pinrec
