# SPDX-License-Identifier: Apache-2.0
"""The commands of ztctl: one module or package for each."""
