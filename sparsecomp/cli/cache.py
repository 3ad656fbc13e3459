"""`sparsecomp cache`: what the library keeps of its measurements on this machine"""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Any

import typer

from sparsecomp.cache import cache_folder
from sparsecomp.cli.answer import SIZES, answer, at_work, size, table
from sparsecomp.cli.options import Json, Quiet

cache = typer.Typer(
    help="List, check and shrink the folder of measurements ($SPARSECOMP_CACHE, or the user's cache folder).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def size_of(text: str) -> int:
    """Bytes, of a size as people write it."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.strip(), re.IGNORECASE)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no size: write 500K, 20MB or 1.5G.")
    return round(float(found[1]) * SIZES[found[2].upper()])


Limit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        parser=size_of,
        metavar="SIZE",
        help="Then drop the oldest measurements until the database is no larger: 500K, 20MB, 1.5G.",
        show_default=False,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")]


@cache.command("list")
def list_files(as_json: Json = False, quiet: Quiet = False) -> None:
    """List the files, their sizes, and what the database holds."""
    with at_work(quiet):
        data = _listing()
    files = table([{"file": one["name"], "size": size(one["bytes"])} for one in data["files"]], ("size",))
    records = ", ".join(f"{count} {kind}" for kind, count in data["records"].items()) or "no record"
    text = (
        f"{data['folder']}: {size(data['bytes'])}\n\n{files}\n\n"
        if data["files"]
        else f"{data['folder']}: empty\n\n"
    )
    answer(f"{text}database: {records}", data, as_json)


def _listing() -> dict[str, Any]:
    from sparsecomp.cli.database import read_database

    folder = cache_folder()
    paths = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    files = [{"name": str(path.relative_to(folder)), "bytes": path.stat().st_size} for path in paths]
    return {
        "folder": str(folder),
        "bytes": sum(path.stat().st_size for path in paths),
        "files": files,
        "records": dict(Counter(record.kind for record in read_database().latest)),
    }


@cache.command()
def verify(as_json: Json = False, quiet: Quiet = False) -> None:
    """Read every line of the database. Exit code 1 where a line is damaged; such lines are ignored, and prune removes
    them."""
    from sparsecomp.cli.database import read_database

    with at_work(quiet):
        found = read_database()
    lines = [line.number for line in found.damaged]
    data = {"database": str(found.path), "lines": len(found.lines), "damaged": lines}
    text = f"{found.path}: {len(found.lines)} lines, {len(lines)} damaged"
    if lines:
        text += f" (line {', '.join(map(str, lines[:10]))}{', ...' * (len(lines) > 10)}); sparsecomp cache prune removes them"
    answer(text, data, as_json)
    if lines:
        raise typer.Exit(1)


@cache.command()
def prune(limit: Limit = None, dry_run: DryRun = False, as_json: Json = False, quiet: Quiet = False) -> None:
    """Remove measurements that nothing asks for: superseded, damaged, or taken with other versions of the software."""
    from sparsecomp.cli.database import prune_database, pruned, read_database

    with at_work(quiet):
        found = pruned(read_database(), limit) if dry_run else prune_database(limit)
    data = {
        "removed": dict(found.gone),
        "kept": len(found.kept),
        "bytes_before": found.before,
        "bytes": found.after,
        "dry_run": dry_run,
    }
    what = ", ".join(f"{count} {why}" for why, count in found.gone.items()) or "nothing"
    text = f"{'would remove' if dry_run else 'removed'} {what}; {len(found.kept)} records stay"
    answer(f"{text}, {size(found.before)} -> {size(found.after)}", data, as_json)
