"""Structure pictures, read back byte by byte as the standard has it; a browser reads them in test_browser.py."""

from __future__ import annotations

import base64
import struct
import zlib

import pytest

from sparsecomp.page.png import COLOUR, data_uri


def chunks(file: bytes) -> dict[bytes, bytes]:
    assert file[:8] == b"\x89PNG\r\n\x1a\n"
    found, at = {}, 8
    while at < len(file):
        (length,) = struct.unpack(">I", file[at : at + 4])
        kind, content = file[at + 4 : at + 8], file[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + content) == struct.unpack(">I", file[at + 8 + length : at + 12 + length])[0]
        found[kind] = content
        at += 12 + length
    return found


@pytest.mark.parametrize("rows", [("0f", "10"), ("0", "f", "7"), ("0123456789abcde",) * 5], ids=len)
def test_each_cell_is_a_pixel_as_opaque_as_it_is_full(rows: tuple[str, ...]) -> None:
    head, _, data = data_uri(rows).partition(",")
    assert head == "data:image/png;base64"
    found = chunks(base64.b64decode(data))
    width, height, depth, kind = struct.unpack(">IIBB", found[b"IHDR"][:10])
    assert (width, height, depth, kind) == (len(rows[0]), len(rows), 4, 3)
    line = 1 + (width + 1) // 2
    pixels = zlib.decompress(found[b"IDAT"])
    assert len(pixels) == line * height
    read = [pixels[at : at + line] for at in range(0, len(pixels), line)]
    assert all(row[0] == 0 for row in read), "no line is filtered"
    assert tuple(row[1:].hex()[:width] for row in read) == rows
    assert found[b"PLTE"] == bytes(COLOUR) * 16
    assert list(found[b"tRNS"]) == [17 * level for level in range(16)]
