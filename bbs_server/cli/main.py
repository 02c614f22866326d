"""The program: shared options and all verbs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version as installed
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from bbs_server.cli import cells, events, lrps, tasks, wait
from bbs_server.cli.settings import Settings, on_terminal


class AnywhereGroup(TyperGroup):
    """Takes the shared options before and after the verb, as cfdot does."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _options_first(self.params, args))


def _options_first(params: Sequence[Any], args: list[str]) -> list[str]:
    flags = {name: param for param in params for name in (*param.opts, *param.secondary_opts) if name.startswith("--")}
    front: list[str] = []
    rest: list[str] = []
    words = iter(args)
    for word in words:
        name, equals, _ = word.partition("=")
        param = flags.get(name)
        if word == "--":
            rest += [word, *words]
        elif param is None or name == "--help":
            rest.append(word)
        else:
            front.append(word)
            if not equals and not getattr(param, "is_flag", False):
                front += [value for value in (next(words, None),) if value is not None]
    return front + rest


app = typer.Typer(
    cls=AnywhereGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Talk to a Diego BBS. One JSON line per record when the output is no terminal, tables otherwise.",
)
_PANELS = {
    "Tasks": tasks.app,
    "LRPs and domains": lrps.app,
    "Events": events.app,
    "Waiting": wait.app,
    "Cells and Locket": cells.app,
}
for panel, part in _PANELS.items():
    for command in part.registered_commands:
        command.rich_help_panel = panel
        app.registered_commands.append(command)


@app.command()
def version() -> None:
    """Show the version of this program."""
    typer.echo(installed("bbs-server"))


@app.callback()
def options(
    context: typer.Context,
    url: Annotated[str, typer.Option("--bbsURL", "--bbs-url", envvar="BBS_URL", help="URL of the BBS.")] = "",
    ca: Annotated[
        str,
        typer.Option(
            "--caCertFile", "--bbsCACertFile", envvar=["CA_CERT_FILE", "BBS_CA_CERT_FILE"], help="Authority to trust."
        ),
    ] = "",
    cert: Annotated[
        str,
        typer.Option(
            "--clientCertFile", "--bbsCertFile", envvar=["CLIENT_CERT_FILE", "BBS_CERT_FILE"], help="Our certificate."
        ),
    ] = "",
    key: Annotated[
        str,
        typer.Option("--clientKeyFile", "--bbsKeyFile", envvar=["CLIENT_KEY_FILE", "BBS_KEY_FILE"], help="Our key."),
    ] = "",
    skip_verify: Annotated[
        bool,
        typer.Option(
            "--skipCertVerify",
            "--bbsSkipCertVerify",
            envvar=["SKIP_CERT_VERIFY", "BBS_SKIP_CERT_VERIFY"],
            help="Trust any server.",
        ),
    ] = False,
    timeout: Annotated[float, typer.Option("--timeout", envvar="CFDOT_TIMEOUT", help="Seconds per request.")] = 30.0,
    locket: Annotated[
        str,
        typer.Option("--locketAPILocation", envvar="LOCKET_API_LOCATION", help="host:port of Locket."),
    ] = "",
    as_json: Annotated[
        bool | None, typer.Option("--json/--table", help="JSON lines or tables; by default what fits the output.")
    ] = None,
) -> None:
    """Options that all verbs share."""
    lines = not on_terminal() if as_json is None else as_json
    context.obj = Settings(url, ca, cert, key, skip_verify, timeout, locket, lines)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
