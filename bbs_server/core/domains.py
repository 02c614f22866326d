"""Domains: who vouches that the desired LRPs of a domain are complete, and until when (desired-lrps.md section 11)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bbs_protos import models_pb2 as models

from bbs_server.core.context import Context
from bbs_server.core.outcome import Outcome
from bbs_server.core.records import NEVER, Domain
from bbs_server.core.state import State
from bbs_server.core.texts import column

SECOND = 1_000_000_000
"""In ns."""


def check_upsert(request: models.UpsertDomainRequest) -> list[str]:
    return [] if request.domain else ["Invalid field: domain"]


CHECKS: Mapping[type, Callable[[Any], list[str]]] = {models.UpsertDomainRequest: check_upsert}


def upsert(state: State, request: models.UpsertDomainRequest, context: Context) -> Outcome:
    """Declare the domain fresh for `ttl` seconds from now, or for ever if that is 0."""
    expire_time = context.now + request.ttl * SECOND if request.ttl else NEVER
    state.domains.put(Domain(column(request.domain), expire_time))
    return Outcome(models.UpsertDomainResponse())


def list_fresh(state: State, request: object, context: Context) -> models.DomainsResponse:
    """The names of the domains that are fresh; the request is not looked at.

    Quirk: the clock is rounded to the nearest second. Expired domains stay until convergence prunes them.
    """
    now = rounded(context.now)
    return models.DomainsResponse(domains=[domain.domain for domain in state.domains if domain.expire_time > now])


def rounded(now: int) -> int:
    """The nearest full second, halves up, in ns."""
    return (now + SECOND // 2) // SECOND * SECOND
