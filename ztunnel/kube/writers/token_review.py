# SPDX-License-Identifier: Apache-2.0
"""Asks the API server whose token one was shown. Blocking calls, for a thread."""

from __future__ import annotations

import json
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from ztunnel.kube.admin_endpoint import ACCOUNT
from ztunnel.kube.constants import user_of

TIMEOUT = (5.0, 10.0)  # seconds to connect, to answer


class TokenReviewer:
    """By a client of the caller's. `namespace` is where the account is."""

    def __init__(self, api: Any, namespace: str) -> None:
        self._api = client.AuthenticationV1Api(api)
        self._user = user_of(namespace, ACCOUNT)

    def refusal(self, token: str, audience: str) -> str:
        """Why a token does not open; empty when it does, or rather: not unless it truly does."""
        spec = client.V1TokenReviewSpec(token=token, audiences=[audience])
        try:
            answer = self._api.create_token_review(
                client.V1TokenReview(spec=spec), _request_timeout=TIMEOUT
            )
        except ApiException as error:
            return f"the agent can't have tokens reviewed: {error.status}: {_said(error)}"
        except (HTTPError, OSError) as error:
            return f"the agent can't have tokens reviewed: {' '.join(str(error).split())}"
        status = answer.status
        if not (status and status.authenticated and status.user):
            return "the API server does not know the token: it is invalid, or for another agent"
        if audience not in (status.audiences or []):
            return "the token is not for this agent"
        if status.user.username != self._user:
            return f"the token is {status.user.username!r}'s; it must be {self._user!r}'s"
        return ""


def _said(error: ApiException) -> str:
    try:
        return str(json.loads(error.body or "")["message"])
    except (ValueError, TypeError, KeyError):
        return str(error.reason)
