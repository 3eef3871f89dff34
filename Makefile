# One command for each thing a person does here; `make help` lists them.
# Everything runs on an installed wheel, rebuilt only when its sources changed.

PYTHON ?= python3
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-long lint bench fuzz instructions gpu-test gpu-sanitize gpu-bench gpu-instructions wheel clean

# Which environment. PYTHON is looked at: in an environment (venv or conda) that can import torch,
# that one is used as it is. Otherwise .venv is made, and where PYTHON can import torch outside of any
# environment, .venv sees that torch instead of a second copy.
LOOK := import importlib.util as u, os, sys; \
  inside = sys.prefix != sys.base_prefix or os.path.isdir(sys.prefix + '/conda-meta'); \
  print('nothing' if u.find_spec('torch') is None else sys.prefix if inside else 'torch')
FOUND := $(shell $(PYTHON) -c "$(LOOK)" 2>/dev/null)
ifeq ($(filter-out nothing torch,$(FOUND)),)
  ENV := .venv
  PY := .venv/bin/python
else
  ENV := $(FOUND)
  PY := $(PYTHON)
endif
STAMP := $(ENV)/.grass_rs
PIP := $(PY) -m pip --disable-pip-version-check
SOURCES := Cargo.toml Cargo.lock pyproject.toml README.md LICENSE \
  $(shell find rust benches/Cargo.toml python -type f \( -name '*.rs' -o -name '*.toml' -o -name '*.py' -o -name '*.cu' -o -name '*.cuh' -o -name '*.pyi' -o -name 'py.typed' \))

help:
	@echo "make demo    explain handwritten digits; writes demo_report.html (ARGS='--seed 1' passes options)"
	@echo "make test    all tests, Rust and Python"
	@echo "make test-long   power loss, kills and faults in all their ways, some minutes; figures to benches/results/"
	@echo "make lint    rustfmt, clippy, ruff, mypy, stubtest, import order"
	@echo "make fuzz    random bytes for every reader of bytes; needs a nightly Rust (FUZZ_SECONDS=60 a target)"
	@echo "make bench   everything beside its limit and rivals, with a verdict (ARGS=--save writes docs/performance.md)"
	@echo "make instructions   counts the kernels' instructions under valgrind (ARGS=--save stores them)"
	@echo "make gpu-instructions   instructions of the CUDA kernels' inner loops; needs no GPU"
	@echo "make gpu-test, gpu-sanitize, gpu-bench   the CUDA kernels, on a machine with a GPU, CUDA torch and CuPy"
	@echo "make wheel   the wheel, in dist/"
	@echo "make clean   removes everything that these commands made"
	@echo
	@echo "Python packages go to: $(ENV)"

demo: $(STAMP)/installed
	$(PY) -m grass_rs demo $(ARGS)

test: $(STAMP)/test
	cargo test --locked
	GRASS_WHEEL="$$(echo "$(CURDIR)"/dist/*.whl)" $(PY) -m pytest

test-long: $(STAMP)/bench
	$(PY) benches/python/long_tests.py

lint: $(STAMP)/lint $(STAMP)/test
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m mypy.stubtest grass_rs._native
	$(PY) -m pytest -q tests/test_import_order.py

bench: $(STAMP)/bench
	$(PY) benches/python/bench.py $(ARGS)

# As `cargo fuzz run` builds and runs them, which need not be there. What is found stays in fuzz/artifacts/.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS := header manifest commit_log compressor_bytes store
FUZZ_HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
fuzz:
	RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	  -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Cdebug-assertions -Zsanitizer=address" \
	  cargo +nightly build --release --locked --manifest-path fuzz/Cargo.toml --target-dir fuzz/target --target $(FUZZ_HOST)
	for target in $(FUZZ_TARGETS); do \
	  mkdir -p fuzz/corpus/$$target fuzz/artifacts/$$target; \
	  fuzz/target/$(FUZZ_HOST)/release/$$target fuzz/corpus/$$target fuzz/seeds/$$target \
	    -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -timeout=60 -rss_limit_mb=2048 \
	    -artifact_prefix=fuzz/artifacts/$$target/ -print_final_stats=1 || exit 1; \
	done

instructions:
	$(PYTHON) benches/python/instructions.py $(ARGS)

gpu-instructions: $(STAMP)/test
	$(PY) benches/python/gpu_instructions.py

# The wheel of dist/ beside what PYTHON has of torch, CuPy, pytest and hypothesis: a machine with a GPU needs no package index.
gpu-test: .gpu/installed
	PYTHONPATH=.gpu $(PYTHON) -m pytest -q tests/test_gpu.py $(ARGS)

# LoGra has no kernels but cuBLAS's.
gpu-sanitize: .gpu/installed
	for tool in memcheck racecheck synccheck; do \
	  PYTHONPATH=.gpu PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 \
	    $(PYTHON) -m pytest -q tests/test_gpu.py -k 'test_every_kernel_once and not logra' || exit 1; \
	done

gpu-bench: .gpu/installed
	PYTHONPATH=.gpu $(PYTHON) benches/python/bench_gpu.py $(ARGS)

.gpu/installed: $(wildcard dist/*.whl)
	@[ -n "$^" ] || { echo "This needs the wheel in dist/: run make wheel where Rust is, and bring it"; exit 1; }
	rm -rf .gpu
	$(PYTHON) -m pip install --quiet --no-index --no-deps --target .gpu dist/*.whl
	touch $@

wheel: dist/.built
	@ls dist/*.whl

clean:
	rm -rf .venv .gpu dist target fuzz/target fuzz/corpus fuzz/artifacts demo-seed*.grass demo-seed*.grass.fisher demo_report.html .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -rf $(STAMP)

# pip fetches maturin for this build only.
dist/.built: $(SOURCES) | $(STAMP)/python
	@echo "Building the wheel; the first time takes some minutes."
	rm -rf dist
	$(PIP) wheel --quiet --no-deps --wheel-dir dist .
	touch $@

$(STAMP)/installed: dist/.built
	$(PIP) install "$$(echo dist/*.whl)[torch,report]"
	$(PIP) install --quiet --force-reinstall --no-deps dist/*.whl
	touch $@

# The dependency groups of pyproject.toml.
$(STAMP)/test $(STAMP)/lint $(STAMP)/bench: $(STAMP)/%: $(STAMP)/installed pyproject.toml
	$(PIP) install --quiet --group $*
	touch $@

# pip 25.1 is the first that knows dependency groups.
$(STAMP)/python:
	@command -v cargo >/dev/null || { echo "This needs Rust: no cargo on the PATH"; exit 1; }
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || { echo "This needs Python 3.10 or later, for example: make PYTHON=python3.12"; exit 1; }
	@[ -n "$(filter-out nothing,$(FOUND))" ] || echo "This downloads about 3.1 GB of Python packages (PyTorch with its CUDA libraries) into .venv."
	@echo "This fetches about 25 MB of Rust crates, where cargo has not got them yet, and compiles them."
	@[ "$(ENV)" != .venv ] || $(PYTHON) -m venv $(if $(filter torch,$(FOUND)),--system-site-packages) .venv
	$(PIP) install --quiet "pip>=25.1"
	mkdir -p $(STAMP)
	touch $@
