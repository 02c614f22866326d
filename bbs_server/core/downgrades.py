"""Definitions as older clients know them (definitions.md section 6).

Every function returns a new message and leaves the one it is given alone. Stored definitions are always
version 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from bbs_protos import models_pb2 as models
from google.protobuf.message import Message

from bbs_server.core.actions import effective_kind
from bbs_server.core.definition_parts import SOURCE_ID
from bbs_server.core.encoding import put_text

M = TypeVar("M", bound=Message)
Text = str | bytes
"""A string of a message; `bytes` only if it is not valid UTF-8."""

_SHARED, _EXCLUSIVE = models.ImageLayer.SHARED, models.ImageLayer.EXCLUSIVE
_NS_PER_MS = 1_000_000
_MS_PER_S = 1_000


def down_convert_task_definition(definition: models.TaskDefinition) -> models.TaskDefinition:
    """Version 3 to 2, which is also what version 0 is for tasks (6.1)."""
    result = _copy(definition)
    _replace_layers(result, "action")
    return result


def down_convert_desired_lrp_v2(lrp: models.DesiredLRP) -> models.DesiredLRP:
    """Version 3 to 2 (6.1)."""
    result = _copy(lrp)
    _replace_layers(result, "setup")
    return result


def down_convert_desired_lrp_v0(lrp: models.DesiredLRP) -> models.DesiredLRP:
    """Version 3 to 0, by way of 2 and 1 (6.1 to 6.3)."""
    result = down_convert_desired_lrp_v2(lrp)
    for slot in ("action", "setup", "monitor"):
        _convert_slot(result, slot)
    result.deprecated_start_timeout_s = (lrp.start_timeout_ms & 0xFFFF_FFFF) // _MS_PER_S
    _replace_dependencies(result)
    return result


def populate_metrics_guid(lrp: models.DesiredLRP) -> models.DesiredLRP:
    """Make `metrics_guid` and the tag `source_id` agree where one of them is missing (6.4, desired-lrps.md 8.1)."""
    result = _copy(lrp)
    if SOURCE_ID in lrp.metric_tags:
        if not lrp.metrics_guid:
            put_text(result, "metrics_guid", lrp.metric_tags[SOURCE_ID].static)
    elif lrp.metrics_guid:
        put_text(result.metric_tags[SOURCE_ID], "static", lrp.metrics_guid)
    return result


# -- version 3 to 2 ----------------------------------------------------------------------


def _replace_layers(definition: Any, slot: str) -> None:
    """Turn shared layers into cached dependencies and exclusive ones into downloads before `slot`."""
    shared = [_dependency(layer) for layer in definition.image_layers if layer.layer_type == _SHARED]
    user = definition.legacy_download_user
    exclusive = [_layer_download(layer, user) for layer in definition.image_layers if layer.layer_type == _EXCLUSIVE]
    if shared:
        shared += [_copy(dependency) for dependency in definition.cached_dependencies]
        del definition.cached_dependencies[:]
        definition.cached_dependencies.extend(shared)
    if exclusive:
        downloads = _parallel(exclusive)
        _set_action(definition, slot, _before(downloads, definition, slot) if definition.HasField(slot) else downloads)
    del definition.image_layers[:]


def _dependency(layer: models.ImageLayer) -> models.CachedDependency:
    algorithm = _algorithm(layer)
    return _build(
        models.CachedDependency(),
        {
            "name": layer.name,
            "from": layer.url,
            "to": layer.destination_path,
            "cache_key": _joined(algorithm, layer.digest_value) if layer.digest_value else layer.url,
            "checksum_algorithm": algorithm,
            "checksum_value": layer.digest_value,
        },
    )


def _layer_download(layer: models.ImageLayer, user: Text) -> models.DownloadAction:
    algorithm = _algorithm(layer)
    return _build(
        models.DownloadAction(),
        {
            "artifact": layer.name,
            "from": layer.url,
            "to": layer.destination_path,
            "cache_key": _joined(algorithm, layer.digest_value),
            "user": user,
            "checksum_algorithm": algorithm,
            "checksum_value": layer.digest_value,
        },
    )


def _algorithm(layer: models.ImageLayer) -> str:
    """Lower-case name of the digest algorithm; none for 0, the number for one that has no name."""
    number = layer.digest_algorithm
    value = models.ImageLayer.DESCRIPTOR.enum_types_by_name["DigestAlgorithm"].values_by_number.get(number)
    if number == 0:
        return ""
    return value.name.lower() if value else str(number)


# -- version 1 to 0 ----------------------------------------------------------------------


def _convert_slot(lrp: Any, slot: str) -> None:
    """Convert one of the actions of an LRP; nothing is left of wrappers around nothing."""
    if not lrp.HasField(slot):
        return
    converted = _convert(getattr(lrp, slot))
    if converted is None:
        lrp.ClearField(slot)
    else:
        _set_action(lrp, slot, converted)


def _convert(action: models.Action) -> models.Action | None:
    """An action as version 0 knows it, None for a wrapper around nothing. Works for any depth of nesting."""
    root = _unwrapped(action)
    if root is None:
        return None
    root = _copy(root)
    pending = [root]
    while pending:
        current = pending.pop()
        kind = effective_kind(current)
        if convert := _CONVERSIONS.get(kind or ""):
            current.CopyFrom(only_effective(current))
            pending += convert(getattr(current, kind or ""))
    return root


def _unwrapped(action: models.Action) -> models.Action | None:
    """Quirk: emit_progress and try vanish, what they wrap takes their place."""
    while (kind := effective_kind(action)) in ("emit_progress_action", "try_action"):
        wrapper = getattr(action, kind)
        if not wrapper.HasField("action"):
            return None
        action = wrapper.action
    return action


def _convert_timeout(timeout: models.TimeoutAction) -> list[models.Action]:
    """Quirk: the action inside is not visited."""
    timeout.deprecated_timeout_ns = _int64(timeout.timeout_ms * _NS_PER_MS)
    return []


def _convert_several(
    several: models.ParallelAction | models.SerialAction | models.CodependentAction,
) -> list[models.Action]:
    """Unwrap the elements; they are still to be converted themselves."""
    for element in several.actions:
        unwrapped = _unwrapped(element)
        if unwrapped is not element:
            element.CopyFrom(models.Action() if unwrapped is None else _copy(unwrapped))
    return list(several.actions)


_CONVERSIONS: Mapping[str, Callable[[Any], list[models.Action]]] = {
    "timeout_action": _convert_timeout,
    "parallel_action": _convert_several,
    "serial_action": _convert_several,
    "codependent_action": _convert_several,
}
"""Conversions in place, by kind; each returns the actions in it that have to be converted next."""


def _replace_dependencies(lrp: models.DesiredLRP) -> None:
    """Turn cached dependencies into downloads before the setup. Quirk: their checksums are lost."""
    if not lrp.cached_dependencies:
        return
    downloads = _parallel([_dependency_download(entry, lrp.legacy_download_user) for entry in lrp.cached_dependencies])
    _set_action(lrp, "setup", _before(downloads, lrp, "setup"))
    del lrp.cached_dependencies[:]


def _dependency_download(dependency: models.CachedDependency, user: Text) -> models.DownloadAction:
    return _build(
        models.DownloadAction(),
        {
            "artifact": dependency.name,
            "from": getattr(dependency, "from"),
            "to": dependency.to,
            "cache_key": dependency.cache_key,
            "log_source": dependency.log_source,
            "user": user,
        },
    )


# -- building messages -------------------------------------------------------------------
# Only by CopyFrom: constructors, `append` and `extend` refuse what is nested more than 100 levels deep, and a
# downgrade adds levels to definitions that may have as many as decoding allows.


def only_effective(action: models.Action) -> models.Action:
    """A copy of an action with its effective member only."""
    result = models.Action()
    if kind := effective_kind(action):
        member = getattr(result, kind)
        member.SetInParent()
        member.CopyFrom(getattr(action, kind))
    return result


def _parallel(downloads: list[models.DownloadAction]) -> models.Action:
    return models.Action(
        parallel_action=models.ParallelAction(actions=[models.Action(download_action=each) for each in downloads])
    )


def _before(first: models.Action, owner: Any, slot: str) -> models.Action:
    """A serial action: `first`, then what is in `slot`, if anything, with its effective member only."""
    result = models.Action()
    result.serial_action.actions.add().CopyFrom(first)
    if owner.HasField(slot):
        result.serial_action.actions.add().CopyFrom(only_effective(getattr(owner, slot)))
    return result


def _set_action(owner: Any, slot: str, action: models.Action) -> None:
    getattr(owner, slot).SetInParent()
    getattr(owner, slot).CopyFrom(action)


def _build(message: M, texts: Mapping[str, Text]) -> M:
    for name, text in texts.items():
        put_text(message, name, text)
    return message


def _joined(algorithm: str, digest: Text) -> Text:
    prefix = f"{algorithm}:"
    return prefix + digest if isinstance(digest, str) else prefix.encode() + digest


def _int64(number: int) -> int:
    """Wrap around as a signed 64-bit integer does."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def _copy(message: M) -> M:
    result = type(message)()
    result.CopyFrom(message)
    return result
