# make demo: sets everything up and runs a whole small study on real images
# make test: sets everything up and runs lint, types, the documentation's build and tests
# make faults: kills, full disks and flipped bits at length
# make docs: builds the documentation into site/; a warning is an error
# PYTHON chooses the interpreter (3.11 or newer) that makes .venv

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test faults lint docs clean

demo: $(VENV)/.installed
	@$(RUN) run.py --config configs/quickstart.py

test: $(VENV)/.installed-dev lint docs
	$(RUN) -m pytest --numprocesses 2 --dist loadfile

faults: $(VENV)/.installed-dev
	$(RUN) -m pytest tests/faults -m "slow or not slow" --numprocesses 2 --dist loadfile

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lthjax needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed pyproject.toml
	$(RUN) -m pip install --quiet --editable '.[dev,docs]'
	@touch $@

clean:
	rm -rf $(VENV)
