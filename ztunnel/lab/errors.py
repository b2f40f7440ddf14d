# SPDX-License-Identifier: Apache-2.0
"""The one error people see from the lab."""


class LabError(Exception):
    """What was tried, what was found, and what to do about it, in one message."""
