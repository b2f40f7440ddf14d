# SPDX-License-Identifier: Apache-2.0
"""DNS message handling for names of the mesh."""
