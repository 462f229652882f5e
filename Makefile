# The environment and the extension are made when a target first needs them, and again when what they are made from has changed.
VENV := .venv
PYTHON := $(VENV)/bin/python
CPP := $(wildcard csrc/*.cpp csrc/*.h csrc/kernels/*.h csrc/kernels/*/*.h)
CPP_OF_TESTS := $(wildcard tests/engines/cells/*.h)

.PHONY: help build train study docs test test-levels test-aarch64 test-clang wheel wheel-aarch64 reproduce sanitize lint format bench bench-cells aot clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

build: $(VENV)/built ## the environment and the extension, nothing else

train: $(VENV)/extension ## train a fused LSTM classifier on SST-2 (ARGS="..." adds options)
	$(VENV)/bin/sstkern train $(ARGS)

study: $(VENV)/built ## answer the problems of the SST-2 assignment and write the report (ARGS="--quick", ...)
	$(VENV)/bin/sstkern study $(ARGS)

docs: $(VENV)/built ## build the documentation's site into site/
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

# As many processes as there are cores, four at most: each may take 2 GB. One that has no tests left takes half of another's. Tests that
# need threads ask for them.
test: $(VENV)/built ## the whole test suite (ARGS="..." adds pytest options)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal $(ARGS)

test-levels: $(VENV)/built ## the numerical tests, once for each lower instruction set (ARGS="--quick" for a minute's part)
	$(PYTHON) tests/levels.py $(ARGS)

test-aarch64: $(VENV)/built ## the C++ engine compiled for aarch64 and run under qemu (ARGS="..." adds pytest options)
	$(PYTHON) tests/aarch64.py $(ARGS)

test-clang: $(VENV)/built ## the C++ engine compiled with clang, without OpenMP, and its kernels for macOS and Windows (ARGS="..." as above)
	$(PYTHON) tests/clang.py $(ARGS)

wheel: ## dist/: the source distribution and a wheel for this platform, made in an environment of their own and tested
	python3 tools/wheel.py

wheel-aarch64: $(VENV)/built ## the wheel for aarch64, cross-compiled and tried under qemu
	$(PYTHON) tools/wheel_aarch64.py

reproduce: $(VENV)/built ## build the last commit's wheel in two folders, and compare the bytes
	$(PYTHON) tools/reproduce.py

sanitize: $(VENV)/built ## the engine under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer (ARGS="--sanitizer thread" for one)
	$(PYTHON) tests/sanitize.py $(ARGS)

lint: $(VENV)/built ## check style of Python and C++, and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(CPP) $(CPP_OF_TESTS)

format: $(VENV)/built ## rewrite Python and C++ in that style
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CPP) $(CPP_OF_TESTS)

bench: $(VENV)/built ## time our layers beside other engines (ARGS="--growth", ...)
	$(VENV)/bin/sstkern bench $(ARGS)

bench-cells: $(VENV)/built ## time the cells whose figures are published (ARGS="--output benchmarks/results/MACHINE", ...)
	$(PYTHON) benchmarks/published_cells.py $(ARGS)

aot: $(VENV)/built ## compile the GPU kernels for every target and check them (ARGS="--target sm_90" for one)
	$(VENV)/bin/sstkern aot-report $(ARGS)
	$(VENV)/bin/sstkern aot-report --target sm_90 --cell sstkern.cells --cell torchrecurrent

clean: ## remove the environment and everything built
	rm -rf $(VENV) build dist *.egg-info sstkern/*.so sstkern/_build_info.json

# As a path (compat): otherwise a folder named sstkern beside a script, as a clone's, is taken for the package.
# Modules are compiled when they are imported: most of PyTorch's never are. Triton has 1 GB; a PyTorch that uses GPUs asks for it itself.
$(VENV)/trains: requirements-train.txt setup.py pyproject.toml
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --no-compile --requirement requirements-train.txt
	SSTKERN_NO_EXTENSION=1 $(PYTHON) -m pip install --quiet --no-build-isolation --no-deps --config-settings editable_mode=compat --editable .
	touch $@

$(VENV)/installed: $(VENV)/trains requirements.txt
	$(PYTHON) -m pip install --quiet --requirement requirements.txt
	touch $@

# The folder: a header that is gone is a change too.
$(VENV)/extension: $(VENV)/trains tools/extension.py $(CPP) csrc/kernels/cells
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PYTHON) tools/extension.py
	touch $@

$(VENV)/built: $(VENV)/installed $(VENV)/extension
	touch $@
