# Two commands: `make demo` and `make test`. Both set themselves up; see README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Most of the tests' time is waiting for processes, so two at once fit on two cores.
WORKERS ?= 2
ROOMS := tui daemon engine data safety versions

.PHONY: setup demo test lint format bench torture clean types

setup: $(STAMP)

# pip reads the pins from constraints.txt, so that everyone runs what was tested.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "trainer-tui needs Python 3.11 or newer; try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: setup
	@$(BIN)/trainer-tui demo

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# mypy and import-linter want to see one package; the rooms are linked into one below build/.
types:
	@rm -rf build/types && mkdir -p build/types/trainer_tui/queue
	@touch build/types/trainer_tui/__init__.py build/types/trainer_tui/queue/__init__.py
	@for room in $(ROOMS); do ln -s ../../../$$room build/types/trainer_tui/$$room; done
	@for file in queue/*.py; do ln -s ../../../../$$file build/types/trainer_tui/queue/; done

lint: setup types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p trainer_tui
	cd build/types && PYTHONPATH=. ../../$(BIN)/lint-imports --config ../../pyproject.toml --no-cache

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m benchmarks.run

torture: setup
	$(BIN)/python -m pytest tests/torture --torture $(PYTEST_ARGS)

clean:
	rm -rf build demo *.egg-info .mypy_cache .ruff_cache .pytest_cache
