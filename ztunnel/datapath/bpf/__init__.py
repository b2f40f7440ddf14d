# SPDX-License-Identifier: Apache-2.0
"""Loads, pins and reads the BPF programs and maps."""
