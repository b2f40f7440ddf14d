# SPDX-License-Identifier: Apache-2.0
"""ztunnel: an ambient service mesh for Linux nodes.

Layers, lowest first; each imports only what stands below it (checked by
import-linter, see pyproject.toml):

    mesh → hbone → link / datapath / identity / telemetry → proxy / kube → agent → lab, cli
"""

__version__ = "0.1.0"
