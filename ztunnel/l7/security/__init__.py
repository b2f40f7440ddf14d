# SPDX-License-Identifier: Apache-2.0
"""Policies as filters of Envoy: AuthorizationPolicy, RequestAuthentication."""
