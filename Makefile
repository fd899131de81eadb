# The verbs of the project. `make` alone lists them. Everything happens in ./.venv: no root, no Docker, no uv needed.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The oldest Python that may make the environment is 3.11; the plain name first, so that a chosen one wins.
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,\
	$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
# Whose runtime: cpu, or gpu on a machine with an NVIDIA GPU. They share a module's name, so each has an environment.
EXTRA ?= cpu
VENV := .venv$(if $(filter-out cpu,$(EXTRA)),-$(EXTRA))
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Pinned: the lock file's format and the resolver's output follow uv's version.
UV_VERSION := 0.13.8
UV := $(BIN)/uv

export UV_PROJECT_ENVIRONMENT := $(CURDIR)/$(VENV)
# Which Python serves is the person's choice above; uv must never fetch one of its own.
export UV_PYTHON_DOWNLOADS := never
export UV_NO_PROGRESS ?= 1
# The lock names the public index. A mirror of one machine (environment) must not leak into it; `uv sync --frozen`
# does not ask for it either.
export UV_LINK_MODE ?= copy
# uv carries certificates of its own, which a company's proxy is not among: where the system has a store, use that.
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt),)
export UV_SYSTEM_CERTS ?= true
endif

# The tests start some two thousand processes: what each imports is compiled once, whatever the shell says.
unexport PYTHONDONTWRITEBYTECODE

# What KEEP=1, NAME=… and ARGS=… mean to a verb is said in its help line.
KEEP ?=
NAME ?=
ARGS ?=
# Most tests wait for processes, more than they compute.
JOBS ?= 2
export KEEP

.PHONY: help venv demo test test-long check bench bench-gate bench-host soak fuzz deb lock closure pages clean distclean fmt lint types tree closure-check

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(READY)  ## make ./.venv with everything in it (the other verbs do it by themselves)

$(READY): pyproject.toml shared/pyproject.toml agent/pyproject.toml server/pyproject.toml uv.lock
	@if [ -z "$(PYTHON)" ]; then \
		echo "Python 3.11 or newer is needed (Debian, Ubuntu: apt install python3 python3-venv)." >&2; exit 1; fi
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		echo "making $(VENV) with $$($(PYTHON) --version)"; \
		$(PYTHON) -m venv $(VENV) || { \
			echo "the venv module does not work (Debian, Ubuntu: apt install python3-venv)." >&2; \
			rm -rf $(VENV); exit 1; }; fi
	@if [ "$$($(UV) --version 2>/dev/null | cut -d' ' -f2)" != "$(UV_VERSION)" ]; then \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)"; fi
	@# inexact: uv itself and pip live in the same environment and are in no lock.
	@$(UV) sync --frozen --quiet --inexact --all-packages --extra $(EXTRA)
	@touch $@

demo: $(READY)  ## the main job on real models, start to end (KEEP=1 leaves it running)
	@$(BIN)/python -m tests.demo $(ARGS)

TESTED_WITH := mosquitto nats-server softhsm2 pkcs11-provider swtpm tpm2-openssl tpm2-abrmd libtss2-tcti-tabrmd0 dbus

test: $(READY)  ## the tests, two files at a time (JOBS=1: one); ARGS="-k gate" chooses
	@# Some tests want real brokers, a SoftHSM or a TPM (in software), and say so aloud where there are none; root may
	@# have them installed. Debian 12 has no pkcs11-provider.
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then for one in $(TESTED_WITH); do \
		dpkg -s $$one >/dev/null 2>&1 || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$one >/dev/null 2>&1 || \
		echo "$$one could not be installed: its tests are skipped" >&2; done; fi
	@$(BIN)/python -m pytest $(if $(ARGS),$(ARGS),-m "not long" -n $(JOBS) --dist loadscope)

test-long: $(READY)  ## more rows of the tables that `make test` has a slice of
	@$(BIN)/python -m pytest -m long -n $(JOBS) --dist loadscope $(ARGS)

check: lint types tree closure-check  ## linters, types on both Pythons, tree, documents, closures

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(READY)
	@$(BIN)/mypy
	@# What a device runs must also hold for the Python of JetPack 6.
	@$(BIN)/mypy --python-version 3.10 --cache-dir .mypy_cache/device shared/interlock_shared agent/interlock_agent

tree: $(READY)
	@$(BIN)/python -m pytest -q tests/test_tree.py tests/test_docs.py

closure-check: $(READY)
	@$(BIN)/python packaging/closure/lock.py --check

bench: $(READY)  ## measurements, as JSON under bench-results/ and a table (NAME=fetch or health runs one)
	@$(BIN)/python -m tests.bench $(NAME) $(ARGS)

bench-gate: $(READY)  ## how often the gate is right and how much it is felt: an hour, goes on where it was cut off
	@$(BIN)/python -m tests.bench.gate $(ARGS)

bench-host: $(READY)  ## what applications feel of the host: swaps, kills, ways to ask, memory (ARGS=ways runs one part)
	@$(BIN)/python -m tests.bench.host $(ARGS)

soak: $(READY)  ## simulation and fuzzing at length, bounded and resumable (ARGS="--minutes 30")
	@$(BIN)/python -m tests.soak $(ARGS)

fuzz: $(READY)  ## hostile bytes for every parser, bounded (ARGS="--minutes 10"); findings become tests/vectors/
	@$(UV) sync --frozen --quiet --inexact --all-packages --extra $(EXTRA) --group fuzz || \
		echo "make fuzz: atheris cannot be installed here" >&2
	@nice -n 10 $(BIN)/python -m tests.fuzz $(ARGS)

deb:  ## Debian packages (not there yet)
	@echo "make deb: packages are not built yet; install with pip install ./shared ./agent" >&2; exit 1

lock: $(READY)  ## resolve again into uv.lock (after a change of requirements)
	@$(UV) lock

closure: $(READY)  ## write packaging/closure/*.txt: every distribution that lands on a device or a server
	@$(BIN)/python packaging/closure/lock.py

pages: $(READY)  ## write the pages under docs/ that the code prints
	@$(BIN)/python -m tests.pages

fmt: $(READY)  ## format, and mend what the linter can mend
	@$(BIN)/ruff check --fix-only --quiet . && $(BIN)/ruff format .

clean:  ## remove what runs left behind: state folders, results, caches
	@rm -rf .demo .models .bench .soak .fuzz bench-results .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov
	@find . -path ./$(VENV) -prune -o -path ./.git -prune -o -name __pycache__ -type d -print0 | xargs -0r rm -rf

distclean: clean  ## the same, and ./.venv
	@rm -rf $(VENV)
