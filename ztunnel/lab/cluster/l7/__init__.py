# SPDX-License-Identifier: Apache-2.0
"""The controllers of a lab for objects that configure L7."""
