# SPDX-License-Identifier: Apache-2.0
"""Sources of cluster state: an API server or a directory of manifests."""
