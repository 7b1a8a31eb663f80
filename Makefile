# `make demo` forgets the tracks of examples/opt-out.txt in the embedded model and evaluates the result;
# `make test` runs all tests of Encore, `make plugins` those of the plugins beside it. All build the environment in .venv
# first, and again when what it is made of changes. `make docs` builds the documentation into site/, in .venv-docs.

# What Python compiles is kept, whatever the environment says: a process that compiles torch again takes twice as long to
# start.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
BIN := .venv/bin
TORCH := $(shell grep '^torch==' constraints.txt)
PLUGINS := example audiocraft diffusers

.PHONY: demo test tests lint docs plugins wheel clean $(PLUGINS:%=plugin-%)

demo: .venv/.stamp
	rm -rf runs/demo
	$(BIN)/encore forget --tracks examples/opt-out.txt --out runs/demo || [ $$? -eq 4 ] # 4: a target missed, see below
	$(BIN)/encore eval runs/demo

test: lint tests

tests: .venv/.stamp
	$(BIN)/python -m pytest -m "slow or not slow" $(ARGS)

lint: .venv/.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch comes first and alone: the extension is built against the one that will run, and nothing else picks another.
# pip compiles nothing: Python compiles what is imported when it first is, a small part. (Where a package warns at that, the
# first test that imports it fails: compile it here.)
.venv/.stamp: pyproject.toml constraints.txt setup.py $(wildcard csrc/*.cpp csrc/*.h csrc/*/*)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --no-compile $(TORCH)
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt setuptools wheel ninja
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt --no-build-isolation -e '.[dev]'
	$(BIN)/python -m compileall -q src # as installing a wheel does; an editable install leaves it to the first import
	touch $@

# A broken link, an unknown anchor or a page that is in no menu is an error.
docs: .venv-docs/.stamp
	.venv-docs/bin/mkdocs build --strict

# The pages need no torch: the API is read from the sources, and a test keeps the generated tables as they should be.
.venv-docs/.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project'] \
		['optional-dependencies']['docs'], sep='\n')" >.venv-docs/requirements.txt
	.venv-docs/bin/python -m pip install -q -c constraints.txt -r .venv-docs/requirements.txt
	touch $@

# Every plugin in a fresh environment of its own, beside a wheel of Encore, with all of its tests. What Encore requires, and
# nothing else of .venv, is linked into it, and pip adds the rest: unpacking torch for each would take longer than its tests.
# What pip could not resolve beside it (audiocraft pins versions of years ago) stands in its without-dependencies.txt.
plugins: $(PLUGINS:%=plugin-%)

$(PLUGINS:%=plugin-%): plugin-%: wheel
	rm -rf plugins/encore-$*/.venv
	$(PYTHON) -m venv --without-pip plugins/encore-$*/.venv
	$(BIN)/python tools/link_packages.py plugins/encore-$*/.venv encore-music
	$(PLUGIN_PIP) -c constraints.txt setuptools wheel
	$(PLUGIN_PIP) -c constraints.txt --no-build-isolation dist/plugins/*.whl -e 'plugins/encore-$*[dev]'
	$(if $(wildcard plugins/encore-$*/without-dependencies.txt),$(PLUGIN_PIP) --no-deps --no-build-isolation \
		-r plugins/encore-$*/without-dependencies.txt)
	cd plugins/encore-$* && .venv/bin/python -m pytest -m "" # all: an example of a plugin has no slow ones

wheel: .venv/.stamp
	rm -rf build dist/plugins
	$(BIN)/python -m pip wheel -q --no-deps --no-build-isolation -w dist/plugins .

# The first environment's pip installs into the others, which need none of their own.
PLUGIN_PIP = $(BIN)/python -m pip --python plugins/encore-$*/.venv/bin/python install -q

clean:
	rm -rf build dist runs site .venv .venv-docs plugins/*/.venv .pytest_cache .mypy_cache .ruff_cache
