# Everything starts here: `make demo` trains and shows a small model, `make test` checks the library.
PYTHON ?= python3
VENV ?= .venv
SEEDS ?= 1
FOLDER ?=
WORKERS ?= 2

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FRESH := build/release
EXTRAS := dev,media,train,search,serve,chat,eval
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS)
OLD_PYTHON := Plait needs Python 3.11 or newer; name one with `make PYTHON=python3.12 setup`

.PHONY: help setup demo test test-all check docs bench bench-search release

help:
	@echo "make setup                          create $(VENV) and install Plait with its extras"
	@echo "make demo [SEEDS=3] [FOLDER=photos] train, evaluate, index, search and write runs/demo/report.html"
	@echo "make test                           set up and run the tests (make test-all adds the slow ones)"
	@echo "make check                          lint, format, types and layout"
	@echo "make docs                           the site, written to site/"
	@echo "make bench                          the benchmarks, written to benchmarks/results"
	@echo "make bench-search                   search among up to a million vectors of 512 and 1536 numbers; 10 GB of disk"
	@echo "make release                        wheel and sdist in dist/, checked, installed afresh, searched with; no upload"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("$(OLD_PYTHON)" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "set-up: Plait and what it needs go into $(VENV); up to 1.9 GB are downloaded, which takes some minutes"
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: setup
	$(BIN)/plait quickstart $(FOLDER) --seeds $(SEEDS)

test: setup
	$(PYTEST) -m "not slow"

test-all: setup
	$(PYTEST)

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell README.md CONTRIBUTING.md CHANGELOG.md docs src examples benchmarks
	$(BIN)/ty check --python $(VENV)
	$(BIN)/python -m pytest tests/test_layout.py

docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/ffn_ways.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/attention_bias.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/branch_memory.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/owl2_decode.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/candidates.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/number_types.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/growth.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/metrics.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/starting.py

bench-search: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/search_latency.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/search_latency.py million --dim 512
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/search_latency.py million --dim 1536

# the wheel is made of the sdist, so what the sdist lacks is missed here; pip gets no word of the source tree
release: setup
	@test -z "$$(git status --porcelain)" || { echo "expected a clean tree to release from; commit or stash first"; exit 1; }
	rm -rf dist $(FRESH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build twine
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv $(FRESH)/venv
	$(FRESH)/venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt "$$(ls dist/*.whl)[media,search]"
	cp -r docs/images $(FRESH)/images
	cd $(FRESH) && venv/bin/plait index add first.lance images --model nano
	cd $(FRESH) && venv/bin/plait search first.lance --text drum -k 3
	@ls dist
