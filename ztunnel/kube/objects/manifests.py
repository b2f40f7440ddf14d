# SPDX-License-Identifier: Apache-2.0
"""The objects in one manifest file, YAML or JSON, of one document or many."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ztunnel.kube.objects.fields import Object, ObjectKey, TranslateError, is_read, key_of

SUFFIXES = frozenset({".yaml", ".yml", ".json"})
# libyaml's loader is some ten times faster; PyYAML may have been built without it
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class DocumentError(ValueError):
    """A file that holds something else than Kubernetes objects, or can't be read."""


def read_objects(path: Path) -> dict[ObjectKey, Object]:
    """The objects the mesh reads, by key; of two with one key the last counts.

    Raises DocumentError, and OSError when the file can't be opened.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except ValueError as error:
        raise _unreadable(path.name, error) from error
    return parse_objects(text, path.name)


def parse_objects(text: str, name: str) -> dict[ObjectKey, Object]:
    """The same of a text; `name` is its file's. Raises DocumentError."""
    try:
        is_json = name.endswith(".json")
        documents = _json(text) if is_json else yaml.load_all(text, Loader=_LOADER)
        return {key_of(obj): obj for document in documents for obj in _unpacked(document)}
    except (TranslateError, DocumentError) as error:
        raise DocumentError(f"{name}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> DocumentError:
    return DocumentError(f"{name} is no YAML or JSON: {' '.join(str(error).split())}")


def _unpacked(document: Any) -> Iterator[Object]:
    """A document's objects, those of a `List` singly; other kinds than the mesh's left out."""
    if document is None:
        return
    if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
        raise DocumentError(f"found {str(document)!r:.60}, want an object with a kind")
    if document["kind"] == "List":
        items = document.get("items") or []
        if not isinstance(items, list):
            raise DocumentError(f"items is {items!r:.60}, want a list")
        for item in items:
            yield from _unpacked(item)
    elif is_read(document):
        yield document


def _json(text: str) -> Iterator[Any]:
    decoder, text = json.JSONDecoder(), text.strip()
    while text:
        document, end = decoder.raw_decode(text)
        yield document
        text = text[end:].lstrip()
