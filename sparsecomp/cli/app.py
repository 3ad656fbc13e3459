"""All commands, and what becomes of errors."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import sparsecomp
from sparsecomp.cli.analyze import analyze
from sparsecomp.cli.bench import bench
from sparsecomp.cli.cache import cache
from sparsecomp.cli.compile import compile_model, report
from sparsecomp.cli.devices import devices
from sparsecomp.cli.sparsify import sparsify
from sparsecomp.cli.tune import tune
from sparsecomp.errors import SparsecompError


class Commands(TyperGroup):
    """An error of this library is one message on standard error, and exit code 1; a traceback is a bug."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SparsecompError as error:
            typer.echo(f"sparsecomp: {error}", err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=Commands,
    help="Compile pruned PyTorch models into modules that are faster, smaller and give the same outputs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(sparsecomp.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Holds what belongs to no command."""


app.command("analyze")(analyze)
app.command("compile")(compile_model)
app.command("tune")(tune)
app.command("bench")(bench)
app.command("report")(report)
app.command("sparsify")(sparsify)
app.command("devices")(devices)
app.add_typer(cache, name="cache")
