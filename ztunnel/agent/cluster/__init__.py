# SPDX-License-Identifier: Apache-2.0
"""What the agent reads from and writes to the cluster: configuration, certificates, pod status."""
