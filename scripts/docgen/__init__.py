# SPDX-License-Identifier: Apache-2.0
"""Generates the reference pages from the code and checks every documentation page."""
