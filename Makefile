# From a fresh clone: `make demo` and `make test`.
SHELL := bash
PYTHON ?= python3
BIN := .venv/bin
ROOT ?= $(CURDIR)/data/demo

.DELETE_ON_ERROR:
.PHONY: help install demo check test rehearsal bench-loader gpu ui mlflow browser lock clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: .venv/.installed  ## What the jobs need, into .venv

demo: .venv/.installed  ## The main job on an embedded miniature of AudioSet, through Ray Jobs
	$(BIN)/python scripts/submit_local.py python jobs/audioset.py demo --root $(ROOT)

check: .venv/.installed-dev  ## For the inner loop: format, lint, and the quick tests, without Ray and other processes
	$(BIN)/ruff format .
	$(BIN)/ruff check .
	$(PYTEST_SIDE_BY_SIDE) -m '$(ALONE) and not slow'

test: .venv/.installed-dev  ## All that CI runs: ruff, pyright and pytest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PYTEST_SIDE_BY_SIDE) -m '$(ALONE)'
	@# pyright keeps one core busy, while tests with several processes mostly wait for these to start.
	$(BIN)/pyright & types=$$!; \
		$(BIN)/pytest -m '(ray or process or gpu) and not (rehearsal or browser)' --durations=10 && wait $$types

# The others share one Ray, or end processes: one after the other.
ALONE := not (ray or process or gpu or rehearsal or browser)
PYTEST_SIDE_BY_SIDE := $(BIN)/pytest -n auto --dist loadfile

rehearsal: .venv/.installed-dev  ## Several Ray nodes on this machine, a store on S3, and nodes that are lost
	RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$$($(BIN)/python -c 'import secrets; print(secrets.token_hex(32))') \
		$(BIN)/pytest -m rehearsal

bench-loader: .venv/.installed-dev  ## Front end, loader, draws and a cold cache beside their peers; FFmpeg's program is needed
	for bench in front_end loader draws remote; do $(BIN)/python -m bench.$$bench || exit 1; done

gpu:  ## The training proved and measured on a GPU in nine minutes; needs torch and little else
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m bench.gpu --out gpu.json

ui: .venv/.installed  ## MLflow's pages of ROOT's trainings on http://127.0.0.1:PORT
	$(BIN)/python jobs/ui.py --root $(ROOT) --port $(PORT)

mlflow: .venv/.installed  ## The same as a tracking server for trainings; ROOT may be new
	$(BIN)/python jobs/ui.py --root $(ROOT) --port $(PORT) --create

browser: .venv/.installed-dev  ## MLflow's pages and the service's in a real browser; new screenshots in docs/images
	@command -v chromium chromedriver >/dev/null || \
		{ echo "expected chromium and its driver; on Debian: apt-get install chromium chromium-driver"; exit 1; }
	SCREENSHOTS=docs/images $(BIN)/pytest -m browser tests/jobs/test_browser.py tests/jobs/service/test_page.py

PORT ?= 5000

lock: .venv/.installed-dev  ## Pin the newest versions that pyproject.toml allows
	$(BIN)/pip-compile -q --upgrade $(COMPILE) -o requirements.lock pyproject.toml
	$(BIN)/pip-compile -q --upgrade $(COMPILE) --extra dev --extra onnx --extra search --extra hdf5 --extra impersonate --allow-unsafe -c requirements.lock \
		-o requirements-dev.lock pyproject.toml

COMPILE := --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links

clean:  ## Remove the environment and what the demo made
	rm -rf .venv data

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
		{ echo "expected Python 3.11 or 3.12, found $$($(PYTHON) --version); name one with PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv

# A line for each package that is fetched, with its size; what was found already would hide them.
PIP := $(BIN)/pip install --disable-pip-version-check --progress-bar off
ONLY_NEWS := sed -u -E '/^(Requirement already satisfied|  (Using cached|Created wheel|Stored in|Building|Preparing|Getting|Installing))/d'

.venv/.installed: requirements.lock pyproject.toml | .venv/bin/python
	@echo "Installing PyTorch, Ray, MLflow and what they need into .venv: about 4.6 GB, 3 to 15 minutes, once."
	@set -o pipefail; $(PIP) -r requirements.lock | $(ONLY_NEWS)
	@$(PIP) -q --no-deps -e .
	@touch $@

.venv/.installed-dev: requirements-dev.lock .venv/.installed
	@echo "Installing what the tests need into .venv: about 0.8 GB, 1 to 5 minutes, once."
	@set -o pipefail; $(PIP) -r requirements-dev.lock | $(ONLY_NEWS)
	@touch $@
