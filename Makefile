# SPDX-License-Identifier: Apache-2.0
# Entry points of this project, for root on Debian 12. Every target installs what it needs and is safe to repeat.

.PHONY: help setup demo test test-all conformance lint bench clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo         start a lab of two nodes, show the main features, remove the lab'
	@echo 'make test         style, types, layers, unit, BPF and lab tests: what needs no Kubernetes'
	@echo 'make test-all     the same, then tests with a real API server and real kubelets'
	@echo 'make conformance  run the Gateway API conformance tests on real kubelets; write docs/conformance.md'
	@echo 'make lint         style, types, layers, documentation'
	@echo 'make bench        measure ztunnel beside Envoy, HAProxy and nginx; BENCH=quick takes six minutes'
	@echo 'make setup        install dependencies only: apt packages, the rest into .venv'
	@echo 'make clean        remove .venv and caches; apt packages stay'

setup:
	@scripts/setup

demo: setup
	@scripts/demo

test:
	@scripts/setup test
	@scripts/test

test-all:
	@scripts/setup test-all
	@scripts/test all

conformance:
	@scripts/setup test-all
	@scripts/conformance

lint:
	@scripts/setup test
	@scripts/lint

bench:
	@scripts/setup bench
	@.venv/bin/python -m bench
	@.venv/bin/python -m bench.l7
	@.venv/bin/python -m bench.gateway

clean:
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
