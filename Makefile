# Set-up, pictures, engines, tests and checks. `make help` lists the targets.

PYTHON ?= python3
CHECKPOINT ?= demo
BACKENDS ?= $(ALL_BACKENDS)
PROMPT ?= a large green star on a purple background
OUT ?= picture.png
STEPS ?= 50
SEED ?=
STORE ?= build/store
BACKEND ?= auto
FUZZ_S ?= 60
REPORT ?= build/compare
BENCH ?= build/bench

VENV := .venv
ALL_BACKENDS := onnxruntime openvino tensorrt-rtx tensorrt
BIN := $(VENV)/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PIP := $(BIN)/python $(PIP_INSTALL)
RUN_READY := $(VENV)/.ready-to-run
RTX_READY := $(VENV)/.ready-to-build
COMPARE_READY := $(VENV)/.ready-to-compare
FUZZ_READY := $(VENV)/.ready-to-fuzz
DEV_READY := $(VENV)/.ready-to-develop
GPU_READY := $(VENV)/.ready-for-gpu
# onnxruntime and onnxruntime-gpu overwrite each other's files, so ONNX Runtime's GPU tests have their own environment.
GPU_ORT ?=
GPU_ORT_VENV := $(VENV)-gpu-ort
GPU_ORT_PIP := $(GPU_ORT_VENV)/bin/python $(PIP_INSTALL)
GPU_ORT_READY := $(GPU_ORT_VENV)/.ready-for-gpu
# A test that hangs prints a traceback of every thread.
GPU_TEST_RUN := -m gpu -ra -o faulthandler_timeout=120 tests/gpu
# A worker that crashes ends the run: pytest-xdist would replace it, and can then wait for ever.
TEST_RUN_ENDS := --max-worker-restart=0

.DEFAULT_GOAL := help
.PHONY: help setup denoise engines compare bench test test-long test-full test-gpu gpu-day fuzz check audit constraints docs tutorial wheel sd-v1-random demo-checkpoint clean

help: ## List the targets and variables
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18
	@echo
	@echo 'Variables: CHECKPOINT=$(CHECKPOINT) BACKENDS="$(BACKENDS)" PROMPT="$(PROMPT)" OUT=$(OUT) STEPS=$(STEPS)'
	@echo '           SEED=$(SEED) (empty: random) STORE=$(STORE) BACKEND=$(BACKEND) REPORT=$(REPORT) BENCH=$(BENCH) PYTHON=$(PYTHON) FUZZ_S=$(FUZZ_S)'

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Enough for pictures from a checkpoint, so that the first picture of a fresh clone waits for nothing else.
$(RUN_READY): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) hatchling editables
	$(PIP) --no-build-isolation --editable '.[cpu,export]'
	@touch $@

# TensorRT-RTX, which compiles without a GPU: 250 MB that pictures on a CPU do not need.
$(RTX_READY): $(RUN_READY)
	$(PIP) --no-build-isolation --editable '.[cpu,export,rtx]'
	@touch $@

# Comparisons also need Polygraphy, and SciPy for the reference's scheduler.
$(COMPARE_READY): $(RUN_READY)
	$(PIP) --no-build-isolation --editable '.[cpu,export,compare]'
	@touch $@

$(DEV_READY): $(RTX_READY)
	$(PIP) --no-build-isolation --editable '.[cpu,export,compare,plot,rtx,dev]'
	@touch $@

# Backends for the GPU of this machine: TensorRT, and TensorRT-RTX if it supports the GPU.
$(GPU_READY): $(RUN_READY)
	extras=$$($(BIN)/python -m tools.gpu_extras) && \
	$(PIP) --no-build-isolation --editable ".[cpu,export,compare,dev,$$extras]"
	@touch $@

$(GPU_ORT_READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(GPU_ORT_VENV)
	$(GPU_ORT_PIP) hatchling editables
	$(GPU_ORT_PIP) --no-build-isolation --editable '.[gpu,export,compare,dev]'
	@touch $@

$(FUZZ_READY): $(DEV_READY)
	$(PIP) --no-build-isolation --editable '.[cpu,export,dev,fuzz]'
	@touch $@

setup: $(DEV_READY) ## Create .venv with everything for development

denoise: $(RUN_READY) ## Draw PROMPT into OUT; exports and builds what is missing
	@$(BIN)/sdrt denoise --checkpoint '$(CHECKPOINT)' --prompt '$(subst ','\'',$(PROMPT))' --out '$(OUT)' \
		--steps '$(STEPS)' $(if $(SEED),--seed '$(SEED)') --store '$(STORE)'

