# SPDX-License-Identifier: Apache-2.0
"""The parts of Kubernetes that the lab emulates: object store, scheduler, services, DNS."""
