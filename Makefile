# make run    install into .venv and start the server on ./omendb-data
# make test   install, then every check: format, lint, types, layers, tests
# make lint   the checks without the tests
# make bench  the benchmarks of perf/, on this machine
# make race   OmenDB against other databases; ARGS="--short" to see that it works
# make race-scaling, race-ingest, race-profile   how OmenDB's cost grows, what ingest costs, where time goes
# make soak   the long form of the fault tests; ARGS="--minutes 60 --seed 1" (ten minutes by default)
# make image  build the container image, with podman or buildah
# make test-image   unpack the image and try it as a cluster would run it (minutes; as root)
# make binary make dist/omendb, the program in one file that needs no Python
# make test-binary  try it in a bare Debian, BASE_ROOT=DIR (minutes; as root)
# make clean  remove what the other targets have made; not the data
#
# Needs Python 3.11 or newer and make. PYTHON=python3.13 takes another Python, ARGS="--port 3001" goes to
# the server.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
IMAGE ?= omendb:$(VERSION)
RACE_INSTALLED := .venv/.installed-race
PACKAGES := packages.debian
APT_INSTALL := DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends

# Kernels compiled with bounds checks must not be mixed with others, nor outlive their sources.
CHECKED_KERNELS = $(CURDIR)/build/kernels-$(shell cat omendb/jit/*.py | sha256sum | cut -c1-16)

.PHONY: run install test lint test-kernels packages bench soak image test-image binary test-binary race race-scaling race-profile race-ingest clean

run: $(INSTALLED)
	@exec $(BIN)/omendb serve --data-dir ./omendb-data $(ARGS)

install: $(INSTALLED)

# Each check stops at the first failure. The whole suite comes last: its summary is the verdict.
test: $(INSTALLED) packages
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory test-kernels
	$(BIN)/pytest $(TESTS)

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/basedpyright
	$(BIN)/lint-imports --no-cache

# The kernels once as plain Python, and once compiled with bounds checks.
test-kernels: $(INSTALLED)
	NUMBA_DISABLE_JIT=1 $(BIN)/pytest -q tests/jit
	NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=$(CHECKED_KERNELS) $(BIN)/pytest -q tests/jit

bench: $(INSTALLED) packages
	$(BIN)/python perf/kernels.py
	$(BIN)/python perf/http.py

# What it needs beside OmenDB goes into .venv and comes from Debian; what is missing takes no part.
race: $(RACE_INSTALLED)
	@$(MAKE) --no-print-directory packages PACKAGES=perf/race/packages.debian
	$(BIN)/python -m perf.race $(ARGS)

# OmenDB alone: how its cost grows, and where its time goes.
race-scaling race-profile race-ingest: race-%: $(RACE_INSTALLED) packages
	$(BIN)/python -m perf.race.$* $(ARGS)

soak: $(INSTALLED) packages
	$(BIN)/python -m tests.faults.soak $(ARGS)

# The health check is a field of Docker's format; in OCI's own it is dropped. BUILD_OPTIONS="--network host" and the like go
# to the builder.
image:
	@engine=$$(command -v podman || command -v buildah) || \
		{ echo "Neither podman nor buildah is installed; any other builder takes the Containerfile, too." >&2; exit 1; }; \
	$$engine build $(BUILD_OPTIONS) --format docker --build-arg VERSION=$(VERSION) \
		--build-arg REVISION=$$(git rev-parse HEAD) --tag $(IMAGE) .

# IMAGE_ROOT=DIR tries a root file system that is unpacked already.
test-image: $(INSTALLED)
	@root=$(IMAGE_ROOT); \
	if [ -z "$$root" ]; then \
		root=$(CURDIR)/build/image-root; rm -rf $$root; mkdir -p $$root; \
		box=$$(podman create $(IMAGE)) && podman export $$box | tar -x -C $$root && podman rm $$box >/dev/null || exit 1; \
	fi; \
	OMENDB_IMAGE_ROOT=$$root $(BIN)/pytest -v -s tests/deploy/trial_image.py

binary: $(BIN)/python
	@PYTHON=$(PYTHON) deploy/binary/build

# Without BASE_ROOT a bare Debian is made with debootstrap.
test-binary: $(INSTALLED)
	@root=$(BASE_ROOT); \
	if [ -z "$$root" ]; then \
		root=$(CURDIR)/build/bare-debian; \
		[ -e $$root/etc/debian_version ] || debootstrap --variant=minbase trixie $$root >$$root.log; \
	fi; \
	OMENDB_BASE_ROOT=$$root $(BIN)/pytest -v -s tests/deploy/trial_binary.py

clean:
	rm -rf .venv build dist *.egg-info .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find omendb tests perf -name __pycache__ -type d -prune -exec rm -rf {} +

# Made anew whenever the pins or the package's own description are newer.
$(INSTALLED): requirements.lock pyproject.toml | $(BIN)/python
	@echo "Installing into .venv ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock -e .
	@touch $@

$(RACE_INSTALLED): perf/race/requirements.txt $(INSTALLED)
	@echo "Installing what the race needs into .venv ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r perf/race/requirements.txt
	@touch $@

# Debian splits venv from Python. Where we may, we add it; elsewhere we say what is missing.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "OmenDB needs Python 3.11 or newer; PYTHON=... names another one." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "Installing Debian's python3-venv ..."; \
			apt-get update -qq && $(APT_INSTALL) python3-venv >/dev/null; \
		else \
			echo "Python's venv module is missing: on Debian, install the package python3-venv." >&2; exit 1; \
		fi; }
	@$(PYTHON) -m venv .venv

# Programs that some tests use. Without them those tests are skipped, and say so; in CI they fail.
packages:
	@missing=$$(for name in $$(cat $(PACKAGES)); do \
		dpkg-query -W -f '$${Status}' $$name 2>/dev/null | grep -q '^install ok installed' || echo $$name; done); \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "Installing Debian's" $$missing ...; \
			{ apt-get update -qq && $(APT_INSTALL) $$missing >/dev/null; } || \
				echo "That failed: what needs them is left out, or fails in CI."; \
		else \
			echo "Not installed, so that what needs them is left out:" $$missing; \
		fi; \
	fi
