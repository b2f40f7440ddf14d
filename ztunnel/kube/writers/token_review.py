# SPDX-License-Identifier: Apache-2.0
"""Authenticates ServiceAccount tokens with the API server's TokenReview. Blocking calls."""

from __future__ import annotations

from typing import Any

from ztunnel.kube.admin_endpoint import ACCOUNT
from ztunnel.kube.client.request import ApiError, send
from ztunnel.kube.constants import service_account_user

_PATH = "/apis/authentication.k8s.io/v1/tokenreviews"


class TokenReviewer:
    """Accepts tokens of one ServiceAccount in `namespace`."""

    def __init__(self, client: Any, namespace: str) -> None:
        self._client = client
        self._user = service_account_user(namespace, ACCOUNT)

    def refusal(self, token: str, audience: str) -> str:
        """Why a token is rejected; empty if the API server confirms every required property."""
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        }
        try:
            answer = send(self._client, "POST", _PATH, body=review) or {}
        except ApiError as error:
            return f"the agent cannot review tokens: {error}"
        status = answer.get("status") or {}
        user = status.get("user")
        if not (status.get("authenticated") is True and user):
            return "the API server rejected the token: it is invalid, or issued for another agent"
        if audience not in (status.get("audiences") or []):
            return "the token is not issued for this agent"
        if user.get("username") != self._user:
            return f"the token belongs to {user.get('username')!r}, want {self._user!r}"
        return ""
