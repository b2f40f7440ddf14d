# SPDX-License-Identifier: Apache-2.0
"""The gateway process follows the file with Istio's MeshConfig."""

from __future__ import annotations

from pathlib import Path

import pytest

from ztunnel.gateway.mesh_config import MAX_BYTES, MeshConfigError, MeshConfigFile, parse


def test_changes_are_reported_once_and_invalid_content_is_not(tmp_path: Path) -> None:
    path = tmp_path / "mesh"
    seen: list[object] = []
    file = MeshConfigFile(path, seen.append)
    file.poll()
    path.write_text("extensionProviders: []")
    file.poll()
    file.poll()
    path.write_text("a: [")
    file.poll()
    path.write_text("accessLogFile: /dev/stdout")
    file.poll()
    path.unlink()
    file.poll()
    assert seen == [{}, {"extensionProviders": []}, {"accessLogFile": "/dev/stdout"}, {}]


@pytest.mark.parametrize(
    "text", [b"[1]", b"{", b"\xff\xfe\x00", b" " * (MAX_BYTES + 1), b"a: &a [*a"]
)
def test_content_that_is_no_mapping_is_rejected(text: bytes) -> None:
    with pytest.raises(MeshConfigError):
        parse(text)
