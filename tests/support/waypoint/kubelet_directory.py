# SPDX-License-Identifier: Apache-2.0
"""A directory with the content of a Secret, which is replaced as the kubelet does it.

Files are links to `..data/<file>`, and `..data` is a link to a directory with a new name for each
version, renamed into place (k8s.io/kubernetes/pkg/volume/util, atomic_writer.go).
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Mapping
from pathlib import Path


class KubeletDirectory:
    """`path`: where the Secret is mounted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self._numbers = itertools.count(1)
        self._files: dict[str, str] = {}

    def write(self, files: Mapping[str, str]) -> None:
        """Add or replace files."""
        self.replace({**self._files, **files})

    def replace(self, files: Mapping[str, str]) -> None:
        """Set the files, in one step."""
        version = self.path / f"..2026_11_30_{next(self._numbers)}"
        version.mkdir()
        for name, text in files.items():
            (version / name).write_text(text)
        before = (self.path / "..data").resolve()
        fresh = self.path / "..data_tmp"
        os.symlink(version.name, fresh)
        os.rename(fresh, self.path / "..data")
        for name in files.keys() - self._files.keys():
            os.symlink(f"..data/{name}", self.path / name)
        for name in self._files.keys() - files.keys():
            (self.path / name).unlink()
        if before.name != "..data":
            shutil.rmtree(before)
        self._files = dict(files)
