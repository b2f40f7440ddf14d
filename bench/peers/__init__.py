# SPDX-License-Identifier: Apache-2.0
"""The proxies that ztunnel is compared with."""
