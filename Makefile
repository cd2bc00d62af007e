# From a fresh clone: `make demo` and `make test`.
SHELL := bash
PYTHON ?= python3
BIN := .venv/bin
ROOT ?= $(CURDIR)/data/demo

.DELETE_ON_ERROR:
.PHONY: help install demo check test rehearsal bench-loader gpu ui mlflow browser lock clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: .venv/.installed  ## Install the jobs' dependencies into .venv

demo: .venv/.installed  ## Run the main job on a miniature AudioSet, through Ray Jobs
	$(BIN)/python scripts/submit_local.py python jobs/audioset.py demo --root $(ROOT)

check: .venv/.installed-dev  ## Format, lint and run the quick tests
	$(BIN)/ruff format .
	$(BIN)/ruff check .
	$(PYTEST_PARALLEL) -m '$(ALONE) and not slow'

test: .venv/.installed-dev  ## Run everything that CI runs: ruff, pyright and pytest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PYTEST_PARALLEL) -m '$(ALONE)'
	@# pyright keeps one core busy; tests with several processes mostly wait for these to start.
	$(BIN)/pyright & types=$$!; \
		$(BIN)/pytest -m '(ray or process or gpu) and not (rehearsal or browser)' --durations=10 && wait $$types

# The remaining tests share one Ray or kill processes, so they run one after the other.
ALONE := not (ray or process or gpu or rehearsal or browser)
PYTEST_PARALLEL := $(BIN)/pytest -n auto --dist loadfile

rehearsal: .venv/.installed-dev  ## Test lost nodes and kills with several Ray nodes and a store on S3
	RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$$($(BIN)/python -c 'import secrets; print(secrets.token_hex(32))') \
		$(BIN)/pytest -m rehearsal

bench-loader: .venv/.installed-dev  ## Measure front end, loader, draws and a cold cache; needs ffmpeg
	for bench in front_end loader draws remote; do $(BIN)/python -m bench.$$bench || exit 1; done

gpu:  ## Test and measure training on a GPU in nine minutes
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m bench.gpu --out gpu.json

ui: .venv/.installed  ## Open MLflow's pages of ROOT's trainings on http://127.0.0.1:PORT
	$(BIN)/python jobs/ui.py --root $(ROOT) --port $(PORT)

mlflow: .venv/.installed  ## Run the same as a tracking server for trainings; ROOT may be new
	$(BIN)/python jobs/ui.py --root $(ROOT) --port $(PORT) --create

browser: .venv/.installed-dev  ## Test MLflow's pages and the service's in Chromium; updates docs/images
	@command -v chromium chromedriver >/dev/null || \
		{ echo "expected chromium and its driver; on Debian: apt-get install chromium chromium-driver"; exit 1; }
	SCREENSHOTS=docs/images $(BIN)/pytest -m browser tests/jobs/test_browser.py tests/jobs/service/test_page.py

PORT ?= 5000

lock: .venv/.installed-dev  ## Pin the newest versions that pyproject.toml allows, for Python 3.11 to 3.14
	$(COMPILE) pyproject.toml -o requirements.lock
	$(COMPILE) --extra dev --extra onnx --extra impersonate -c requirements.lock pyproject.toml \
		-o requirements-dev.lock

# One lock for every supported Python: markers select the packages that differ.
COMPILE := $(BIN)/uv pip compile -q --upgrade --universal --python-version 3.11

clean:  ## Remove the environment and the demo's data
	rm -rf .venv data

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || \
		{ echo "expected Python 3.11 to 3.14, found $$($(PYTHON) --version); choose another with PYTHON=python3.13"; exit 1; }
	$(VENV) .venv || { rm -rf .venv; exit 1; }  # without ensurepip, venv leaves an unusable folder

# uv installs in a fraction of pip's time, so it is used where it is installed.
ifneq ($(shell command -v uv),)
VENV := uv venv -q --seed --python $(PYTHON)
INSTALL := uv pip install --python $(BIN)/python
SHOW := cat
else
VENV := $(PYTHON) -m venv
INSTALL := $(BIN)/pip install --disable-pip-version-check --progress-bar off
# One line per download with its size, without pip's lines about packages that are already there.
SHOW := sed -u -E '/^(Ignoring|Requirement already satisfied|  (Using cached|Created wheel|Stored in|Building|Preparing|Getting|Installing))/d'
endif

.venv/.installed: requirements.lock pyproject.toml | .venv/bin/python
	@echo "Installing PyTorch, Ray, MLflow and their dependencies into .venv: about 4.6 GB, 3 to 15 minutes, once."
	@set -o pipefail; $(INSTALL) -r requirements.lock 2>&1 | $(SHOW)
	@$(INSTALL) -q --no-deps -e .
	@touch $@

.venv/.installed-dev: requirements-dev.lock .venv/.installed
	@echo "Installing the tests' dependencies into .venv: about 0.8 GB, 1 to 5 minutes, once."
	@set -o pipefail; $(INSTALL) -r requirements-dev.lock 2>&1 | $(SHOW)
	@touch $@
