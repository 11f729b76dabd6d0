# `make train` and `make test` are all that a newcomer needs; both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: train figures test test-slow test-all coverage stress wheel api lint setup clean

setup: $(INSTALLED)

# The package is compiled here once: many processes import it, also where Python is told not to write.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,s3,onnx]'
	$(BIN)/python -m compileall -q dcgan_dist benchmarks tests
	touch $@

train: setup
	$(BIN)/python -m dcgan_dist.train --config configs/rooms.yaml
	$(BIN)/python -m dcgan_dist.evaluate runs/rooms --task rooms --cs 1e-4,1e-3 --baselines random
	$(BIN)/python -m dcgan_dist.report runs --output runs/report.html

# The paper's figures of the run that `make train` has trained, and the report with them.
figures: setup
	$(BIN)/python -m dcgan_dist.explore all runs/rooms
	$(BIN)/python -m dcgan_dist.report runs --output runs/report.html

# What a person who changes the code wants to know at once; the rest starts clusters, kills processes, or repeats.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow'

test-slow: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

test-all: test test-slow

# Apart from the tests: counting lines takes a third to a half as much time again, and makes a few tests fail that measure
# time or fill a disk, hence the -. Ray ends its workers before they save what they counted: it counts as missed.
coverage: setup
	rm -f .coverage .coverage.*
	-$(BIN)/coverage run -m pytest -n 2 --dist loadfile
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

# An hour or two: the same bits in every process, on a machine whose cores are taken. Goes on where it was.
stress: setup
	$(BIN)/python -m tests.stress steps --count 5000
	$(BIN)/python -m tests.stress resumes --count 60
	$(BIN)/python -m tests.stress operators --count 2000

# Without what an earlier one left in build/, which setuptools would pack again.
wheel: setup
	rm -rf build
	$(BIN)/python -m pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation -w dist .

# The page of the Python API, and the schemas of configs, from docstrings and types.
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
