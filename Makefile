# A new user only needs `make train` and `make test`; both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: train figures test test-slow test-all coverage stress wheel api lint setup clean

setup: $(INSTALLED)

# Compile the package once, since many processes import it, some of which may not write bytecode.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,s3,onnx]'
	$(BIN)/python -m compileall -q dcgan_dist benchmarks tests
	touch $@

train: setup
	$(BIN)/python -m dcgan_dist.train --config configs/rooms.yaml
	$(BIN)/python -m dcgan_dist.evaluate runs/rooms --task rooms --cs 1e-4,1e-3 --baselines random
	$(BIN)/python -m dcgan_dist.report runs --output runs/report.html

# The paper's figures for the run of `make train`, and the report with them.
figures: setup
	$(BIN)/python -m dcgan_dist.explore all runs/rooms
	$(BIN)/python -m dcgan_dist.report runs --output runs/report.html

# The quick tests, for every change of the code; the others start clusters, kill processes, or repeat many times.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow'

test-slow: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

test-all: test test-slow

# Separate from the tests: counting lines takes a third to a half more time, and makes a few tests fail that measure time
# or fill a disk, hence the -. Ray ends its workers before they save their counts, so lines run there count as missed.
coverage: setup
	rm -f .coverage .coverage.*
	-$(BIN)/coverage run -m pytest -n 2 --dist loadfile
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

# Takes an hour or two: check that every process computes the same bits on a machine under load. It can be interrupted,
# and continues where it was.
stress: setup
	$(BIN)/python -m tests.stress steps --count 5000
	$(BIN)/python -m tests.stress resumes --count 60
	$(BIN)/python -m tests.stress operators --count 2000

# Remove build/ first: setuptools would pack old files there again.
wheel: setup
	rm -rf build
	$(BIN)/python -m pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation -w dist .

# Write docs/api.md and the schemas of configs/, from docstrings and types.
api: setup
	$(BIN)/python docs/make_api.py
	$(BIN)/python docs/make_schema.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) runs build dist
