# hooked_whisper: `make demo` to see it, `make test` to check it, `make help` for the rest.
# Every target makes the environment first where it is missing or outdated.
# Another Python: make env PYTHON=python3.12     More of pytest: make test ARGS="--slow -k cache"

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
WORKERS ?= 2

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CODE := $(wildcard hooked_whisper tests examples benchmarks docs/*.py)

# sae-lens needs the last transformer-lens 3. Both lie in front of the environment's own, with
# only what their import needs that the environment does not have.
TL3 := .venv-tl3
TL3_STAMP := $(TL3)/.installed
TL3_TESTS := $(wildcard tests/hooks/test_points.py tests/hooks/test_root.py \
  tests/hooks/test_run_with_cache.py tests/model/test_splicing.py \
  tests/contract/test_transformer_lens.py tests/sae/test_sae_lens.py)

.DEFAULT_GOAL := help
.PHONY: help env demo test test-tl3 check format format-check lint types docs bench digits saes clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

env: $(STAMP) ## make or update the virtual environment in .venv

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "hooked_whisper needs Python 3.10 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	       "Name another one: make env PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu it is in the package python3-venv." >&2; \
	  exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,dev,docs]"
	@touch $@

demo: $(STAMP) ## run the main job on the shipped model and recordings
	$(BIN)/python examples/demo.py $(ARGS)

test: $(STAMP) ## run the tests; more with ARGS, such as ARGS=--slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

$(TL3_STAMP): $(STAMP) Makefile
	rm -rf $(TL3)
	$(BIN)/python -m pip install --quiet --no-deps --target $(TL3) \
	  transformer-lens==3.9.0 better-abc==0.0.3 \
	  sae-lens==6.54.0 simple-parsing==0.1.9 docstring-parser==0.18.0
	@touch $@

test-tl3: $(TL3_STAMP) ## run the hook tests against transformer-lens 3.9 and sae-lens
	PYTHONPATH=$(TL3) EXPECT_TRANSFORMER_LENS=3.9.0 EXPECT_SAE_LENS=6.54.0 OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(TL3_TESTS) $(ARGS)

check: format-check lint types test docs ## everything that has to pass: the same as CI

format: $(STAMP) ## format the code
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix-only $(CODE)

format-check: $(STAMP) ## check the format
	$(BIN)/ruff format --check $(CODE)

lint: $(STAMP) ## lint
	$(BIN)/ruff check $(CODE)

types: $(STAMP) ## check the types
	$(BIN)/mypy

docs: $(STAMP) ## build the documentation into build/docs; its examples run in test
	$(BIN)/python -m sphinx -W --keep-going -q $(ARGS) docs build/docs
	@echo "build/docs/index.html"

bench: $(STAMP) ## measure against openai-whisper and transformers, into benchmarks/results
	$(BIN)/python -m benchmarks.run $(ARGS)

digits: $(STAMP) ## train the shipped digits model again (hours on 2 cores)
	$(BIN)/python examples/train_digits.py $(ARGS)

saes: $(STAMP) ## train the digits model's suite of autoencoders again (minutes)
	$(BIN)/python examples/train_sae_suite.py --package $(ARGS)

clean: ## remove what the targets made, the environments included
	rm -rf $(VENV) $(TL3) build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find $(CODE) docs -name __pycache__ -type d -prune -exec rm -rf {} +
