# Fairlane from nothing but python3 and make. `make` alone says what there is.

VENV := .venv
BIN := $(VENV)/bin
# The first of these that is new enough makes the environment; `make PYTHON=/path/to/python3` names another.
PYTHON = python3 python3.13 python3.12 python3.11
NEW_ENOUGH = import sys; sys.exit(sys.version_info < (3, 11))

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test coverage pytest-gateway pytest-others test-vllm mutants lock diagram format clean

help: ## this list
	@echo 'Usage: make TARGET [ARGS="..."]'
	@sed -n 's/^\([a-z-]*\):.*## */  \1	/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

venv: $(VENV)/installed ## install Fairlane and its tools, as locked, into .venv
	@echo '$(BIN)/fairlane is ready'

demo: $(VENV)/installed ## run the demonstration; ARGS go to `fairlane demo`
	@$(BIN)/fairlane demo $(ARGS)

test: $(VENV)/installed ## format, lint, types, then the tests
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	@$(MAKE) --no-print-directory -j2 --output-sync=target pytest-gateway pytest-others

coverage: $(VENV)/installed ## the tests with their coverage (8 minutes)
	@$(BIN)/coverage erase
	@$(MAKE) --no-print-directory -j2 --output-sync=target pytest-gateway pytest-others \
	    PYTHON_RUNS="$(BIN)/coverage run --parallel-mode"
	@$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Two processes side by side that take about as long: any machine has two cores.
PYTHON_RUNS = $(BIN)/python
pytest-gateway: $(VENV)/installed
	$(PYTHON_RUNS) -m pytest tests/gateway tests/loadtest/runs

pytest-others: $(VENV)/installed
	$(PYTHON_RUNS) -m pytest tests --ignore=tests/gateway --ignore=tests/loadtest/runs --ignore=tests/vllm

test-vllm: $(VENV)/installed ## the tests against a real vLLM, installed into .venv-vllm (slow, large)
	bash tests/vllm/install.sh .venv-vllm
	FAIRLANE_VLLM_PYTHON="$(CURDIR)/.venv-vllm/bin/python" $(BIN)/python -m pytest -rP tests/vllm

mutants: $(VENV)/installed ## do the tests notice each mistake in tests/mutants? ARGS names some of them (8 minutes)
	$(BIN)/python tests/mutants/run.py $(ARGS)

# The build backend is locked with the rest, so that an install builds with nothing unlocked. The environment that
# this needs is an empty one: a lock that no longer installs can still be replaced.
lock: $(VENV)/made ## write requirements.lock anew from pyproject.toml; ARGS=--upgrade takes newer releases too
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	printf '%s\n' 'hatchling>=1.27' editables uv | $(BIN)/uv pip compile pyproject.toml - --group dev --universal \
	    --python-version 3.11 --generate-hashes --custom-compile-command 'make lock' --quiet \
	    --output-file requirements.lock $(ARGS)

diagram: $(VENV)/installed ## draw the life of a job into docs/architecture.md, from the table of transitions
	$(BIN)/python tests/support/state_diagram.py

format: $(VENV)/installed ## fix what ruff can fix, and format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove what these targets made: .venv, .venv-vllm, caches, builds
	rm -rf $(VENV) .venv-vllm dist build .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Wheels only: a source distribution would fetch a build backend that no lock pins. `pip check` finds a lock
# that pyproject.toml has outgrown.
$(VENV)/installed: $(VENV)/made requirements.lock pyproject.toml
	@echo 'Installing what requirements.lock pins into $(VENV) ...'
	@$(BIN)/python -m pip install --quiet --require-hashes --only-binary :all: --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m pip check >$(VENV)/check || { \
	    cat $(VENV)/check; echo 'Is requirements.lock out of date? Try: make lock'; exit 1; } >&2
	@touch $@

# The empty environment. One that works is kept; anything half made is replaced or removed.
$(VENV)/made:
	@if ! $(BIN)/python -c 'import pip; $(NEW_ENOUGH)' 2>/dev/null; then \
	    for python in $(PYTHON) ''; do \
	        "$$python" -c '$(NEW_ENOUGH)' 2>/dev/null && break; \
	    done; \
	    if [ -z "$$python" ]; then \
	        echo 'Fairlane needs Python 3.11 or newer, and none of these is: $(PYTHON)'; \
	        echo 'Install one, on Debian or Ubuntu with: sudo apt install python3 python3-venv'; \
	        echo '(where that python3 is older: sudo apt install python3.11 python3.11-venv)'; \
	        exit 1; \
	    fi >&2; \
	    if ! said=$$("$$python" -m venv --clear $(VENV) 2>&1); then \
	        rm -rf $(VENV); \
	        case $$said in \
	        *ensurepip* | *'No module named venv'*) \
	            echo "$$python cannot make a virtual environment: a package is missing."; \
	            echo "Install it, on Debian or Ubuntu with: sudo apt install $${python##*/}-venv";; \
	        *) echo "$$said";; \
	        esac; \
	        exit 1; \
	    fi >&2; \
	fi
	@touch $@
