# Each target makes the virtual environment when it is missing.
PYTHON ?= python3
VENV ?= .venv
READY := $(VENV)/.ready

.PHONY: report full-report test lint clean

report: $(READY)  ## measure SmolLM2-135M here and write report/report.html: about four minutes
	$(VENV)/bin/sentinel report --quick

full-report: $(READY)  ## the same with more rounds, levels and sizes: 24 minutes on 2 cores
	$(VENV)/bin/sentinel report

test: $(READY)  ## run the tests
	$(VENV)/bin/python -m pytest

lint: $(READY)  ## style, types, import order
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python
	$(VENV)/bin/lint-imports

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) report .pytest_cache .ruff_cache
