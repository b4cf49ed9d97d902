# Everything is set up by the first target that needs it. PYTHON may name another interpreter.
PYTHON ?= python3
BIN := .venv/bin
RUNTIME := .venv/runtime
STAMP := .venv/installed
PEERS := .venv-peers
# The peers' versions that were measured. One that can't be installed is left out, with a line.
PEER_PACKAGES := traker==0.3.2 bergson==2.5.1 dattri==0.3.0

WITH_EXTRAS := -e '.[dev,baselines,evaluate,quantized,ray,docs]'
# uv takes a third of pip's time; pip takes over where uv finds no index (it doesn't read pip.conf).
define install
	$(BIN)/uv pip install -q --python $(BIN)/python --compile-bytecode -c constraints.txt $(1) || \
	$(BIN)/python -m pip install -q -c constraints.txt $(1)
endef

.PHONY: demo test test-slow test-trust test-gpu test-cluster check docs format bench bench-gpu clean

demo: $(RUNTIME)        ## the main job on a small built-in example
	$(BIN)/gradsieve demo --out runs/demo

# Workers with several threads each would wait by spinning. A worker takes a file at a time: what the
# file's tests share is made once. Bytecode is kept, whatever the environment says: each worker and
# each process that a test starts would compile for seconds.
test: $(STAMP)          ## the fast tests
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test-slow: $(STAMP)     ## the slow ones: many kills, larger inputs
	$(BIN)/python -m pytest -m slow

test-trust: $(STAMP)    ## kills, power cuts and damaged files; writes docs/reliability.md; may be stopped and resumed
	cd tests && OMP_NUM_THREADS=1 ../$(BIN)/python -m trust --jobs 2 --out ../runs/trust --page ../docs/reliability.md

test-gpu: $(STAMP)      ## the ones that need a CUDA device
	$(BIN)/python -m pytest tests/gpu -m gpu

test-cluster: $(STAMP)  ## whole runs on a Ray cluster of three nodes on this machine: kills, lost nodes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/cluster -m "cluster or not cluster"

bench: $(PEERS)/installed   ## features beside peers (about an hour), and the datastore, on this CPU
	$(PEERS)/bin/python benchmarks/features/run.py --out benchmarks/features/cpu.json
	$(PEERS)/bin/python benchmarks/store/rate.py --out runs/rate

bench-gpu: $(PEERS)/installed   ## features on a CUDA device at Llama-2-7B's shape, random weights
	-$(PEERS)/bin/python -m pip install -q --no-build-isolation fast_jl
	$(PEERS)/bin/python benchmarks/features/gpu.py --out benchmarks/features/gpu.json

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

# What the main job needs; PyTorch first, alone, since an index may have a build of it for CPUs.
$(RUNTIME): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch uv
	$(call install,-e . bm25s)
	touch $@

# What the tests and checks need too.
$(STAMP): $(RUNTIME)
	$(call install,$(WITH_EXTRAS))
	touch $@

$(PEERS)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install -q -c constraints.txt -e .
	-$(PEERS)/bin/python -m pip install -q -c constraints.txt $(PEER_PACKAGES)
	# The peers bring them for images and sound; beside a CPU's PyTorch they fail at import.
	-$(PEERS)/bin/python -m pip uninstall -q -y torchvision torchaudio
	touch $@

clean:
	rm -rf .venv $(PEERS) runs site build dist src/*.egg-info
