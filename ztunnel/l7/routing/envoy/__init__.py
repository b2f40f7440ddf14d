# SPDX-License-Identifier: Apache-2.0
"""The resources of Envoy, from routes and destinations."""
