# Every target sets up .venv by itself; once it is there, a target starts at once.
# A machine needs Python 3.11 or newer and make. To pick a Python: make demo PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-avx2 faults lint bench chromium

demo: $(READY) ## data, training, export and three completions in a few minutes
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh recipes/demo.sh

test: lint chromium ## everything that is checked
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2
	@$(MAKE) --no-print-directory test-avx2

# What depends on how the processor multiplies, once more as on one that has no more than AVX2. Each library
# has a variable of its own: oneDNN (products in bf16 and fp16), PyTorch's own loops, MKL (products in fp32).
AVX2 := ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2

test-avx2: $(READY) ## number formats and quick benchmarks, without 16-bit arithmetic
	$(AVX2) OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 tests/machine tests/benchmarks/test_quick.py \
	  tests/optim/test_newton_schulz.py tests/train/test_step.py tests/parity/test_checkpoints.py

faults: $(READY) ## kills, damages, full disks and odd inputs, ten times as many as in `make test`
	FAULTS_LONG=1 OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 tests/faults

lint: $(READY) ## style, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# The atlas' page is tested in a browser; without one everything else still is.
CHROMIUM := env DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends chromium

chromium:
	@command -v chromium || command -v chromium-browser || command -v google-chrome || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo "Installing Chromium (once)" && \
	  { $(CHROMIUM) || { apt-get update --quiet=2 && $(CHROMIUM); }; } >/dev/null; } || { \
	  echo "################################################################" >&2; \
	  echo "# NO CHROMIUM: the tests of the atlas' page in a browser are    #" >&2; \
	  echo "# skipped. Install it: apt-get install chromium (as root)       #" >&2; \
	  echo "################################################################" >&2; }

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
