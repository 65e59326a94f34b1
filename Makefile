# make demo | test | test-all | lint | format | bench | build | clean.  Each sets up what it needs, once.
# All that must be there already: Python >= 3.11 and g++ (>= 12); nvcc is used when found.

PYTHON ?= python3
JOBS   ?= 2
BIN    := .venv/bin
PIP    := $(BIN)/pip install --quiet -c constraints.txt
PYTEST  = OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile
LOCK   := $(if $(shell command -v flock),flock .venv/lock)

NATIVE      := CMakeLists.txt $(wildcard cmake/*.cmake) $(shell find csrc ! -name '*.md' ! -name '.*')
CXX_SOURCES  = $(shell find csrc tests -name '*.cpp' -o -name '*.hpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test test-all lint format bench build clean

demo: .venv/built             # watch hyper-representation learn few-shot classification, on embedded data
	$(BIN)/pybilevel fewshot

test: .venv/built             # every fast test
	$(PYTEST) -m "not slow"

test-all: .venv/built         # the slow ones too
	$(PYTEST)

lint: .venv/built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

format: .venv/built
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

bench: .venv/built            # the workloads against their peers, which are installed first
	$(PIP) --no-build-isolation -e '.[bench]'
	$(BIN)/python -m benchmarks

build: .venv/built            # compile what changed and install (editable)

clean:                        # forget every build; the environment stays (rm -r .venv for that too)
	rm -rf build dist .venv/built

# Stamps. ready: a virtual environment with torch and the build tools. built: pybilevel compiled and installed there.
.venv/ready: constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and f"pybilevel needs Python 3.11 or later, and $(PYTHON) is {v}: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@echo "installing torch and the build tools into .venv (once, some minutes)"
	@$(PIP) torch numpy scikit-build-core pybind11 cmake ninja
	@touch $@

.venv/built: .venv/ready pyproject.toml $(NATIVE)
	@echo "building pybilevel"
	@$(LOCK) env CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) $(PIP) --no-build-isolation -e '.[test,dev]'
	@touch $@
