# All of these set up what they need: a virtual environment in .venv with pinned packages.
PYTHON ?= python3
EPISODES ?= 400
ARGS ?=

.PHONY: install search test
install: .venv/ready

search: .venv/ready
	.venv/bin/nas-search --episodes $(EPISODES) $(ARGS)

test: .venv/ready
	.venv/bin/pytest -n 2 --dist loadfile $(ARGS)

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; give one with PYTHON=")'
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	.venv/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch .venv/ready

.PHONY: docs
docs: .venv/ready
	.venv/bin/python docs/reference.py
	.venv/bin/zensical build --strict

# Pin anew after a change of dependencies in pyproject.toml (needs uv).
.PHONY: lock
lock:
	uv pip compile pyproject.toml --extra dev --extra studies --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --no-annotate --output-file requirements.lock
