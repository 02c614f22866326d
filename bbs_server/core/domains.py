"""Domains: who vouches that the desired LRPs of a domain are complete, and until when (desired-lrps.md section 11)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bbs_protos import models_pb2 as models

from bbs_server.core.context import Context
from bbs_server.core.outcome import Outcome
from bbs_server.core.problems import invalid
from bbs_server.core.records import NEVER, Domain
from bbs_server.core.state import State
from bbs_server.core.texts import column
from bbs_server.core.times import SECOND, rounded


def check_upsert(request: models.UpsertDomainRequest) -> list[str]:
    return [] if request.domain else [invalid("domain")]


CHECKS: Mapping[type, Callable[[Any], list[str]]] = {models.UpsertDomainRequest: check_upsert}


def upsert(state: State, request: models.UpsertDomainRequest, context: Context) -> Outcome:
    """Declare the domain fresh for `ttl` seconds from now, or for ever if that is 0."""
    expire_time = context.now + request.ttl * SECOND if request.ttl else NEVER
    state.domains.put(Domain(column(request.domain), expire_time))
    return Outcome(models.UpsertDomainResponse())


def list_fresh(state: State, request: object, context: Context) -> models.DomainsResponse:
    """The names of the domains that are fresh; the request is not looked at."""
    return models.DomainsResponse(domains=fresh(state, context.now))


def fresh(state: State, now: int) -> tuple[str, ...]:
    """The names of the domains that are fresh.

    Quirk: the clock is rounded to the nearest second. Expired domains stay until convergence prunes them.
    """
    by_then = rounded(now)
    return tuple([domain.domain for domain in state.domains if domain.expire_time > by_then])
