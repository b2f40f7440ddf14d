# SPDX-License-Identifier: Apache-2.0
"""The exception of the lab's public interface."""


class LabError(Exception):
    """What failed, what was found and, after `hint: `, what to do. `ztctl lab` prints it."""
