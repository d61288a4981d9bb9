# `make help` lists what there is. A target first makes the environment that it needs, and a
# second call installs nothing. make PYTHON=... names the interpreter (3.11 or newer), and
# make test-newest PYTHON_NEWEST=... that of the second run of the tests (3.12 or newer).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo
DATASET ?= mnist
CONFIG ?= experiments/configs/digits_deblur.py
DATA_DIR ?= $(HOME)/tensorflow_datasets

# $(call works,python,minor): it runs, is 3.minor or newer, and can make environments.
works = $(1) -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, $(2)))' 2>/dev/null

# Newest first. Each is tried, for a name on the path may be a shim with nothing behind it.
PYENV := $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions
PYTHON_NEWEST ?= $(shell for minor in 14 13 12; do \
	for python in python3.$$minor $$(ls -d $(PYENV)/3.$$minor.*[0-9]/bin/python 2>/dev/null | sort -rV); do \
	if $(call works,$$python,12); then echo $$python; exit; fi; done; done)

define check_python
@$(call works,$(PYTHON),11) || { echo "error: $(PYTHON) is no working Python 3.11 or newer that \
	has venv; name one with make PYTHON=..." >&2; exit 1; }
endef

# $(call install,what): the environment of $@, the file that says that it was completed. Without
# that file (none yet, or the installation was interrupted) it is made from nothing.
define install
$(check_python)
@echo "installing into $(@D), once, for some minutes: pip install $(1)"
@test -e $@ || $(PYTHON) -m venv --clear $(@D)
@$(@D)/bin/pip install --quiet --disable-pip-version-check $(1)
@touch $@
endef

define run_suite
@$(BIN)/python -c 'import platform, importlib.metadata as m; print("Python", \
	platform.python_version(), *(f"{n} {m.version(n)}" for n in ("jax", "flax", "numpy")))'
$(BIN)/python -m pytest -n 2 -m "not soak and not pods"
endef

.PHONY: help demo overfit test test-newest suite soak soak-audit soak-kills pods bench prepare clean environment

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

demo: environment ## train, sample and judge a deblurring of handwritten digits, in minutes
	$(BIN)/python -m experiments.train --config=experiments/configs/digits_deblur.py --workdir=$(DEMO)
	$(BIN)/python -m experiments.sample --workdir=$(DEMO)
	$(BIN)/python -m experiments.evaluate --workdir=$(DEMO)

overfit: environment ## learn eight images by heart in a minute, or say what is broken: CONFIG=...
	$(BIN)/python -m experiments.train --config=$(CONFIG) --config.data.limit=8 \
	--config.train.steps=300 --config.train.loss=l2 --config.train.perturbation=0 \
	--workdir=runs/overfit

test: environment ## ruff, mypy and the whole test suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(run_suite)

test-newest: ## the test suite under the newest Python and the newest jax, in .venv-newest
	@python='$(PYTHON_NEWEST)'; \
	if [ -z "$$python" ]; then echo "test-newest: SKIPPED, nothing was tested: no working Python \
	3.12 or newer on this machine; name one with make test-newest PYTHON_NEWEST=..."; \
	elif $(call works,$$python,12); then \
	$(MAKE) --no-print-directory suite VENV=.venv-newest PYTHON="$$python"; \
	else echo "error: PYTHON_NEWEST=$$python is no working Python 3.12 or newer that has venv" >&2; \
	exit 1; fi

suite: environment
	$(run_suite)

soak: environment ## the tests that take minutes and have no target of their own
	timeout 15m $(BIN)/python -m pytest -n 2 -m soak \
	--ignore=tests/kills_test.py --ignore=tests/audit_test.py

soak-audit: environment ## the audit over planted bugs, young and grown, in a quarter of an hour
	timeout 15m $(BIN)/python -m pytest -n 2 -m soak tests/audit_test.py

soak-kills: environment ## twenty times kill -9 at random moments of a training, in minutes
	timeout 15m $(BIN)/python -m pytest -m soak tests/kills_test.py

pods: environment ## two hosts that train, stop and die, as processes over loopback, in minutes
	timeout 15m $(BIN)/python -m pytest -m pods

bench: environment ## times against what was promised and against others, on a quiet machine, in minutes
	$(BIN)/python -m experiments.benchmark --output=docs/results/benchmark

# TFDS builds a data set with TensorFlow, once, in an environment of its own; diffjax
# reads the result without it.
prepare: .venv-prepare/installed ## build a TFDS data set: DATASET=mnist DATA_DIR=~/tensorflow_datasets
	.venv-prepare/bin/tfds build $(DATASET) --file_format=array_record --data_dir=$(DATA_DIR)

clean: ## remove the environments
	rm -rf .venv .venv-newest .venv-prepare

# A Python named on the command line is the one that must be behind an environment that exists.
environment: $(VENV)/installed
ifeq ($(origin PYTHON),command line)
	$(check_python)
	@test "$$($(PYTHON) -V)" = "$$($(BIN)/python -V)" || { echo "error: $(VENV) holds \
	$$($(BIN)/python -V), and $(PYTHON) is $$($(PYTHON) -V); rm -r $(VENV) to change" >&2; exit 1; }
endif

$(VENV)/installed: requirements.txt
	$(call install,-r requirements.txt)

.venv-prepare/installed:
	$(call install,tensorflow tensorflow-datasets array-record)
