# SPDX-License-Identifier: Apache-2.0
"""Measurements: `make bench` runs `python -m bench`; the scripts beside it look at one part each."""
