# SPDX-License-Identifier: Apache-2.0
"""The BPF programs and maps: loader, links, map access, events and statistics."""
