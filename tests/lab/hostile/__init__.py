# SPDX-License-Identifier: Apache-2.0
"""A hostile tenant attacks a mesh while another tenant uses it."""
