# `make demo` and `make test` need only Python (3.10 or later), pip and make: they set up .venv on first use.
# `make TARGET PYTHON=python` uses that interpreter and the checkout as they are, and installs nothing.

VENV ?= .venv
BASE_PYTHON ?= python3
EXTRAS ?= dev,train,detection,segmentation,export,viz
DEMO_DIR ?= work_dirs/demo
DEMO_ARGS ?=
STUDY_ARGS ?=
PYTEST_ARGS ?=
GPU_CHECK_ARGS ?=

ifeq ($(origin PYTHON),command line)
READY :=
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
else
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.visionattn-installed
endif

.DEFAULT_GOAL := help
.PHONY: help venv demo demo-detection demo-one-stage demo-segmentation study test lint format bench gpu-check clean

help: ## show the targets
	@grep -E '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:[^#]*## /\t/' | expand -t 20

# Re-made only when pyproject.toml changes. OpenCV's desktop build (which mmengine asks for) needs system graphics
# libraries; where they are missing the headless build goes over it.
$(VENV)/.visionattn-installed: pyproject.toml
	@$(BASE_PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or later is needed")'
	test -x $(VENV)/bin/python || $(BASE_PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --progress-bar off -e ".[$(EXTRAS)]"
	@$(VENV)/bin/python -c 'import cv2' 2>/dev/null || \
		$(VENV)/bin/python -m pip install --disable-pip-version-check --force-reinstall --no-deps opencv-python-headless
	@touch $@

venv: $(READY) ## set up .venv with everything that demo, test and lint need

demo: $(READY) ## train on real images, evaluate, draw, export to ONNX: minutes on two cores
	$(PYTHON) tools/demo.py --work-dir $(DEMO_DIR) $(DEMO_ARGS)

demo-detection: $(READY) ## train a Mask R-CNN, evaluate it again, draw boxes and masks: minutes on two cores
	$(PYTHON) tools/demo_dense.py detection $(DEMO_ARGS)

demo-one-stage: $(READY) ## train an ATSS, a detector of one stage, the same way: minutes on two cores
	$(PYTHON) tools/demo_dense.py one-stage $(DEMO_ARGS)

demo-segmentation: $(READY) ## train an UPerNet, evaluate it again, draw class maps: minutes on two cores
	$(PYTHON) tools/demo_dense.py segmentation $(DEMO_ARGS)

study: $(READY) ## train and measure every token mixer: a table and a plot, under half an hour on two cores (STUDY_ARGS)
	$(PYTHON) -m visionattn.cli study builtin/mixers -o work_dirs/study --processes 2 $(STUDY_ARGS)

test: $(READY) ## the default tests
	$(PYTHON) -m pytest $(PYTEST_ARGS)

lint: $(READY) ## ruff (lint and format) and mypy
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

format: $(READY) ## let ruff rewrite what it can
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

bench: $(READY) ## the benchmarks that run on a CPU
	set -e; for script in $(sort $(wildcard benchmarks/*_cpu.py)); do $(PYTHON) $$script; done

gpu-check: $(READY) ## what only a GPU can show: tests, benchmarks, compiled kernels, sanitizer (GPU_CHECK_ARGS)
	$(PYTHON) benchmarks/gpu_check.py --pytest "$(PYTEST_ARGS)" $(GPU_CHECK_ARGS)

clean: ## remove caches, builds and work_dirs; .venv stays
	rm -rf build dist work_dirs .mypy_cache .pytest_cache .ruff_cache
