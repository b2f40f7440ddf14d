# SPDX-License-Identifier: Apache-2.0
"""The gateway process: its link, and the gateway pods that it serves."""
