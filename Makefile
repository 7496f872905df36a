# Every target sets up .venv by itself; once it is there, a target starts at once.
# A machine needs Python 3.11 or newer and make. To pick a Python: make demo PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test lint bench

demo: $(READY) ## data, training, export and three completions in a few minutes
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh recipes/demo.sh

test: lint ## everything that is checked
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2

lint: $(READY) ## style, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(READY) ## speed beside other implementations, in one run each
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.decode
	$(BIN)/python -m benchmarks.muon_step

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Lichen needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing)." \
	       "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo "'$(PYTHON) -m venv' failed; Debian and Ubuntu have it in the package python3-venv." >&2; exit 1; }
	@echo "Installing into .venv (once; PyTorch is a large download)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  --editable '.[data,test,lint]'
	@touch $@
