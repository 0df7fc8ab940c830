# hooked_whisper: `make demo` to see it, `make test` to check it, `make help` for the rest.
# Every target first installs into .venv what it needs and does not find there.
# Another Python: make demo PYTHON=python3.12     More of pytest: make test ARGS="-k cache"

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
WORKERS ?= 2

BIN := $(VENV)/bin
CORE := $(VENV)/.core
TEST := $(VENV)/.test
ALL := $(VENV)/.all
LOG := $(VENV)/install.log
CODE := $(wildcard hooked_whisper tests examples benchmarks docs/*.py)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# What is imported is compiled then and kept, whatever this machine's settings are: pip's compiling
# of every module of every package takes as long as all the rest of installing.
export PYTHONDONTWRITEBYTECODE :=

# sae-lens needs the last transformer-lens 3. Both lie in front of the environment's own, as do
# the packages that docs/comparison.md is about, with only what their import needs that the
# environment does not have.
TL3 := .venv-tl3
TL3_STAMP := $(TL3)/.installed
TL3_TESTS := $(wildcard tests/hooks/test_points.py tests/hooks/test_root.py \
  tests/hooks/test_run_with_cache.py tests/hooks/test_splicing.py \
  tests/contract/test_transformer_lens.py tests/sae/test_sae_lens.py \
  tests/contract/test_coming_from.py tests/contract/test_comparison.py)

.DEFAULT_GOAL := help
.NOTPARALLEL: # targets share one environment
.PHONY: help env demo test test-slow test-all test-tl3 test-python fuzz mutants check format format-check lint types docs notebooks bench digits saes suite-tiny-en clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

env: $(ALL) ## make or update .venv with everything for development

# The package alone, with what its tests need, with every tool: each holds what is before it.
$(TEST): EXTRAS := [test]
$(ALL): EXTRAS := [test,dev,docs,notebooks]
$(CORE): HOLDS := $(CORE)
$(TEST): HOLDS := $(CORE) $(TEST)
$(ALL): HOLDS := $(CORE) $(TEST) $(ALL)

# A shell program: where something is missing, it says what in one line.
define INSTALL
die() { echo "$$*" >&2; exit 1; }
again="make $(or $(MAKECMDGOALS),demo) PYTHON=python3.12"

command -v $(PYTHON) >/dev/null ||
  die "There is no '$(PYTHON)' here. Install Python 3.10 or newer, or name yours: $$again"
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  die "hooked_whisper needs Python 3.10 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
    "Install a newer one, or name yours: $$again"

test -x $(BIN)/pip || said=$$($(PYTHON) -m venv $(VENV) 2>&1) || case $$said in
  *ensurepip* | *"No module named"*) rm -rf $(VENV)
    die "'$(PYTHON)' cannot make environments, for lack of venv or ensurepip." \
      "On Debian and Ubuntu: apt install python3-venv" ;;
  *) die "$(VENV) could not be made: $$(echo "$$said" | tail -n 1)" ;;
esac

echo "Installing into $(VENV). Where PyTorch is downloaded this takes minutes; pip's words: $(LOG)"
: >$(LOG)
$(BIN)/python -m pip install --upgrade --constraint constraints.txt pip >>$(LOG) 2>&1 &&
  $(BIN)/python -m pip install --no-compile --constraint constraints.txt --editable ".$(EXTRAS)" >>$(LOG) 2>&1 ||
  case $$(cat $(LOG)) in
  *"after connection broken by"*)
    die "No package index can be reached. Is there a network, or a proxy to name in pip's settings?" \
      "What pip said is in $(LOG)" ;;
  *) die "pip failed: $$(grep -m 1 ERROR $(LOG)) What else it said is in $(LOG)" ;;
  esac
touch $(HOLDS)
endef
export INSTALL

$(CORE) $(TEST) $(ALL): pyproject.toml constraints.txt
	@eval "$$INSTALL"

demo: $(CORE) ## see what it does, on the shipped model and recordings, in a minute
	@$(BIN)/python examples/demo.py $(ARGS)
	@printf '\nNext:\n'
	@printf '%-44s%s\n' \
	  "  . $(BIN)/activate" "the commands below are then found" \
	  "  hooked-whisper attention" "a page to watch attention on while listening" \
	  "  python examples/watch_attention.py" "short examples; docs/examples.md has all" \
	  "  docs/quickstart.md" "the documentation begins here"

PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
  --max-worker-restart 0

test: $(TEST) ## run the tests; more with ARGS, such as ARGS="-k cache"
	$(PYTEST) $(ARGS)

test-slow: $(ALL) ## run what test leaves out: what needs minutes, and the notebooks
	$(PYTEST) --slow -m slow --timeout 3600 -o faulthandler_timeout=3900 $(ARGS)

test-all: test test-slow ## run all tests

$(TL3_STAMP): $(TEST) Makefile
	rm -rf $(TL3)
	$(BIN)/python -m pip install --quiet --no-deps --target $(TL3) \
	  transformer-lens==3.9.0 better-abc==0.0.3 \
	  sae-lens==6.54.0 simple-parsing==0.1.9 docstring-parser==0.18.0 \
	  nnsight==0.8.1 pyvene==0.1.8
	@touch $@

test-tl3: $(TL3_STAMP) ## run the tests that need transformer-lens 3.9, sae-lens, nnsight or pyvene
	PYTHONPATH=$(TL3) EXPECT_TRANSFORMER_LENS=3.9.0 EXPECT_SAE_LENS=6.54.0 $(PYTEST) $(TL3_TESTS) $(ARGS)

# In an environment of its own, with CUDA's PyTorch (gigabytes): once by hand before a release.
OTHER := .venv-python
VERSIONS ?= newest
RESOLUTION_newest := highest
RESOLUTION_oldest := lowest-direct
CORE_TESTS := $(wildcard tests/test_*.py) $(wildcard $(addprefix tests/,hooks model speech \
  analysis weights sae/io))

test-python: ## run the core tests on another Python: PYTHON=python3.13 VERSIONS=newest|oldest
	rm -rf $(OTHER)
	$(PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/python -m pip install --quiet uv
	$(OTHER)/bin/uv pip install --quiet --python $(OTHER) --resolution $(RESOLUTION_$(VERSIONS)) ".[test]"
	sed -n '/^```python/,/^```$$/p' README.md | sed '/^```$$/q' | grep -v '^```' | $(OTHER)/bin/python -
	OMP_NUM_THREADS=1 $(OTHER)/bin/python -m pytest -n $(WORKERS) --dist loadfile $(CORE_TESTS) $(ARGS)

fuzz: $(TEST) ## give every loader 30,000 damaged files: make fuzz FUZZ=1000 for fewer
	FUZZ=$(or $(FUZZ),30000) $(BIN)/python -m pytest -n $(WORKERS) --timeout 3600 -o faulthandler_timeout=3900 tests/fuzz $(ARGS)

mutants: $(TEST) ## put faults into copies of the package, each of which a test must notice
	$(BIN)/python -m tests.mutants --workers $(WORKERS) $(ARGS)

check: format-check lint types test docs ## everything that has to pass: the same as CI

format: $(ALL) ## format the code
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix-only $(CODE)

format-check: $(ALL) ## check the format
	$(BIN)/ruff format --check $(CODE)

lint: $(ALL) ## lint
	$(BIN)/ruff check $(CODE)

types: $(ALL) ## check the types
	$(BIN)/mypy

docs: $(ALL) ## build the documentation into build/docs; its examples run in test
	$(BIN)/python -m sphinx -W --keep-going -q $(ARGS) docs build/docs
	@echo "build/docs/index.html"

notebooks: $(ALL) ## run the notebooks again and store what they print and draw
	$(BIN)/python docs/make_notebooks.py $(ARGS)

bench: $(ALL) ## measure against openai-whisper and transformers, into benchmarks/results
	$(BIN)/python -m benchmarks.run $(ARGS)

digits: $(ALL) ## train the shipped digits model again (hours on 2 cores)
	$(BIN)/python examples/train_digits.py $(ARGS)

saes: $(ALL) ## train the digits model's suite of autoencoders again (minutes)
	$(BIN)/python examples/train_sae_suite.py --package $(ARGS)

suite-tiny-en: $(ALL) ## train and judge autoencoders of real Whisper, on ../shared/data (2 hours)
	$(BIN)/python examples/suite_tiny_en.py $(ARGS)

clean: ## remove what the targets made, the environments included
	rm -rf $(VENV) $(TL3) $(OTHER) build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find $(CODE) docs -name __pycache__ -type d -prune -exec rm -rf {} +
