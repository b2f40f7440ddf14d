# SPDX-License-Identifier: Apache-2.0
"""The cluster view: the single owner of cluster state."""
