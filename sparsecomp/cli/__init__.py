"""The command line; `docs/command_line.md` describes it. `import sparsecomp` does not import it.

One file per command; `app.py` lists them. What a MODEL may be is in `models.py`, a line each; `inputs.py` reads
`--input`.
"""


def main() -> None:
    """The command `sparsecomp`. Exit codes: 0 done, 1 a model or file cannot be used, 2 wrong usage."""
    from sparsecomp.cli.app import app

    app(prog_name="sparsecomp")
