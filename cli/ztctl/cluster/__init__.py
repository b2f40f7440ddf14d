# SPDX-License-Identifier: Apache-2.0
"""What ztctl reads and changes in a cluster: the installation's objects and its API server."""
