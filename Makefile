# `make demo` and `make test` do all the set-up on a fresh machine: they need python3, make and a compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OLDEST := .venv-oldest
SEED ?= $(shell date +%s)

.PHONY: demo test test-slow fuzz test-shuffled test-oldest census hosts-page evidence-page speed-page deploy-page pictures docs notebooks gpu-evidence lint types format install clean
.DELETE_ON_ERROR:

demo: $(READY)  ## train a small ViT on real digits, make it faster, print both: accuracy, agreement, measured speed
	OMP_NUM_THREADS=1 $(BIN)/patchmerger demo

# Two processes of one thread each: on two cores, threads that wait for each other cost more than they bring.
# Each begins with a half of the files, so that what a file sets up for all its tests is mostly set up once.
# Bytecode is kept: to compile the tests anew takes each process ten seconds, and each program that they start two.
test: $(READY)  ## the tests, without those that take minutes
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(READY)  ## the tests that take minutes
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow

fuzz: $(READY)  ## bad inputs by the hundred, killed runs and full disks; FUZZ_SEED=1 FUZZ_ROUNDS=2 change which and how many
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m fuzz -s --maxfail 50 tests/fuzz

test-shuffled: $(READY)  ## the tests in a random order; SEED=1 repeats one
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --shuffle $(SEED)

# Deprecations and unclosed files there are those of old libraries beside newer ones; those of ours are errors in `make test`.
test-oldest: $(OLDEST)/.ready  ## the tests on the lowest versions that pyproject.toml allows, in .venv-oldest
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n 2 -W default::DeprecationWarning -W default::ResourceWarning

census: $(READY)  ## every model of timm, transformers and torchvision: does it take a merger? Some ten minutes
	$(BIN)/patchmerger hosts --out results/hosts.json --overwrite true
	$(MAKE) hosts-page

speed-page: $(READY)  ## docs/measured-speed.md from results/bench-*.json
	$(BIN)/python -m tools.speed_page

deploy-page: $(READY)  ## docs/deploy.md and its pictures from results/deploy-*.json
	$(BIN)/python -m tools.deploy_page

hosts-page: $(READY)  ## docs/hosts.md from results/hosts.json
	$(BIN)/python -m tools.hosts_page

evidence-page: $(READY)  ## docs/evidence.md from results/*.json
	$(BIN)/python -m tools.evidence.page

pictures: $(READY)  ## results/*.png from results/*.json
	$(BIN)/python -m tools.pictures

notebooks: $(READY)  ## docs/notebooks/*.ipynb, run again
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.notebooks

docs: $(READY)  ## the documentation site, in site/: pages, API reference, results; any warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# Where the packages are there already (a machine without a network): make gpu-evidence BIN=$$(dirname $$(which python3)) READY=
gpu-evidence: $(READY)  ## the studies that wait for a GPU, in the order of their worth; ends within 9 minutes, and resumes
	PYTHONPATH=src $(BIN)/python -m tools.gpu_queue $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(READY)  ## the environment in .venv, with the package in development mode

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

# They have wheels for Python 3.11 and 3.12: where python3 is newer, make test-oldest PYTHON=python3.11.
$(OLDEST)/.ready: pyproject.toml tests/oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --editable ".[dev]" --constraint tests/oldest.txt
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) .pytest_cache .mypy_cache .ruff_cache
