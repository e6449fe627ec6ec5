# make demo and make test need nothing but Python >= 3.11: each makes .venv and installs into it what is missing.
# All paths are relative, so that a checkout may lie in a folder with spaces in its name.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Two tests at a time, each on one thread: on two cores that is twice as fast as one test on two threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
QUICK := not slow and not gpu and not endurance

.PHONY: help demo test check quick endurance bench clean
.NOTPARALLEL:

help:
	@echo "make demo       from preferences to a better model, in minutes"
	@echo "make test       all tests but the endurance tests"
	@echo "make check      ruff, mypy and the quick tests"
	@echo "make quick      the quick tests"
	@echo "make endurance  the tests that run for long"
	@echo "make bench      speed of training on this machine"
	@echo "make clean      remove build results and caches (keeps $(VENV) and outputs)"
	@echo "PYTHON=python3.12 chooses the Python of $(VENV)"

demo: $(VENV)/.installed-all
	$(BIN)/diffalign demo

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not endurance"

check: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(PYTEST) -m "$(QUICK)"

quick: $(VENV)/.installed-dev
	$(PYTEST) -m "$(QUICK)"

endurance: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m endurance

bench: $(VENV)/.installed-all
	$(BIN)/diffalign bench train

# The stamps are written last, so an installation that was cut short is made again.
$(VENV)/.installed-all: pyproject.toml | $(BIN)/python
	$(PIP) install -e ".[all]"
	@touch $@

# What the developers' set holds includes what users need.
$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(PIP) install -e ".[all,dev]"
	@touch $(VENV)/.installed-all $@

$(BIN)/python:
	@"$(PYTHON)" -c "import sys; sys.exit(sys.version_info < (3, 11))" || { \
		echo "diffalign needs Python 3.11 or newer, and '$(PYTHON)' is not: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
		exit 1; }
	@"$(PYTHON)" -m venv $(VENV) || { \
		rm -rf $(VENV); \
		echo "'$(PYTHON)' could not make $(VENV); on Debian and Ubuntu the package python3-venv is needed" >&2; \
		exit 1; }

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find diffalign scorers training tests -name __pycache__ -type d -prune -exec rm -rf {} +
