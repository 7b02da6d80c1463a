# make demo   the app on the demo recipe (without a terminal: the whole run and its report)
# make test   the tests, three files at a time, as a test that waits leaves its core to another
# make faults every fault instead of a quick subset of them: kills, full disks, limits; counts what was lost
# make check  linters, types and import contracts
# make gpu    the tests that need an NVIDIA GPU
# make messages  the texts of the code into the catalogues of every language, and those compiled

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# A Python that was named may bring a torch of its own, as rented images do.
SYSTEM := $(if $(filter file,$(origin PYTHON)),,--system)

# Every process that the tests start would compile tuitune anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test faults check gpu messages
demo: $(VENV)/installed
	@$(BIN)/tuitune demo

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m "not gpu" -n 3 --dist loadfile --no-loadscope-reorder

faults: $(VENV)/installed-dev
	$(BIN)/python -m pytest -p tests.faults.totals --sweep -n 2 --dist loadfile --no-loadscope-reorder tests/faults
	$(BIN)/python -m pytest -p tests.faults.totals --add -m "fault and not gpu" -n 2 --dist loadfile --ignore tests/faults

gpu: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m gpu

messages: $(VENV)/installed-dev
	$(BIN)/python messages.py

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tuitune needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	@$(PYTHON) install.py --venv $(VENV) $(SYSTEM)
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@$(BIN)/python -m pip install --quiet --constraint $(firstword $(wildcard $(VENV)/constraints.txt) constraints.txt) --group dev
	@touch $@
