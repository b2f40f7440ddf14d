# SPDX-License-Identifier: Apache-2.0
"""Conditions in the status of Gateway API objects."""
