# SPDX-License-Identifier: Apache-2.0
"""Measurements: `make bench` runs `python -m bench`; each script beside it looks at one part."""
