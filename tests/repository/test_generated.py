"""The committed protocol code is what scripts/generate makes of protos/."""

from __future__ import annotations

import subprocess
from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in (".py", ".pyi")
    }


def test_generated_code_is_fresh(root: Path, tmp_path: Path) -> None:
    done = subprocess.run([root / "scripts" / "generate", tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    made, committed = contents(tmp_path), contents(root / "generated")
    handwritten = {name for name in committed if name.endswith("__init__.py")}
    assert made.keys() == committed.keys() - handwritten
    assert [name for name in made if made[name] != committed[name]] == []
