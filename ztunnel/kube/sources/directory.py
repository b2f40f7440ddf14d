# SPDX-License-Identifier: Apache-2.0
"""A directory of Kubernetes manifests as the source of a mirror, instead of an API server.

    wait for the directory ──▶ watch it ──▶ scan ──▶ synced ──▶ scan at every hint
             ▲                                                        │
             └──────────── the directory was removed or replaced ─────┘

inotify only hints: what counts is a scan, which compares every file's signature and reads those
that differ. So a lost event costs a second, not a wrong state. Files should appear by atomic
rename. What can't be read leaves what the file said before in force, and so does a directory that
vanishes as a whole: a pod that fell out of the mesh would be spoken to in plaintext. At the start
there is no before: a file that can't be read holds `synced` back, for it may hold a policy.
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

DEBOUNCE = 50  # ms: how long a burst of changes is gathered
STEP = 20  # ms without a further change that end a burst
RESCAN = 1000  # ms between scans that nothing hinted at

Signature = tuple[int, int, int, int]  # inode, size, and both times in ns
UNREAD: Signature = (0, 0, 0, 0)  # no file's: tried again at every scan
Content = dict[ObjectKey, Object]


class WatchError(Exception):
    """inotify can't be had."""


@dataclass
class Scan:
    """What a look at the directory found."""

    signatures: dict[str, Signature] = field(default_factory=dict)
    loaded: dict[str, Content] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


class DirectorySource:
    """Feeds a mirror from `path`; `on_change` is called after it was fed, in the same loop.

    `synced` is set once everything that was there at the start is in the mirror.
    """

    def __init__(self, path: Path, mirror: ClusterView, on_change: Callable[[], None]) -> None:
        self.synced = asyncio.Event()
        self._path = path
        self._mirror = mirror
        self._on_change = on_change
        self._signatures: dict[str, Signature] = {}
        self._contents: dict[str, Content] = {}
        self._holders: dict[ObjectKey, set[str]] = defaultdict(set)  # the files with an object
        self._given: Content = {}  # what the mirror has from us
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
                    mend = f"scanned every {RESCAN} ms; is fs.inotify.max_user_instances too low?"
                    log.warning(
                        "directory not watched", path=str(self._path), error=reported, mend=mend
                    )
                await asyncio.sleep(RESCAN / 1000)

    def lacks_account(self, namespace: str, name: str) -> bool:
        """Never: a directory need not have them."""
        return False

    def errors(self) -> dict[str, str]:
        """What is wrong, by file name: files that can't be read, and objects that are in two."""
        doubles = {
            name: f"{key} is also in {max(holders)}, which counts"
            for key, holders in self._holders.items()
            for name in holders - {max(holders)}
        }
        return doubles | self._errors

    def view(self) -> dict[str, Any]:
        """For status: where it is, and whether it is there."""
        present = self._inode() is not None
        return {"kind": "directory", "path": str(self._path), "present": present}

    async def _appear(self) -> None:
        if self._inode() is None:
            log.warning("waiting for directory", path=str(self._path))
        while self._inode() is None:
            await asyncio.sleep(DEBOUNCE / 1000)

    async def _follow(self) -> None:
        """Scan at every hint, until the directory is another one."""
        inode, stop = self._inode(), asyncio.Event()
        changes = awatch(
            self._path,
            watch_filter=None,
            debounce=DEBOUNCE,
            step=STEP,
            rust_timeout=RESCAN,
            yield_on_timeout=True,
            recursive=False,
            stop_event=stop,
        )
        hint = asyncio.ensure_future(_changed_names(changes))
        try:
            await asyncio.sleep(0)  # lets the watch begin, so that the first scan misses nothing
            await self._scan(set())
            while self._inode() == inode:
                names = await asyncio.shield(hint)
                hint = asyncio.ensure_future(_changed_names(changes))
                await self._scan(names)
        finally:
            stop.set()
            await asyncio.gather(hint, return_exceptions=True)
            await changes.aclose()

    async def _scan(self, hinted: set[str]) -> None:
        known = {name: sig for name, sig in self._signatures.items() if name not in hinted}
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
                log.warning("manifest not read", path=str(self._path / name), error=reason)
        gone = {name for name in self._errors if name not in scan.signatures}
        kept = self._errors.keys() - scan.loaded.keys() - gone
        self._errors = {name: self._errors[name] for name in kept} | scan.failed

    def _apply(self, scan: Scan) -> bool:
        """Hand on what differs: deletions first, for the addresses they free may be reused."""
        vanished: dict[str, Content] = {
            name: {} for name in self._contents if name not in scan.signatures
        }
        touched: set[ObjectKey] = set()
        for name, content in (vanished | scan.loaded).items():
            touched |= self._replace(name, content)
        wanted = {key: self._effective(key) for key in sorted(touched)}
        gone = [key for key, obj in wanted.items() if obj is None and key in self._given]
        for key in gone:
            del self._given[key]
            self._mirror.delete(*key)
        fresh = {
            key: obj
            for key, obj in wanted.items()
            if obj is not None and obj != self._given.get(key)
        }
        for obj in fresh.values():
            self._mirror.upsert(obj)
        self._given |= fresh
        return bool(gone or fresh)

    def _replace(self, name: str, content: Content) -> set[ObjectKey]:
        """Note a file's new content; returns the objects it has, or had."""
        touched = self._contents.pop(name, {}).keys() | content.keys()
        for key in touched:
            self._holders[key].discard(name)
        for key in content:
            self._holders[key].add(name)
            if len(self._holders[key]) > 1:
                log.warning(
                    "object in two files", object=str(key), files=sorted(self._holders[key])
                )
        if content:
            self._contents[name] = content
        return touched

    def _effective(self, key: ObjectKey) -> Object | None:
        """The object as the last file by name has it; None when no file has it any more."""
        if self._holders[key]:
            return self._contents[max(self._holders[key])][key]
        del self._holders[key]
        return None

    def _inode(self) -> int | None:
        try:
            return self._path.stat().st_ino if self._path.is_dir() else None
        except OSError:
            return None


async def _changed_names(changes: AsyncGenerator[set[FileChange], None]) -> set[str]:
    try:
        return {os.path.basename(path) for _, path in await anext(changes)}
    except (OSError, RuntimeError) as error:  # RuntimeError: watchfiles' own, of no public name
        raise WatchError(str(error)) from error


def scan_directory(path: Path, known: Mapping[str, Signature]) -> Scan:
    """List a directory's manifests and read those whose signature is not the known one.

    Raises OSError when the directory itself can't be listed.
    """
    scan = Scan()
    with os.scandir(path) as entries:
        names = sorted(entry.name for entry in entries if _is_manifest(entry.name))
    for name in names:
        _look_at(path / name, known.get(name), scan)
    return scan


def _look_at(path: Path, known: Signature | None, scan: Scan) -> None:
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
        signature = UNREAD
    scan.signatures[path.name] = signature


def _is_manifest(name: str) -> bool:
    """Dot files are somebody's temporary ones, on their way to a rename."""
    return not name.startswith(".") and os.path.splitext(name)[1] in SUFFIXES
