# SPDX-License-Identifier: Apache-2.0
"""The proxies that we are measured beside."""
