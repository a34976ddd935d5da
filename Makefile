# Two commands on a fresh machine: `make train` and `make test`. Both may be run again; the environment is then reused.
PYTHON ?= python3
RECIPE ?= recipes/tiny.yaml
RANKS ?= 2
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# torchrun warns where this is not set.
export OMP_NUM_THREADS ?= 1

.PHONY: train test test-all test-gpu test-versions bench bench-gpu check docs format clean

train: $(VENV)/train.done
	$(BIN)/torchrun --nproc-per-node $(RANKS) -m bridge train $(RECIPE) $(ARGS)

# About ten minutes on two cores.
test: $(VENV)/test.done
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=30 $(ARGS)

# Everything: see tests/conftest.py.
test-all: $(VENV)/test.done
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=30 --all $(ARGS)

# The oldest and the newest versions that resolve, in environments of their own under build/versions (some GB).
test-versions:
	$(PYTHON) -m tests.versions $(ARGS)

# Skipped with a reason where there is no GPU.
test-gpu: $(VENV)/test.done
	$(BIN)/python -m pytest -m gpu $(ARGS)

# Figures go to build/bench.json and build/bench_gpu.json.
bench: $(VENV)/train.done
	$(BIN)/python -m benchmarks $(ARGS)

bench-gpu: $(VENV)/train.done
	$(BIN)/python -m benchmarks gpu --json build/bench_gpu.json $(ARGS)

check: $(VENV)/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation as a site, in build/site.
docs: $(VENV)/test.done
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

format: $(VENV)/test.done
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone, so that pip takes the build its own settings point to (CUDA or CPU) and keeps it.
$(VENV)/train.done: setup.py constraints.txt | $(BIN)/python
	@echo "Installing torch and megatron-core into $(VENV), once; this takes a minute or a few ..."
	$(PIP) torch
	$(PIP) -e '.[train]'
	@touch $@

# Megatron-Bridge depends on packages that need a GPU to build; its training loop runs without them. Its tests skip where it is missing.
$(VENV)/test.done: $(VENV)/train.done
	@echo "Installing what the tests need into $(VENV), once ..."
	$(PIP) -e '.[train,test,docs,explorer,dashboard,tensorboard,mlflow]'
	-$(PIP) --no-deps megatron-bridge
	@touch $@
