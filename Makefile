# `make demo` and `make test` work on a bare machine: the stamp below builds .venv first, and is quick when nothing changed.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := outputs/demo
PYTHON ?=
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.10)
BROKEN := $(shell $(BIN)/python -c "" 2>/dev/null || echo FORCE)

.DEFAULT_GOAL := help
.PHONY: help demo app test check fmt docs docs-check dist clean FORCE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP) ## align the embedded Stable Diffusion and write the report
	$(BIN)/diffalign quickstart --output_dir $(DEMO)
	@echo "The report: $(CURDIR)/$(DEMO)/report.html"

app: $(STAMP) ## open the app: vote on pictures, train on the votes
	$(BIN)/diffalign app --inbrowser

test: $(STAMP) ## run the tests, offline
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(STAMP) ## lint, format, types, layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright
	$(BIN)/lint-imports

fmt: $(STAMP) ## format the code and sort its imports
	$(BIN)/ruff check --fix --select I
	$(BIN)/ruff format

docs: $(VENV)/.docs ## build the documentation into site/, without network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "The pages: $(CURDIR)/site/index.html"

docs-check: $(STAMP) ## run every command of the README and the documentation in a copy of the repository (about half an hour)
	$(BIN)/python -m scripts.docs_check

dist: $(STAMP) ## build wheel and sdist into dist/, and check them
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[dist]"
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

clean: ## remove caches, builds and the demo's output; .venv and other outputs stay
	rm -rf $(DEMO) dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt $(BROKEN)
	@$(SETUP)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[dev,docs]"
	@touch $@

# A Python counts only if it runs (version managers leave shims that do not) and is new enough; the tested 3.10 to 3.13 go first.
# A .venv without a running pip (half made, or its Python is gone) is made anew; where `venv` lacks ensurepip, virtualenv or uv do it.
define SETUP
works() { "$$1" -c 'import sys; sys.exit(not (3, int(sys.argv[1])) <= sys.version_info < (3, int(sys.argv[2])))' $$2 $$3 >/dev/null 2>&1; }; \
whole() { works $(BIN)/python 10 99 && $(BIN)/python -m pip --version >/dev/null 2>&1; }; \
if whole; then exit 0; fi; \
found=; \
for span in '10 14' '14 99'; do \
  for python in $(PYTHONS); do \
    works "$$python" $$span || continue; \
    found="$$found $$python"; \
    for make in "venv --clear" "virtualenv --clear" "uv venv --seed --clear"; do \
      echo "making $(VENV) with $$python -m $$make"; \
      said=$$("$$python" -m $$make $(VENV) 2>&1) && whole && exit 0; \
      echo "$$said" | tail -n 12 >&2; \
    done; \
  done; \
done; \
if test -z "$$found"; then \
  echo "diffalign needs Python 3.10 or newer; none of these runs: $(PYTHONS)." >&2; \
  echo "Install one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
else \
  echo "No virtual environment could be made; what each attempt said stands above. The usual cause: venv without ensurepip." >&2; \
  echo "On Debian and Ubuntu: apt-get install python3-venv. Elsewhere: pip install virtualenv. Then run make again." >&2; \
fi; \
exit 1
endef
