# Everything runs in .venv, made on first use from constraints.txt. Needs Python 3.11 or newer and make; nothing else.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ARGS   ?=
JOBS   ?= 2
# Tests share the machine's cores among processes; more threads in each only get in each other's way. Every process
# that they start imports the same code: compiled once, whatever the shell says of that.
TESTENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false PYTHONDONTWRITEBYTECODE=

.PHONY: serve test test-fast check format proto bench gpu-test install clean help

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

serve: $(STAMP) ## Serve the built-in model: HTTP on 8000, gRPC on 8001 (ARGS="--model ... --port ...")
	@exec $(BIN)/baton serve $(ARGS)

# Files as a whole, in their order: xdist's own puts those with few tests last, which are the long ones.
SHARED := -n $(JOBS) --max-worker-restart 0
FILES  := $(SHARED) --dist loadfile --no-loadscope-reorder
FAST   := -q -m "not slow and not gpu" --ignore tests/e2e --ignore tests/gpu $(FILES)
SLOW   := -q -m "slow and not gpu"
LONG   := tests/contract tests/property tests/unit

# What failed is shown and gets one more run, alone, which it must pass: a busy machine makes real sockets late.
AGAIN := --last-failed --last-failed-no-failures none

test: $(STAMP) ## All tests that need no GPU
	$(TESTENV) $(BIN)/python -m pytest $(FAST) $(ARGS) \
	  || $(TESTENV) $(BIN)/python -m pytest -q -m "not slow and not gpu" $(AGAIN) $(ARGS)
	$(TESTENV) $(BIN)/python -m pytest $(SLOW) $(SHARED) --maxschedchunk 1 $(ARGS) $(LONG) \
	  || $(TESTENV) $(BIN)/python -m pytest $(SLOW) $(AGAIN) $(ARGS) $(LONG)
	$(TESTENV) $(BIN)/python -m pytest $(SLOW) $(FILES) --durations=10 $(ARGS) tests/e2e \
	  || $(TESTENV) $(BIN)/python -m pytest $(SLOW) $(AGAIN) $(ARGS) tests/e2e

test-fast: $(STAMP) ## The tests without real processes, in minutes
	$(TESTENV) $(BIN)/python -m pytest $(FAST) $(ARGS)

check: $(STAMP) ## Format, lint, types, import directions, size limits, generated stubs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/unit/test_size_limits.py tests/unit/test_generated_stubs.py

format: $(STAMP) ## Format and apply safe lint fixes
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

proto: $(STAMP) ## Regenerate engine/wire from proto/
	$(BIN)/python tools/generate_stubs.py engine/wire

bench: $(STAMP) ## The benchmarks that a CPU can run, one JSON line each
	$(BIN)/python -m bench.prefix_tree --json
	$(BIN)/python -m bench.engine --device cpu --json
	$(BIN)/python -m bench.rag --json

gpu-test: $(STAMP) ## The tests that need a CUDA device
	$(BIN)/python -m pytest -q -m gpu tests/gpu $(ARGS)

install: $(STAMP) ## Only make the environment

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Baton needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "Python cannot make virtual environments here; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing pinned packages into $(VENV) (torch is the large one: about 200 MB without CUDA) ..."
	$(BIN)/python -m pip install --progress-bar on -c constraints.txt setuptools
	$(BIN)/python -m pip install --progress-bar on --no-build-isolation -c constraints.txt -e '.[dev,nixl]'
	@touch $@

clean: ## Remove the environment and every cache
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
