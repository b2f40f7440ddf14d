# SPDX-License-Identifier: Apache-2.0
"""Parses manifest files: YAML or JSON, one or several documents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ztunnel.kube.objects.fields import Object, ObjectKey, TranslateError, is_mesh_kind, key_of
from ztunnel.kube.objects.yaml_errors import YAML_ERRORS

SUFFIXES = frozenset({".yaml", ".yml", ".json"})
# libyaml's loader is about ten times faster, but PyYAML may be built without it
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class DocumentError(ValueError):
    """A file cannot be parsed, or contains something other than Kubernetes objects."""


def read_objects(path: Path) -> dict[ObjectKey, Object]:
    """The objects of kinds that the mesh uses, by key; of duplicates the last one.

    Raises DocumentError, and OSError if the file cannot be opened.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except ValueError as error:
        raise _unreadable(path.name, error) from error
    return parse_objects(text, path.name)


def parse_objects(text: str, name: str) -> dict[ObjectKey, Object]:
    """Like `read_objects`, for text; `name` is the file's name. Raises DocumentError."""
    try:
        is_json = name.endswith(".json")
        documents = _json(text) if is_json else yaml.load_all(text, Loader=_LOADER)
        return {key_of(obj): obj for document in documents for obj in _unpacked(document)}
    except (TranslateError, DocumentError) as error:
        raise DocumentError(f"{name}: {error}") from error
    except YAML_ERRORS as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> DocumentError:
    return DocumentError(f"{name} is not valid YAML or JSON: {' '.join(str(error).split())}")


def _unpacked(document: Any) -> Iterator[Object]:
    """The objects of a document, or of a `List`; without kinds that the mesh does not use."""
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
    elif is_mesh_kind(document):
        yield document


def _json(text: str) -> Iterator[Any]:
    decoder, text = json.JSONDecoder(), text.strip()
    while text:
        document, end = decoder.raw_decode(text)
        yield document
        text = text[end:].lstrip()
