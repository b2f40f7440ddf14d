# SPDX-License-Identifier: Apache-2.0
"""L4 authorization: policy model, index and engine."""
