# make demo and make test are all that a newcomer needs; both install what is missing first.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# Tests run side by side, so each of them computes on one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -rfEs

.PHONY: help install demo test test-slow test-all lint format bench

help:
	@echo "make install    a virtual environment in .venv, with the tested versions"
	@echo "make demo       the whole path on synthetic users, in ./fedpa-demo"
	@echo "make test       the fast tests"
	@echo "make test-slow  the end-to-end tests"
	@echo "make test-all   every test, with as many kills and moments as there are"
	@echo "make lint       ruff, format and strict types"
	@echo "make format     format the code"
	@echo "make bench      the benchmarks of speed and memory that need no data, as JSON"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/fedpa demo

test: $(INSTALLED)
	$(PYTEST) -m "not slow"

# These mostly wait for other processes, so there are more of them side by side. Exit code 5 says that none was chosen.
test-slow: $(INSTALLED)
	$(PYTEST) -n 3 -m slow || test $$? -eq 5

test-all: $(INSTALLED)
	FEDPA_KILLS=20 $(PYTEST)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)
	$(BIN)/python benchmarks/round.py --scale 10000,100000 --json
	$(BIN)/python benchmarks/ray_driver.py --scale 10000 --json
	$(BIN)/python benchmarks/flower.py --json
	$(BIN)/python benchmarks/secagg.py --json
	$(BIN)/python benchmarks/wrap_memory.py
