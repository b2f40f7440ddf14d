# SPDX-License-Identifier: Apache-2.0
"""Discovers, enrolls and unenrolls the pods of this node."""
