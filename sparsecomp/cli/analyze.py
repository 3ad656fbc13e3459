"""`sparsecomp analyze`"""

from __future__ import annotations

import sparsecomp
from sparsecomp.cli.answer import answer, at_work
from sparsecomp.cli.models import load_example
from sparsecomp.cli.options import Inputs, Json, Model, Quiet, Seed, Skip, Threads


def analyze(
    model: Model,
    inputs: Inputs = None,
    skip: Skip = None,
    threads: Threads = None,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Tell what structure the zeros of every layer have. Nothing is compiled or timed."""
    with at_work(quiet):
        found = load_example(model, inputs or (), seed)
        report = sparsecomp.analyze(found.model, found.args, found.kwargs, skip=skip or ())
    answer(str(report), report.as_dict(), as_json)
