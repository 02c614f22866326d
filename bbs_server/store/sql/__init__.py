"""Every statement of the store by name: one file per table, `-- name:` lines between statements."""

from __future__ import annotations

from importlib.resources import files


def _sections(file: str) -> dict[str, str]:
    text = (files(__package__) / f"{file}.sql").read_text()
    return {
        name.strip(): statement.strip()
        for name, _, statement in (part.partition("\n") for part in text.split("-- name:")[1:])
    }


STATEMENTS: dict[str, dict[str, str]] = {
    file: _sections(file) for file in ("domains", "tasks", "desired_lrps", "actual_lrps", "configurations")
}
