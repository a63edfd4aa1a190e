# make demo    from a bundled dataset to a trained classifier and its exact top-1
# make test    the tests, coverage  make check   format, lint, types, rooms
# make format  apply the formatter  make clean   remove what the targets above made
# make test-gpu   the tests that need a GPU    make bench-gpu OUT=folder   what is measured on one
#
# Everything is set up once, into .venv; PYTHON=python3.12 make ... chooses the interpreter.
SHELL := /bin/bash
.DEFAULT_GOAL := demo
.PHONY: demo test check format clean

PYTHON ?= python3
DATASETS ?= datasets/digits
RUN ?= runs/demo
BIN := .venv/bin
PACKAGES := build-essential pkg-config libopencv-dev libturbojpeg0-dev python3-dev python3-venv

demo: .venv/installed
	$(BIN)/python -m writers.digits $(DATASETS)
	@for split in train val; do \
	  [ -f $(DATASETS)/$$split.beton ] || $(BIN)/python writers/write_imagenet.py \
	    --cfg.dataset=imagenet --cfg.split=$$split --cfg.data_dir=$(DATASETS)/$$split \
	    --cfg.write_path=$(DATASETS)/$$split.beton --cfg.write_mode=jpg || exit $$?; \
	done
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc_per_node=2 train_imagenet.py --config rcp/digits.yaml \
	  --data.train_dataset=$(DATASETS)/train.beton --data.val_dataset=$(DATASETS)/val.beton \
	  --logging.folder=$(RUN)

# Three workers on two cores, since many tests wait; who takes what: tests/conftest.py. Tests
# start some hundred programs, which would all compile the toolkit where bytecode may not be kept.
test: .venv/installed
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 3 --cov

# On a machine where nothing can be installed, BIN=folder-of-its-python.
.PHONY: test-gpu bench-gpu
test-gpu:
	$(BIN)/python -m pytest -m cuda

OUT ?= runs/bench-gpu
bench-gpu:
	$(BIN)/python -m benchmarks.gpu --out $(OUT)

check: .venv/installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:
	rm -rf .venv runs datasets build *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage*

# torchvision's wheels are built for CUDA and need the CUDA build of torch, which runs without a
# GPU too. The editable install follows the sources, so only these two files make it stale.
.venv/installed: pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory system
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# FFCV, which the tests and benchmarks compare with, compiles against OpenCV and libjpeg-turbo.
.PHONY: system
system:
	@if command -v g++ pkg-config >/dev/null && pkg-config --exists opencv4 libturbojpeg && \
	  $(PYTHON) -c 'import ensurepip, os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' 2>/dev/null; then exit 0; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing $(PACKAGES)"; log=$$(mktemp); \
	  export DEBIAN_FRONTEND=noninteractive; \
	  { apt-get -qq update && apt-get -qq -y --no-install-recommends install $(PACKAGES); } >"$$log" 2>&1 || \
	    { tail -n 5 "$$log"; echo "error: apt-get could not install $(PACKAGES)"; exit 1; }; \
	else \
	  echo "error: needs $(PACKAGES) (as root: apt-get install ...), or use conda: conda env create -f environment.yml"; exit 2; \
	fi
