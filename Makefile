# Two commands do all set-up: `make quickstart` and `make test`.
PYTHON ?= $(shell command -v python3.12 >/dev/null 2>&1 && python3.12 -c '' 2>/dev/null && echo python3.12 || echo python3.11)
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed

.PHONY: quickstart test fast long fuzz gpu check slurm clean

quickstart: $(READY)  ## environment, embedded data set, pretraining on images and on images with names, table, picture
	$(BIN)/viewshards pack builtin:emoji runs/data/emoji
	$(BIN)/manyviews fit --config experiments/quickstart.yaml --run runs/quickstart
	$(BIN)/manyviews fit --config experiments/clip/emoji.yaml --run runs/quickstart-text
	$(BIN)/manyviews report --run runs/quickstart --texts runs/quickstart-text --bank experiments/clip/emoji-groups.json

test: $(READY)  ## the whole suite
	$(BIN)/python -m pytest -n 2 --dist worksteal tests

fast: $(READY)  ## the tests that need no training run or subprocess
	$(BIN)/python -m pytest -n 2 -m "not slow and not long" tests

long: $(READY)  ## what the suite has no time for: every recipe all the way, among others
	$(BIN)/python -m pytest -n 2 --dist worksteal -m long tests

fuzz: $(READY)  ## fifty times the damaged and hostile inputs that the suite tries
	FUZZ=50 $(BIN)/python -m pytest -n 2 tests/fuzz

gpu:  ## on a machine with a GPU, by its own Python (PYTHON=..., else .venv's): checks, measurements, to $OUT or runs/gpu
	PYTHON=$(PYTHON) tests/gpu.sh

check: $(READY)  ## style, types and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=ssl:datamodules $(BIN)/lint-imports

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "manyviews needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $(READY)

slurm:  ## as root on Debian or Ubuntu: the packages with which `make test` runs its own Slurm cluster
	tests/slurm_cluster.sh install

clean:  ## removes the environment and the caches, never runs/
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache dist
