# make demo: sets everything up and runs a whole small study on real images
# make test: sets everything up and runs lint, types and the tests that are quick
# make test-all: the same with the tests marked slow and the documentation's build; the files of COMPILED
#   (tests/conftest.py) come first, compiled as users compile, and all others then as in make test
# make ci: that without the tests marked lengthy, in less than half an hour of two cores; its examples are fixed
# make quick: lint and the tests of single functions, while you work
# make faults: kills, full disks and flipped bits at length, compiled as users compile
# make docs: builds the documentation into site/; a warning is an error
# make lock: writes requirements.lock, the exact versions that pip chooses today
# make owner OWNER=name: writes who hosts the repository into README.md and the notebooks
# PYTHON chooses the interpreter (3.11 or newer) that makes .venv

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

PYTEST := $(RUN) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
# A worker's rewritten tests and the package's bytecode serve all later ones.
export PYTHONDONTWRITEBYTECODE :=
# Lint and documentation side by side.
MAKEFLAGS += --jobs=2

.PHONY: demo test test-all ci quick faults lint docs lock owner clean

demo: $(VENV)/.installed
	@$(RUN) run.py --config configs/quickstart.py

test: $(VENV)/.installed-dev lint
	$(PYTEST)

test-all: $(VENV)/.installed-dev lint docs
	$(PYTEST) --as-users -m "compiled and not faults"
	$(PYTEST) -m "not compiled and not faults"

ci: $(VENV)/.installed-dev lint docs
	$(PYTEST) --as-users --hypothesis-profile=ci -m "compiled and not faults and not lengthy"
	$(PYTEST) --hypothesis-profile=ci -m "not compiled and not faults and not lengthy"

quick: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(PYTEST) -m "not slow and not faults and not study"

faults: $(VENV)/.installed-dev
	$(PYTEST) --as-users -m "" tests/faults

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet

lock: $(VENV)/.installed
	$(RUN) -m pip install --quiet --dry-run --ignore-installed --report .lock.json '.[lab]'
	$(RUN) -c 'import json; print(*sorted("{name}=={version}".format(**i["metadata"]) for i in json.load(open(".lock.json"))["install"] if i["metadata"]["name"] != "lthjax"), sep="\n")' > requirements.lock
	@rm .lock.json

owner:
	@test -n "$(OWNER)" || { echo "name who hosts the repository: make owner OWNER=name"; exit 2; }
	sed -i.before -E 's#(github\.com/)[^/]+(/lthjax)#\1$(OWNER)\2#' README.md notebooks/*.ipynb
	@rm README.md.before notebooks/*.before

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lthjax needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --editable '.[lab]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed pyproject.toml
	$(RUN) -m pip install --quiet --editable '.[dev,docs]'
	@touch $@

clean:
	rm -rf $(VENV)
