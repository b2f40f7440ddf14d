# SPDX-License-Identifier: Apache-2.0
"""Typed parsers of the specs of Gateway API and Istio objects, one file per kind."""
