# SPDX-License-Identifier: Apache-2.0
"""Runs Gateways, and writes the status of the objects that configure L7."""
