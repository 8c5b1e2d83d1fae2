# Every target sets up what it needs: a virtual environment in .venv, made once and reused.
PYTHON ?= python3
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false

.PHONY: sweep test check bench clean help
.DEFAULT_GOAL := help

help: ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

sweep: .venv/installed ## the embedded sweep, from text to report: make sweep ARGS="search.num_trials=12"
	$(BIN)/bora-sweep sweep conf/embedded.yaml $(ARGS)

test: .venv/installed-dev ## the tests
	$(BIN)/python -m pytest $(ARGS)

check: test ## the tests, the linter and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: .venv/installed ## the benchmarks that need neither data nor a GPU, in under five minutes
	$(BIN)/python benchmarks/sampler.py
	$(BIN)/python benchmarks/step.py tiny crowd
	$(BIN)/python benchmarks/tasks.py
	$(BIN)/python benchmarks/loss.py

clean: ## remove the virtual environment
	rm -rf .venv

.venv/installed: pyproject.toml constraints.txt
	@echo "installing into .venv (a minute or two, once)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
