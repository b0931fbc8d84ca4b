# What one can do with a checkout. Every target sets up what it needs first; a second time that takes no time.
#
#   make demo [SECONDS=30] [HEADLESS=1] [ARGS=...]   predictions from your camera and microphone, or from the sample
#   make test [ARGS=...]                             tests that need no GPU
#
# PYTHON=... names another interpreter.

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-fleet lint types check docs bench fuzz test-gpu test-tensorrt clean

BIN := .venv/bin
# One thread a library: on a machine that is busy, threads that spin for each other make torch 20 times slower.
PYTEST = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest
NO_TENSORRT := --ignore tests/engines/tensorrt
export PYTHON

help:  ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' Makefile

demo:  ## predictions from camera and microphone, or from the built-in sample (SECONDS=30 HEADLESS=1)
	@sh scripts/setup.sh live,dashboard
	@$(BIN)/mien assets --quiet
	@$(BIN)/mien demo $(if $(SECONDS),--seconds $(SECONDS)) $(if $(filter-out 0,$(HEADLESS)),--headless) $(ARGS)

test:  ## all tests that need no GPU, but for those of test-long
	@sh scripts/setup.sh dev
	@$(BIN)/mien assets --quiet
	@# Sessions of real processes one after the other, all else in several processes: one more than there are processors, as
	@# many tests wait, and file by file as they are found, so that the last ones are short. Sessions are in tests/e2e alone:
	@# importing all other tests to leave them out takes as long as two sessions. A process that crashes is not replaced:
	@# with whole files, the run would then wait for ever instead of naming the test. Code 5: no test of that kind is chosen.
	@failed=0; \
	workers=$$($(BIN)/python -c "import os; print(min(4, 1 + (os.cpu_count() or 1)))"); \
	$(PYTEST) -m "not e2e and not gpu and not long and not fleet" -n $$workers --max-worker-restart 0 --dist loadfile --no-loadscope-reorder $(NO_TENSORRT) $(ARGS) || [ $$? = 5 ] || failed=1; \
	$(PYTEST) -m "e2e and not gpu and not long and not fleet" $(NO_TENSORRT) $(or $(ARGS),tests/e2e) || [ $$? = 5 ] || failed=1; \
	exit $$failed

test-long:  ## faults, recordings, the page in a browser: real sessions that take their time
	@sh scripts/setup.sh dev
	@$(BIN)/mien assets --quiet
	$(PYTEST) -m "long and not gpu and not fleet" $(NO_TENSORRT) $(ARGS)

test-fleet:  ## Ray with nodes that are killed, on this one machine; some minutes
	@sh scripts/setup.sh dev
	@$(BIN)/mien assets --quiet
	$(PYTEST) -m "fleet" tests/fleet $(ARGS)

lint:  ## style and formatting
	@sh scripts/setup.sh dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:  ## mypy, strict, on the packages as they are installed and on the tests
	@sh scripts/setup.sh dev
	@sh scripts/types.sh

check: lint types test test-long  ## lint, types and tests

docs:  ## the documentation as a site in build/site, strictly: broken links and names are errors
	@sh scripts/setup.sh dev
	@sh scripts/docs.sh

bench:  ## the benchmark of a paced stream on this machine (ARGS="single", "engines", ...)
	@sh scripts/setup.sh live
	@$(BIN)/mien bench $(or $(ARGS),paced)

fuzz:  ## coverage-guided fuzzing of all that reads foreign bytes, two million cases (ARGS="--target features --cases 10000")
	@sh scripts/setup.sh dev,fuzz
	$(BIN)/python -m tests.fuzz.guided $(ARGS)

test-gpu:  ## tests that need an NVIDIA GPU; visibly skipped without one
	@sh scripts/setup.sh dev
	$(PYTEST) -m gpu $(ARGS)

test-tensorrt:  ## TensorRT engines built and checked, without a GPU, in an environment of their own
	@sh scripts/setup.sh tensorrt-rtx,dev .venv-tensorrt
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE .venv-tensorrt/bin/python -m pytest tests/engines/tensorrt -m "not gpu" --timeout 900 $(ARGS)

clean:  ## remove what these targets made, environments too
	rm -rf .venv .venv-* build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src stream models engines tests examples scripts -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
