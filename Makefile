# Everything is set up by the first target that needs it. PYTHON may name another interpreter.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: demo test test-slow test-gpu check docs format bench clean

demo: $(STAMP)          ## the main job on a small built-in example
	$(BIN)/gradsieve demo --out runs/demo

test: $(STAMP)          ## the fast tests
	$(BIN)/python -m pytest -n 2

test-slow: $(STAMP)     ## the slow ones: many kills, larger inputs
	$(BIN)/python -m pytest -m slow

test-gpu: $(STAMP)      ## the ones that need a CUDA device
	$(BIN)/python -m pytest -m gpu

check: $(STAMP)         ## format, lint, types, import contracts, docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check
	$(MAKE) docs

docs: $(STAMP)          ## the documentation's site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python docs/generate.py

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,baselines,evaluate,docs]'
	touch $(STAMP)

clean:
	rm -rf .venv runs site build dist src/*.egg-info
