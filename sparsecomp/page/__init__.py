"""The report as a page of HTML. The room knows only the plain data that reports and profiles say of themselves
(`as_dict`), which is also what `--json` prints; it imports nothing of this library but itself.

    units.py     numbers as people read them
    png.py       structure pictures
    latency.py   sparsity against time
    timeline.py  where the time of a call goes
    lanes.py     the graph
    render.py    all of it, through the templates

Everything that comes from a model is escaped by Jinja, and the page's own policy (CSP) forbids it to load or to run
anything but what it brings.
"""

from __future__ import annotations

from sparsecomp.page.render import excerpt, page

__all__ = ["excerpt", "page"]
