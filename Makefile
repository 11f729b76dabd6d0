# `make train` and `make test` are all that a newcomer needs; both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: train figures test lint setup clean

setup: $(INSTALLED)

# The package is compiled here once: many processes import it, also where Python is told not to write.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,s3,onnx]'
	$(BIN)/python -m compileall -q dcgan_dist tests
	touch $@

train: setup
	$(BIN)/python -m dcgan_dist.train --config configs/rooms.yaml
	$(BIN)/python -m dcgan_dist.evaluate --run runs/rooms --task rooms --cs 1e-4,1e-3 --baselines random
	$(BIN)/python -m dcgan_dist.report runs --output runs/report.html

# The paper's figures of the run that `make train` has trained, and the report with them.
figures: setup
	$(BIN)/python -m dcgan_dist.explore all --run runs/rooms
	$(BIN)/python -m dcgan_dist.report runs --output runs/report.html

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) runs build
