# SPDX-License-Identifier: Apache-2.0
"""The agent's local and remote admin API, health endpoints and metrics page."""
