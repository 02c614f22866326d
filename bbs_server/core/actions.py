"""Actions: which member of the wrapper counts, and what is wrong with it (definitions.md section 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bbs_protos import models_pb2 as models

from bbs_server.core.checksums import check_checksum
from bbs_server.core.problems import invalid

KINDS = (
    "download_action",
    "upload_action",
    "run_action",
    "timeout_action",
    "emit_progress_action",
    "try_action",
    "parallel_action",
    "serial_action",
    "codependent_action",
)
"""Members of an Action in the order in which they count: the first one present is the effective one."""

Finding = str | models.Action
"""A problem, or a nested action whose problems belong here."""


def effective_kind(action: models.Action) -> str | None:
    """Name of the effective member, None for a wrapper without any (definitions.md 4.1)."""
    for kind in KINDS:
        if action.HasField(kind):  # type: ignore[arg-type]
            return kind
    return None


def check_action(action: models.Action) -> list[str]:
    """Problems of an action and all actions in it, depth first. Works for any depth of nesting.

    Quirk: only the effective members are looked at. A nested wrapper without any member is reported as
    at the top (spec/README.md, deviation 1).
    """
    problems: list[str] = []
    pending: list[Finding] = [action]
    while pending:
        finding = pending.pop()
        if isinstance(finding, str):
            problems.append(finding)
        elif kind := effective_kind(finding):
            pending.extend(reversed(_FINDINGS[kind](getattr(finding, kind))))
        else:
            problems.append(invalid("inner-action"))
    return problems


def check_slot(owner: Any, slot: str) -> list[str]:
    """An optional action of an LRP: absent is fine; a bad one is named before its problems."""
    if not owner.HasField(slot):
        return []
    problems = check_action(getattr(owner, slot))
    return [invalid(slot), *problems] if problems else []


def check_main_action(owner: Any) -> list[str]:
    """The member `action` of a task definition, an LRP or a sidecar, which must be there."""
    return check_slot(owner, "action") if owner.HasField("action") else ["invalid action type"]


def _required(message: Any, names: Iterable[str]) -> list[Finding]:
    return [invalid(name) for name in names if not getattr(message, name)]


def _download(action: models.DownloadAction) -> list[Finding]:
    return [*_required(action, ("from", "to", "user")), *check_checksum(action)]


def _upload(action: models.UploadAction) -> list[Finding]:
    return _required(action, ("to", "from", "user"))


def _run(action: models.RunAction) -> list[Finding]:
    return _required(action, ("path", "user"))


def _wrapped(action: models.EmitProgressAction | models.TryAction | models.TimeoutAction) -> list[Finding]:
    return [action.action if action.HasField("action") else invalid("action")]


def _timeout(action: models.TimeoutAction) -> list[Finding]:
    return [*_wrapped(action), *([invalid("timeout_ms")] if action.timeout_ms <= 0 else [])]


def _several(action: models.ParallelAction | models.SerialAction | models.CodependentAction) -> list[Finding]:
    return list(action.actions) or [invalid("actions")]


_FINDINGS: Mapping[str, Callable[[Any], list[Finding]]] = {
    "download_action": _download,
    "upload_action": _upload,
    "run_action": _run,
    "timeout_action": _timeout,
    "emit_progress_action": _wrapped,
    "try_action": _wrapped,
    "parallel_action": _several,
    "serial_action": _several,
    "codependent_action": _several,
}
"""What each kind has to say for itself, in order (definitions.md 4.2)."""
