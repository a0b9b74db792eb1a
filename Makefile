# Two commands do all the set-up: `make demo` trains and shows what was learned, `make test` runs the tests.
# constraints.txt pins the version of PyTorch; where pip would bring gigabytes of CUDA with it to a machine without a GPU,
# install its CPU build of that version into .venv first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint docs bench clean

demo: $(VENV)/.installed
	$(BIN)/deepres demo

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 DEEPRES_ENV_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'bench/*.cu' | xargs $(BIN)/clang-format --dry-run -Werror

docs: $(VENV)/.installed-dev
	$(BIN)/python -m sphinx -W --keep-going -n -q docs docs/_build
	@echo "docs/_build/index.html"

bench: $(VENV)/.installed
	$(BIN)/python bench/throughput.py

SOURCES := pyproject.toml setup.py constraints.txt $(shell find csrc -type f)
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable

$(VENV)/.installed: $(SOURCES)
	@test -x $(BIN)/python || echo "$(VENV): a virtual environment of $(PYTHON), some seconds"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "$(VENV): PyTorch, JAX, MuJoCo and the compiled kernels, once: 1,700 MB on disk (some GB more where PyTorch"
	@echo "comes with CUDA), 5 to 10 minutes, of which pip says nothing"
	$(INSTALL) '.[envs,bench]'
	touch $@

$(VENV)/.installed-dev: $(SOURCES)
	@test -x $(BIN)/python || echo "$(VENV): a virtual environment of $(PYTHON), some seconds"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "$(VENV): what the demo needs and the tools of the tests, once: 3,600 MB on disk (some GB more where PyTorch"
	@echo "comes with CUDA), 5 to 15 minutes, of which pip says nothing"
	$(INSTALL) '.[envs,bench,dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build docs/_build deepres/*.so *.egg-info .pytest_cache .mypy_cache .ruff_cache
