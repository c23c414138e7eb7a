# Development commands; tools are taken from PATH, so activate the virtual environment first.

.PHONY: check format test bench zoo docs

check:
	ruff format --check
	ruff check
	pyrefly check
	lint-imports
	pytest -n 2

format:
	ruff check --fix
	ruff format

test:
	pytest -n 2

zoo: export OMP_NUM_THREADS ?= 1
zoo:
	pytest -m zoo tests/zoo

bench: export OMP_NUM_THREADS ?= 1
bench:
	python -m benchmarks.rounds
	python -m benchmarks.aggregators
	torchrun --standalone --nproc-per-node 2 -m benchmarks.exchange
	python -m benchmarks.scaling

docs: export OMP_NUM_THREADS ?= 1
docs:
	sphinx-build -W --keep-going -q -j 2 -b html docs docs/_build/html
