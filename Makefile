# `make demo` forgets the tracks of examples/opt-out.txt in the embedded model and evaluates the result;
# `make test` runs what CI runs. Both build the environment in .venv first, and again when what it is made of changes.

PYTHON ?= python3
BIN := .venv/bin
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: demo test lint clean

demo: .venv/.stamp
	rm -rf runs/demo
	$(BIN)/encore forget --tracks examples/opt-out.txt --out runs/demo
	$(BIN)/encore eval runs/demo

test: lint
	$(BIN)/python -m pytest -m "slow or not slow"

lint: .venv/.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch comes first and alone: the extension is built against the one that will run, and nothing else picks another.
.venv/.stamp: pyproject.toml constraints.txt setup.py $(wildcard csrc/*.cpp csrc/*.h csrc/*/*)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q $(TORCH)
	$(BIN)/python -m pip install -q -c constraints.txt setuptools wheel ninja
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[dev]'
	$(BIN)/python -m compileall -q src # as installing a wheel does; an editable install leaves it to the first import
	touch $@

clean:
	rm -rf build dist runs .venv .pytest_cache .mypy_cache .ruff_cache
