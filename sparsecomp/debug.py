"""Watching a compilation: one dial, `SPARSECOMP_DEBUG`, over loggers that any program may turn on by itself.

    1  sparsecomp.report    the report of every compilation
    2  sparsecomp.program   the program after every pass that changed it
    3  sparsecomp.tir       TVM's intermediate code of every region
    4  sparsecomp.source    the assembly made of it

Each is silent unless its logger is enabled for DEBUG; 3 shows what 1 and 2 show as well.
"""

from __future__ import annotations

import logging

VARIABLE = "SPARSECOMP_DEBUG"
REPORT = logging.getLogger("sparsecomp.report")
PROGRAM = logging.getLogger("sparsecomp.program")
TIR = logging.getLogger("sparsecomp.tir")
SOURCE = logging.getLogger("sparsecomp.source")
DIAL = (REPORT, PROGRAM, TIR, SOURCE)
LOG = logging.getLogger(__name__)


def turn(setting: str) -> None:
    """Write the first so many of `DIAL` to standard error; "" and "0" change nothing. Anything else that is no number
    from 0 to 4 is warned about, and ignored."""
    if setting in ("", "0"):
        return
    if setting not in ("1", "2", "3", "4"):
        LOG.warning("%s=%s is ignored: set it to a number from 0 to %d", VARIABLE, setting, len(DIAL))
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    for logger in DIAL[: int(setting)]:
        logger.setLevel(logging.DEBUG)
        logger.addHandler(handler)
        logger.propagate = False  # else a root logger that is set up shows it twice
