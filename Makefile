# Development commands; tools are taken from PATH, so activate the virtual environment first.

.PHONY: check format test bench zoo

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
