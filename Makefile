# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` set up what they need by themselves and may be run again and again.

.PHONY: help setup demo test lint bench clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what is missing (Debian packages, .venv)
	@scripts/setup

demo: setup ## bring the two-node lab up, run the main job, show it, take it down
	@scripts/demo

test: setup ## lint and pass the whole suite
	@scripts/test

lint: setup ## only the static checks
	@scripts/lint

bench: setup ## cost of the HBONE codec beside the h2 library
	@.venv/bin/python bench/hbone_codec.py

clean: ## remove the virtual environment and caches (and a lab that is still up)
	@[ ! -x .venv/bin/ztctl ] || .venv/bin/ztctl lab down
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
