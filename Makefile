# SPDX-License-Identifier: Apache-2.0
# The doors to this project. As root on Debian 12; every target is safe to repeat.

.PHONY: help setup demo test lint bench clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo    install what is missing, bring the lab up, show the main job, take it down'
	@echo 'make test    install what is missing, run the whole suite'
	@echo 'make setup   install what is missing: packages by apt, the rest into .venv'
	@echo 'make lint    style, types, layer contract'
	@echo 'make bench   install peers, measure us beside them; BENCH=quick takes two minutes'
	@echo 'make clean   remove the venv and caches; packages stay'

setup:
	@scripts/setup

demo: setup
	@scripts/demo

test:
	@scripts/setup test
	@scripts/test

lint:
	@scripts/setup test
	@scripts/lint

bench:
	@scripts/setup bench
	@.venv/bin/python -m bench

clean:
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
