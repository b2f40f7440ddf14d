# SPDX-License-Identifier: Apache-2.0
"""Access to the Kubernetes API: credentials, list and watch, informers."""
