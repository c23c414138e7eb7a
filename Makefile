# Development commands; tools are taken from PATH, so activate the virtual environment first.

.PHONY: check format test bench zoo docs package newest

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

package:
	python -m build
	twine check --strict dist/*
	check-wheel-contents dist/*.whl

# The tests on the newest of what the package stands on, in an environment of its own, .newest, which is made anew. torch stays
# below the package's bound unless WITH says otherwise, as in `make newest WITH='torch==2.14.1' TESTS=tests/updates`.
newest:
	python3 -m venv --clear .newest
	.newest/bin/pip install -e '.[test]'
	.newest/bin/pip install --upgrade lightning torchmetrics datasets 'jsonargparse[signatures]' $(WITH)
	.newest/bin/pip list | grep -E '^(torch|lightning|torchmetrics|datasets|jsonargparse) '
	.newest/bin/python -m pytest -n 2 $(TESTS)

bench: export OMP_NUM_THREADS ?= 1
bench:
	python -m benchmarks.rounds
	python -m benchmarks.aggregators
	torchrun --standalone --nproc-per-node 2 -m benchmarks.exchange
	python -m benchmarks.scaling

docs: export OMP_NUM_THREADS ?= 1
docs:
	sphinx-build -W --keep-going -q -j 2 -b html docs docs/_build/html
