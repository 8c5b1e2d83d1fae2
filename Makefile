# Every target sets up what it needs: a virtual environment in .venv, made once and reused.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install -c constraints.txt
export TOKENIZERS_PARALLELISM := false

.PHONY: sweep test test-all test-cluster check lint docs build audit bench clean help
.DEFAULT_GOAL := help

help: ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

sweep: .venv/installed ## the embedded sweep, from text to report: make sweep ARGS="search.num_trials=12"
	$(BIN)/bora-sweep sweep conf/embedded.yaml $(ARGS)

test: .venv/installed-dev ## the quick tests: about fifteen minutes on two cores
	.ci/test quick $(ARGS)

test-all: test ## the tests, then the slow ones: browser, compiler, killed processes, many base models
	.ci/test rest $(ARGS)

test-cluster: .venv/installed-dev ## a cluster of namespaces on this machine, and a sweep on it; needs root, sshd and rsync
	$(BIN)/python -m pytest tests/tune/test_cluster_lab.py -m cluster -rs $(ARGS)

check: lint test ## the linter, the type checker and the tests

lint: .venv/installed-dev ## the linter and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: .venv/installed-docs ## the documentation as a site in site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

build: .venv/installed-dev ## a wheel and a source archive in dist/
	rm -rf dist
	$(BIN)/python -m build

audit: .venv/installed-dev ## known vulnerabilities of the installed versions; asks the Python Package Index
	$(PIP) -e '.[audit]'
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+.*//' > .venv/versions # torch is listed without its +cpu
	$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement .venv/versions

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
	$(PIP) --no-compile -e .
	@# pip would compile on one core; some packages hold files that no Python compiles
	@$(BIN)/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || true
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) -e '.[dev]'
	@touch $@

.venv/installed-docs: .venv/installed
	$(PIP) -e '.[docs]'
	@touch $@
