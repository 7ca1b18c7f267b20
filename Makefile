# Everything a developer or a first-time user types. It needs Python 3.10 or newer, make and, for speed, a C++ compiler.
#
#   make serve                       serve the built-in model on 127.0.0.1:8000
#   make serve ARGS="--port 9000"    with flags of 'mxext serve'
#   make test ARGS="tests/unit"      run some tests
#   make VENV=/somewhere test        use another virtual environment
#   make PYTHON=python3.12 serve     use another Python

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
BUILD_INPUTS := pyproject.toml CMakeLists.txt $(wildcard csrc/*)

# The stamps' names say whether there was a compiler, so that one installed later is used.
COMPILER := $(firstword $(shell command -v g++ c++ 2>/dev/null))
INSTALLED := $(VENV)/.installed$(if $(COMPILER),,-without-compiler)
INSTALLED_DEV := $(INSTALLED)-dev

.PHONY: serve test lint fix bench clean
.DEFAULT_GOAL := serve

serve: $(INSTALLED)
	@exec $(BIN)/mxext serve $(ARGS)

test: $(INSTALLED_DEV)
	$(BIN)/python -m pytest $(ARGS)

lint: $(INSTALLED_DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(INSTALLED_DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED_DEV)
	$(BIN)/python benchmarks/offline.py $(ARGS)

clean:
	rm -rf .venv build dist .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "error: '$(PYTHON)' is not Python 3.10 or newer; install one, or name it: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "error: no virtual environment could be made; on Debian and Ubuntu: apt-get install python3-venv" >&2; \
	  rm -f $(BIN)/python; exit 1; }

define INSTALL
	$(if $(COMPILER),,@echo "note: no C++ compiler found; the slower PyTorch path will be used" >&2)
	@echo "Installing into $(VENV); the first time this downloads PyTorch and takes minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.$(1)'
endef

$(INSTALLED): $(BUILD_INPUTS) | $(BIN)/python
	$(call INSTALL)
	@touch $@

$(INSTALLED_DEV): $(BUILD_INPUTS) | $(BIN)/python
	$(call INSTALL,[dev])
	@touch $(INSTALLED) $@