# Backends that cannot be built here are skipped with a note, unless BACKENDS names them: then the first one ends it.
engines: $(RTX_READY) ## Export CHECKPOINT and build its engines for BACKENDS (default: all that can be built here)
	@for backend in $(BACKENDS); do \
		$(BIN)/sdrt build --checkpoint '$(CHECKPOINT)' --backend "$$backend" --store '$(STORE)' || { \
			code=$$?; \
			test $$code -eq 4 -a '$(origin BACKENDS)' = file || exit $$code; \
			echo "make engines: $$backend is skipped: it cannot be built here, for the reason above" >&2; \
		}; \
	done

compare: $(COMPARE_READY) ## Compare CHECKPOINT's engines for BACKEND with PyTorch; writes a report to REPORT
	@$(BIN)/sdrt compare --checkpoint '$(CHECKPOINT)' --backend '$(BACKEND)' --store '$(STORE)' --report '$(REPORT)'

bench: $(COMPARE_READY) ## Benchmark CHECKPOINT's engines for BACKEND and all installed peers; writes a report to BENCH
	@$(BIN)/sdrt bench --checkpoint '$(CHECKPOINT)' --backend '$(BACKEND)' --peers all --build-times \
		--store '$(STORE)' --report '$(BENCH)'

test: $(DEV_READY) ## Run the quick tests (under 10 minutes on two cores)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(TEST_RUN_ENDS)

test-long: $(DEV_READY) ## Run the slow tests: kills, wheels, large builds
	$(BIN)/python -m pytest -m 'long' -n 2 --dist worksteal $(TEST_RUN_ENDS)

test-full: $(DEV_READY) sd-v1-random ## Run the tests on the full-size model (859.5 M parameters)
	$(BIN)/python -m pytest -m 'full' -s

fuzz: $(FUZZ_READY) ## Fuzz every parser of untrusted files for FUZZ_S seconds each, guided by coverage (Atheris)
	$(BIN)/python -m tests.fuzz.run --seconds '$(FUZZ_S)' --corpus build/fuzz

gpu-day: $(GPU_READY) ## Run the checks for a first session on an NVIDIA GPU; writes a page to build/gpu-day
	@$(BIN)/python -m tools.gpu_day --store '$(STORE)'

test-gpu: $(GPU_READY) $(if $(GPU_ORT),$(GPU_ORT_READY)) ## Run the tests that need an NVIDIA GPU; GPU_ORT=1 adds those of ONNX Runtime
	$(BIN)/python -m pytest $(GPU_TEST_RUN)
	$(if $(GPU_ORT),$(GPU_ORT_VENV)/bin/python -m pytest $(GPU_TEST_RUN)/test_onnxruntime_gpu.py)

check: $(DEV_READY) ## Lint and type-check (ruff, mypy --strict), and audit dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(BIN)/python -m tools.audit

audit: $(DEV_READY) ## Check the pinned packages for known vulnerabilities, if the database can be reached
	@$(BIN)/python -m tools.audit

constraints: $(DEV_READY) ## Pin the newest compatible versions in constraints.txt; installs nothing
	$(BIN)/python -m tools.constraints

docs: $(DEV_READY) ## Generate the reference pages in docs/
	$(BIN)/python docs/generate.py
	$(BIN)/python -m tools.licences

tutorial: $(DEV_READY) ## Regenerate the tutorial's pictures
	$(BIN)/python docs/generate_tutorial.py --store '$(STORE)'

wheel: $(DEV_READY) ## Build the wheel, which contains the demo's bundle
	$(BIN)/python -m build --wheel --no-isolation --outdir build/wheel

sd-v1-random: $(DEV_READY) ## Make a full-size checkpoint with random weights from a seed
	$(BIN)/python -m tests.models.sd_v1_random --out build/sd-v1-random

demo-checkpoint: $(DEV_READY) ## Train the demo checkpoint from scratch (takes hours; resumes)
	$(BIN)/python -m demo.make --out build/demo-training

clean: ## Remove build outputs and caches; keeps .venv
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
