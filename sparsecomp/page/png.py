"""A structure picture as a PNG in the page itself: pixels of one colour, as opaque as the weight is full.

So it stands on a light page and on a dark one. (PNG, third edition, W3C 2025; colour type 3, four bits a pixel.)
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

COLOUR = (38, 121, 222)
LEVELS = 16


def data_uri(rows: Sequence[str]) -> str:
    """rows: of hexadecimal digits, all of one length, at least one each."""
    width, height = len(rows[0]), len(rows)
    lines = b"".join(b"\0" + bytes.fromhex(row + "0" * (width % 2)) for row in rows)
    opacity = bytes(round(255 * level / (LEVELS - 1)) for level in range(LEVELS))
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 4, 3, 0, 0, 0)),
        (b"PLTE", bytes(COLOUR) * LEVELS),
        (b"tRNS", opacity),
        (b"IDAT", zlib.compress(lines, 9)),
        (b"IEND", b""),
    )
    file = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in parts)
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
