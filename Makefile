# Two commands do all the set-up: `make demo` trains and shows what was learned, `make test` passes the tests.
# PyTorch is pinned by constraints.txt: a bare `torch` would pull gigabytes of CUDA onto a machine without a GPU.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench clean

demo: $(VENV)/.installed
	$(BIN)/deepres demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror

bench: $(VENV)/.installed
	$(BIN)/python bench/throughput.py

$(VENV)/.installed: pyproject.toml setup.py constraints.txt $(shell find csrc -type f)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[envs,bench]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[envs,bench,dev]'
	touch $@

clean:
	rm -rf $(VENV) build deepres/*.so *.egg-info .pytest_cache .mypy_cache .ruff_cache
