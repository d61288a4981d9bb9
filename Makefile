# make demo   train, sample and judge a deblurring of handwritten digits
# make test   the whole test suite
# Both make .venv first if it is not there, and a second call installs nothing.

PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo
DATASET ?= mnist
DATA_DIR ?= $(HOME)/tensorflow_datasets

.PHONY: demo test soak prepare clean

demo: .venv/installed
	$(BIN)/python -m experiments.train --config=experiments/configs/digits_deblur.py --workdir=$(DEMO)
	$(BIN)/python -m experiments.sample --workdir=$(DEMO)
	$(BIN)/python -m experiments.evaluate --workdir=$(DEMO)

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 -m "not soak"

soak: .venv/installed
	timeout 15m $(BIN)/python -m pytest -n 2 -m soak

# TFDS builds a data set with TensorFlow, once, in an environment of its own; diffjax
# reads the result without it.
prepare: .venv-prepare/installed
	.venv-prepare/bin/tfds build $(DATASET) --file_format=array_record --data_dir=$(DATA_DIR)

.venv/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: diffjax needs Python 3.11 or newer; name one with make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv-prepare/installed:
	$(PYTHON) -m venv .venv-prepare
	.venv-prepare/bin/pip install --quiet --disable-pip-version-check tensorflow tensorflow-datasets array-record
	@touch $@

clean:
	rm -rf .venv .venv-prepare
