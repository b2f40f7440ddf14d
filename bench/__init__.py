# SPDX-License-Identifier: Apache-2.0
"""Benchmarks. `make bench` runs `python -m bench`; each script measures one component."""
