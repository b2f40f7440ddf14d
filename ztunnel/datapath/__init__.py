# SPDX-License-Identifier: Apache-2.0
"""The BPF data path: programs and maps, sockets in pods, node requirements."""
