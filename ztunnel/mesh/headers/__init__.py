# SPDX-License-Identifier: Apache-2.0
"""Codecs of the HBONE request headers: baggage, forwarded, connect-udp."""
