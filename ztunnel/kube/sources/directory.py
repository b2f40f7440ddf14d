# SPDX-License-Identifier: Apache-2.0
"""Feeds a cluster view from a directory of manifests instead of an API server.

    wait for the directory ──▶ watch it ──▶ scan ──▶ synced ──▶ scan after each notification
             ▲                                                        │
             └──────────── the directory was removed or replaced ─────┘

An inotify event only triggers a scan, which compares the signatures of all files and reads those
that changed: a lost event delays an update by a second, but cannot leave a wrong state. Write files
by atomic rename. If a file or the whole directory becomes unreadable, its last content stays in
force: otherwise peers would send plaintext to pods that left the mesh. At the start there is no
last content: an unreadable file delays `synced`, because it may contain a policy.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from watchfiles import awatch
from watchfiles.main import FileChange

from ztunnel.kube.objects.fields import Object, ObjectKey
from ztunnel.kube.objects.manifests import SUFFIXES, DocumentError, read_objects
from ztunnel.kube.view.cluster_view import ClusterView

log = structlog.get_logger()

DEBOUNCE_MS = 50  # longest time to collect a burst of changes
QUIET_MS = 20  # without further changes: the burst has ended
RESCAN_INTERVAL_MS = 1000  # also without notifications

Signature = tuple[int, int, int, int]  # inode, size, and both times in ns
UNREADABLE: Signature = (0, 0, 0, 0)  # matches no file: read again at every scan
Content = dict[ObjectKey, Object]


class WatchError(Exception):
    """inotify is not available."""


@dataclass
class Scan:
    """The result of one scan, by file name."""

    signatures: dict[str, Signature] = field(default_factory=dict)
    loaded: dict[str, Content] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


class DirectorySource:
    """Updates `view` from `path`, then calls `on_change`, both in the running loop.

    `synced` is set once the initial content of the directory is in the view.
    """

    def __init__(self, path: Path, view: ClusterView, on_change: Callable[[], None]) -> None:
        self.synced = asyncio.Event()
        self._path = path
        self._cluster_view = view
        self._on_change = on_change
        self._signatures: dict[str, Signature] = {}
        self._contents: dict[str, Content] = {}
        self._files_with: dict[ObjectKey, set[str]] = defaultdict(set)  # file names
        self._applied: Content = {}  # what the view has
        self._errors: dict[str, str] = {}

    async def run(self) -> None:
        """Follow the directory until cancelled."""
        reported = ""
        while True:
            await self._appear()
            try:
                await self._follow()
            except WatchError as error:
                if str(error) != reported:
                    reported = str(error)
                    log.warning(
                        "directory not watched",
                        path=str(self._path),
                        error=reported,
                        note=f"scanning every {RESCAN_INTERVAL_MS} ms",
                        hint="increase the sysctl fs.inotify.max_user_instances",
                    )
                await asyncio.sleep(RESCAN_INTERVAL_MS / 1000)

    def lacks_account(self, namespace: str, name: str) -> bool:
        """Always False: a directory need not contain service accounts."""
        return False

    def errors(self) -> dict[str, str]:
        """Errors by file name: unreadable files, and objects that several files contain."""
        duplicates = {
            name: f"{key} is also in {max(files)}, which takes precedence"
            for key, files in self._files_with.items()
            for name in files - {max(files)}
        }
        return duplicates | self._errors

    def view(self) -> dict[str, Any]:
        """For status: the path, and whether the directory exists."""
        present = self._inode() is not None
        return {"kind": "directory", "path": str(self._path), "present": present}

    async def _appear(self) -> None:
        if self._inode() is None:
            log.warning("waiting for directory", path=str(self._path))
        while self._inode() is None:
            await asyncio.sleep(DEBOUNCE_MS / 1000)

    async def _follow(self) -> None:
        """Scan after each notification, until the directory is replaced."""
        inode, stop = self._inode(), asyncio.Event()
        changes = awatch(
            self._path,
            watch_filter=None,
            debounce=DEBOUNCE_MS,
            step=QUIET_MS,
            rust_timeout=RESCAN_INTERVAL_MS,
            yield_on_timeout=True,
            recursive=False,
            stop_event=stop,
        )
        changed = asyncio.ensure_future(_changed_names(changes))
        try:
            await asyncio.sleep(0)  # watch before the first scan: misses no change
            await self._scan(set())
            while self._inode() == inode:
                names = await asyncio.shield(changed)
                changed = asyncio.ensure_future(_changed_names(changes))
                await self._scan(names)
        finally:
            stop.set()
            await asyncio.gather(changed, return_exceptions=True)
            await changes.aclose()

    async def _scan(self, changed_files: set[str]) -> None:
        known = {name: sig for name, sig in self._signatures.items() if name not in changed_files}
        try:
            scan = await asyncio.to_thread(scan_directory, self._path, known)
        except OSError as error:
            log.warning("directory not readable", path=str(self._path), error=str(error))
            return
        self._signatures = scan.signatures
        self._report(scan)
        changed = self._apply(scan)
        if not self.synced.is_set():
            if self._errors:
                return
            self.synced.set()
            changed = True
        if changed:
            self._on_change()

    def _report(self, scan: Scan) -> None:
        for name, reason in scan.failed.items():
            if self._errors.get(name) != reason:
                log.warning("manifest not readable", path=str(self._path / name), error=reason)
        gone = {name for name in self._errors if name not in scan.signatures}
        unchanged = self._errors.keys() - scan.loaded.keys() - gone
        self._errors = {name: self._errors[name] for name in unchanged} | scan.failed

    def _apply(self, scan: Scan) -> bool:
        """Update the view; deletions first, because their addresses may be reused."""
        vanished: dict[str, Content] = {
            name: {} for name in self._contents if name not in scan.signatures
        }
        touched: set[ObjectKey] = set()
        for name, content in (vanished | scan.loaded).items():
            touched |= self._replace(name, content)
        wanted = {key: self._effective(key) for key in sorted(touched)}
        gone = [key for key, obj in wanted.items() if obj is None and key in self._applied]
        for key in gone:
            del self._applied[key]
            self._cluster_view.delete(*key)
        fresh = {
            key: obj
            for key, obj in wanted.items()
            if obj is not None and obj != self._applied.get(key)
        }
        for obj in fresh.values():
            self._cluster_view.upsert(obj)
        self._applied |= fresh
        return bool(gone or fresh)

    def _replace(self, name: str, content: Content) -> set[ObjectKey]:
        """Store a file's new content; returns the keys of its old and new objects."""
        touched = self._contents.pop(name, {}).keys() | content.keys()
        for key in touched:
            self._files_with[key].discard(name)
        for key in content:
            self._files_with[key].add(name)
            if len(self._files_with[key]) > 1:
                log.warning(
                    "object in several files", object=str(key), files=sorted(self._files_with[key])
                )
        if content:
            self._contents[name] = content
        return touched

    def _effective(self, key: ObjectKey) -> Object | None:
        """The object from the last file by name; None if no file contains it."""
        if self._files_with[key]:
            return self._contents[max(self._files_with[key])][key]
        del self._files_with[key]
        return None

    def _inode(self) -> int | None:
        try:
            return self._path.stat().st_ino if self._path.is_dir() else None
        except OSError:
            return None


