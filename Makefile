# Every task has its entry here: `make help` lists them.
# Python 3.11 or newer; `make PYTHON=/path/to/python3.12 demo` names another one.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
BIN := .venv/bin
SETUP := $(PYTHON) tools/setup_env.py

.DEFAULT_GOAL := help
.PHONY: help demo test check format proto docs clean setup setup-dev python-there

help: ## this list
	@sed -n 's/^\([a-z%-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F'\t' '{printf "make %-12s %s\n", $$1, $$2}'

python-there:
	@command -v "$(PYTHON)" >/dev/null || { \
	    echo "setup: no Python found: apt-get install python3.11 python3.11-venv" >&2; exit 2; }

setup: python-there ## .venv with what the programs need, and the demo's models
	@$(SETUP) runtime models

setup-dev: python-there
	@$(SETUP) dev models

demo: setup ## the whole system on this machine, in about three minutes
	@$(BIN)/tidegate demo

test: setup-dev ## every test, with line coverage of the packages
	@$(BIN)/python tools/run_tests.py

check: python-there ## style, types, import contracts, generated files, Dockerfiles
	@$(SETUP) dev proto
	@$(BIN)/python tools/run_checks.py

format: python-there ## format the code and fix what can be fixed
	@$(SETUP) dev
	@$(BIN)/ruff check --fix --quiet .; $(BIN)/ruff format .

proto: python-there ## lint protos/ and regenerate the protobuf code in sdk/
	@$(SETUP) dev proto
	@cd protos && ../$(BIN)/buf lint
	@bash tools/gen_proto.sh

docs: python-there ## regenerate docs/configuration.md from the settings models
	@$(SETUP) dev
	@$(BIN)/python tools/gen_config_docs.py

# The routing code runs compiled, as in the gateway's image; `make COMPILED=no bench-decide` runs it interpreted.
COMPILED ?= yes

bench-%: python-there ## one benchmark, say bench-cancel; writes benchmarks/results/cancel.json
	@$(SETUP) dev models
	@test -f benchmarks/bench_$(subst -,_,$*).py || { echo "no benchmark $*; there are:" \
	    $(patsubst benchmarks/bench_%.py,%,$(wildcard benchmarks/bench_*.py)) >&2; exit 2; }
	@if [ "$(COMPILED)" = yes ] && ! $(SETUP) compiled; then echo "the routing code runs interpreted" >&2; fi; \
	if [ "$(COMPILED)" = yes ]; then PYTHONPATH="$$(readlink -e .cache/compiled/current)"; export PYTHONPATH; fi; \
	exec $(BIN)/python -m benchmarks.bench_$(subst -,_,$*)

clean: ## remove what make made here (built wheels and models stay in ~/.cache/tidegate)
	rm -rf .venv .venv-proto .cache .coverage .coverage.* htmlcov build dist sdk/dist
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
