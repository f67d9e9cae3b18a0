# `make demo` and `make test` need Python 3.11 or newer, git and make; everything is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# A user's packages in the home directory must not mix with the ones installed here.
export PYTHONNOUSERSITE := 1

.PHONY: demo demo-3d test check docs install clean

demo: $(VENV)/.installed  ## simulate a scan, train, denoise, compare: under two minutes
	$(BIN)/denoise demo --overwrite

demo-3d: $(VENV)/.installed  ## the same in 3D: under three minutes
	$(BIN)/denoise demo --mode 3d --overwrite

test: check $(VENV)/.tested  ## all checks and tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term --cov-fail-under=90

check: $(VENV)/.tested  ## style, types, layers, generated documents
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate_configuration.py --check

docs: $(VENV)/.installed  ## regenerate what is generated from the code
	$(BIN)/python docs/generate_configuration.py

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("denoise needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; run make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:  ## remove the environment; results of demos stay
	rm -rf $(VENV)
