# SPDX-License-Identifier: Apache-2.0
"""The index of decision records, from the head of each."""

from __future__ import annotations

import re

from scripts.docgen.markdown import ROOT, table

_HEAD = re.compile(r"\A# (\d{4}): (.+)\n\nStatus: (.+?)\. Date: (\d{4}-\d{2}-\d{2})\.\n")


def index() -> str:
    """A row for each record; raises ValueError for one without the usual head."""
    rows = []
    for path in sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md")):
        match = _HEAD.match(path.read_text(encoding="utf-8"))
        if match is None or not path.name.startswith(match[1]):
            raise ValueError(f"{path}: no head `# NNNN: title`, `Status: .... Date: YYYY-MM-DD.`")
        number, title, status, date = match.groups()
        rows.append((f"[{number}]({path.name})", title, status, date))
    return table(("record", "decision", "status", "date"), rows)
