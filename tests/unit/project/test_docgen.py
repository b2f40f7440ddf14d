# SPDX-License-Identifier: Apache-2.0
"""The checks of the documentation (scripts/docgen) find what they promise to find."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.docgen import checks, cli, log_events, regions

LOST = "lost.md"  # a page that nothing links to


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only page of a project that has no other."""
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    monkeypatch.setattr(checks, "_mentions", lambda: iter(()))
    (tmp_path / "docs").mkdir()
    return tmp_path / "README.md"


def problems(page: Path, text: str) -> list[str]:
    page.write_text(text, encoding="utf-8")
    return list(checks.problems())


def test_valid_page_has_no_problems(page: Path) -> None:
    text = "# Title\n\n[here](#title), `--lab`\n\n```\nztctl --lab a pod list -o json | head\n```\n"
    assert problems(page, text) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a](missing.md)", "dead link missing.md"),
        ("# Title\n\n[a](#other)", "dead anchor #other"),
        ("see `ztunnel/no_such_module.py`", "no file ztunnel/no_such_module.py"),
        ("use `--no-such-option`", "no option --no-such-option"),
        ("`ztunnel_no_such_metric_total`", "no metric ztunnel_no_such_metric_total"),
        ("the map `zt_no_such_map`", "no BPF name zt_no_such_map"),
        ("```\nztctl pod lst\n```\n", "`ztctl pod lst`: no command lst"),
        ("```\nztctl lab up --nods 3\n```\n", "`ztctl lab up --nods 3`: no option --nods"),
        ("UNDESCRIBED Event", "UNDESCRIBED names"),
    ],
)
def test_problem_is_reported(page: Path, text: str, problem: str) -> None:
    found = problems(page, text)
    assert len(found) == 1
    assert found[0].startswith(f"README.md: {problem}")


def test_page_without_link_to_it_is_reported(page: Path) -> None:
    (page.parent / "docs" / LOST).write_text("# Lost\n", encoding="utf-8")
    assert problems(page, "# Title\n") == [f"docs/{LOST}: no page links to it"]


def test_generated_parts_do_not_depend_on_order_or_time() -> None:
    for generator in (cli.ztctl, cli.ztunnel, log_events.process_table):
        assert generator() == generator()


def test_every_generator_is_used_by_a_page() -> None:
    texts = "\n".join(path.read_text(encoding="utf-8") for path in regions.pages())
    unused = [name for name in regions.GENERATORS if f"<!-- generated: {name};" not in texts]
    assert unused == []
