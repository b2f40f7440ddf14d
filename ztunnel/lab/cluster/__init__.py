# SPDX-License-Identifier: Apache-2.0
"""The parts of Kubernetes that the lab emulates: controllers, scheduler, kube-proxy, DNS."""