async def _changed_names(changes: AsyncGenerator[set[FileChange], None]) -> set[str]:
    try:
        return {os.path.basename(path) for _, path in await anext(changes)}
    except (OSError, RuntimeError) as error:  # watchfiles raises RuntimeError
        raise WatchError(str(error)) from error


def scan_directory(path: Path, known: Mapping[str, Signature]) -> Scan:
    """List the manifests of a directory and read those whose signature is not in `known`.

    Raises OSError if the directory cannot be listed.
    """
    scan = Scan()
    with os.scandir(path) as entries:
        names = sorted(entry.name for entry in entries if _is_manifest(entry.name))
    for name in names:
        _scan_file(path / name, known.get(name), scan)
    return scan


def _scan_file(path: Path, known: Signature | None, scan: Scan) -> None:
    try:
        stat = path.stat()
        signature = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if signature != known:
            scan.loaded[path.name] = read_objects(path)
    except FileNotFoundError:
        return  # removed since it was listed
    except DocumentError as error:
        scan.failed[path.name] = str(error)
    except OSError as error:
        scan.failed[path.name] = str(error)
        signature = UNREADABLE
    scan.signatures[path.name] = signature


def _is_manifest(name: str) -> bool:
    """Dot files are temporary: writers rename them when they are complete."""
    return not name.startswith(".") and os.path.splitext(name)[1] in SUFFIXES
