# SPDX-License-Identifier: Apache-2.0
"""Decides where a connection goes, outbound and inbound."""
