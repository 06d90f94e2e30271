# Everything lives in .venv in this folder. `make` alone lists what there is.
#   make demo PORT=8000 NO_BROWSER=1
#   make test TORCH="torch==2.8.0"    (another torch than the pinned one)
PYTHON ?= python3
PORT   ?= 7860
BUDGET ?= 60m
TORCH  ?= torch -c constraints.txt
TESTS  ?= tests notebooks
WORKERS ?= 2

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --disable-pip-version-check
OPEN := $(if $(filter-out 0,$(NO_BROWSER)),--no-browser)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

help:
	@echo "make demo    open the live canvas on http://127.0.0.1:$(PORT)"
	@echo "make test    install everything and run every test"
	@echo "make bench   speed of the tiny model here       make eval   its quality on held-out clips"
	@echo "make train   train the tiny model from nothing  (BUDGET=$(BUDGET))"
	@echo "make lint    ruff    make notebooks  run them all and keep their outputs    make clean  forget .venv"

demo: $(VENV)/demo.stamp
	$(BIN)/msk demo --host 127.0.0.1 --port $(PORT) $(OPEN)

test: lint
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE \
	    $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --nbmake --nbmake-timeout=300 $(TESTS)

lint: $(VENV)/all.stamp
	$(BIN)/ruff check .

bench eval: $(VENV)/all.stamp
	$(BIN)/msk $@

# run every notebook from top to bottom and keep its (small) outputs
notebooks: $(VENV)/all.stamp
	$(BIN)/jupytext --to ipynb --update notebooks/[0-9]*.py
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.store_widget_state=False \
	    notebooks/[0-9]*.ipynb
	$(BIN)/python notebooks/lighten.py notebooks/[0-9]*.ipynb

train: $(VENV)/demo.stamp
	$(BIN)/msk train all --preset tiny --budget $(BUDGET)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache

# torch first and by itself, so that what comes later never picks another one
# (one that is named on the command line is asked for again: pip knows whether it is there)
$(VENV)/torch.stamp: constraints.txt $(if $(findstring command,$(origin TORCH)),force)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "msk needs Python 3.11 or newer, $(PYTHON) is `$(PYTHON) --version`: make PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install $(TORCH)
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	touch $@

$(VENV)/demo.stamp: $(VENV)/torch.stamp pyproject.toml
	$(PIP) install -c $(VENV)/constraints.txt -e '.[demo]'
	touch $@

$(VENV)/all.stamp: $(VENV)/torch.stamp pyproject.toml
	$(PIP) install -c $(VENV)/constraints.txt -e '.[all]'
	touch $@ $(VENV)/demo.stamp

.PHONY: force help demo test lint bench eval notebooks train clean
