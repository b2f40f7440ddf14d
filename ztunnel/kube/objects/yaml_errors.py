# SPDX-License-Identifier: Apache-2.0
"""What PyYAML raises for text that is not valid.

Its constructors of scalars do not check what a tag is applied to: `!!int ""` raises IndexError,
`!!bool x` KeyError, `!!timestamp x` AttributeError.
"""

from __future__ import annotations

from typing import Final

import yaml

YAML_ERRORS: Final = (
    yaml.YAMLError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    OverflowError,
    RecursionError,
)
