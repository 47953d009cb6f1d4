# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later

PYTHON ?= python3
DESTDIR ?=
PREFIX ?= /usr
INTERPRETER ?=
TARGET ?= all
SECONDS ?= 600
VENV := .venv
BIN := $(VENV)/bin
RUN := $(CURDIR)/run
STAMP := $(VENV)/.doorbelld
GUESTS := $(addprefix tests/integration/test_,guest.py everybody.py returning_peers.py qemu_devices.py qemu_limits.py libvirt.py uml.py libblkio.py)
# two builds in one tree, "make run" in one terminal and "make test" in another say, would break each other
ALONE := mkdir -p build && flock build/setup.lock
# a process for each CPU; tests/conftest.py says which tests stay together, and in which order they start
PYTEST := $(BIN)/pytest -q --numprocesses auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder
NATIVE := $(shell find daemon -name '*.pyx' -o -name '*.pxd' -o -name '*.h')

.DEFAULT_GOAL := help
.PHONY: help setup run check test test-unit test-integration test-guest test-system sanitize fuzz bench lint build debug clean install uninstall

help: ## Show this help.
	@echo "doorbelld: try it with 'make run', test it with 'make test'."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

ifdef SETTING_UP
$(STAMP): pyproject.toml setup.py $(NATIVE)
	@packaging/prerequisites setup
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=24'
	$(BIN)/pip install --quiet --editable '.[fast,dev]'
	@touch $@
else
$(STAMP): pyproject.toml setup.py $(NATIVE)
	@$(ALONE) $(MAKE) --no-print-directory SETTING_UP=1 $@
endif

setup: $(STAMP) ## Make the virtual environment and build the native module.

run: $(STAMP) ## Serve a demonstration region on a message bus of its own, in ./run; Ctrl-C stops it.
	@mkdir -p $(RUN)
	@sed 's|@RUN@|$(RUN)|' config/demo.toml > $(RUN)/doorbelld.toml
	@exec $(BIN)/doorbelld --config $(RUN)/doorbelld.toml --bus private --exec-restart

check: lint test-unit ## Run the linters and the unit tests: a few minutes.

test: lint ## Install what the tests need, run the linters and all tests.
	@packaging/prerequisites setup test system
	DOORBELLD_TEST_REQUIRE=all $(PYTEST)

test-unit: $(STAMP) ## Run the unit tests only.
	$(PYTEST) tests/unit

test-integration: $(STAMP) ## Run the tests against real processes, without guests.
	$(PYTEST) tests/integration $(GUESTS:%=--ignore %)

test-guest: $(STAMP) ## Run the tests with real guests (QEMU, libvirt, User-Mode Linux) and libblkio only.
	@packaging/prerequisites test
	$(PYTEST) $(GUESTS)

test-system: $(STAMP) ## Run the tests under a real systemd, in a container; needs root.
	@packaging/prerequisites setup test system
	DOORBELLD_TEST_REQUIRE=all $(BIN)/pytest -q tests/system

sanitize: $(STAMP) ## Run the tests of native code with the address and undefined behaviour sanitizers.
	$(BIN)/pytest -q tests/integration/test_sanitizers.py

fuzz: $(STAMP) ## Fuzz TARGET= (default: all) for SECONDS= each (default: 600); what is found stays in build/fuzz.
	@PYTHONPATH=tests $(BIN)/python -m fuzz run $(TARGET) $(SECONDS)

bench: $(STAMP) ## Measure us and the other side by turns, and print the ratios.
	@packaging/prerequisites bench
	@for one in join_storm client dbus_notify objects startup journal restart relay blk rng loopback devices; do $(BIN)/python bench/$$one.py || exit; done

lint: $(STAMP) ## Check style, types and licences.
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/mypy --strict
	$(BIN)/reuse lint --lines

build: $(STAMP) ## Build a wheel into dist/.
	$(ALONE) $(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

debug: $(STAMP) ## Rebuild the native module with line tracing, assertions and no optimisation.
	$(ALONE) env DOORBELLD_DEBUG=1 $(BIN)/pip install --quiet --force-reinstall --no-deps --editable .

clean: ## Remove everything that was made here.
	rm -rf $(VENV) build dist run daemon/*.egg-info
	find daemon -name '*.so' -delete
	find . -name __pycache__ -prune -exec rm -rf {} +

install: $(STAMP) ## Install below DESTDIR= (default: this system), with all dependencies in a folder of our own.
	$(ALONE) packaging/install "$(BIN)/python" "$(DESTDIR)" "$(PREFIX)" $(if $(INTERPRETER),"$(INTERPRETER)")

uninstall: ## Remove what 'make install' put there, but for the configuration.
	packaging/uninstall "$(DESTDIR)" "$(PREFIX)"
