"""Draws the pictures of these pages from real patterns and a real graph: `python docs/pictures/draw.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as Xml

import torch
from torch import Tensor, nn

from sparsecomp import compile_sparse
from sparsecomp.pattern import PackedRows, RowBlocks, pack

HERE = Path(__file__).parent
CELL, GAP, TITLE = 14, 34, 44
KEPT, FILL, EMPTY, INK, LIGHT = "#1b6ca8", "#a9cbe6", "#f1f1f1", "#333333", "#8a8a8a"
ROWS, COLUMNS = 8, 16


class Picture:
    """An SVG image that is made of boxes and words."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.root = Xml.Element(
            "svg",
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {width:g} {height:g}",
            role="img",
            **{"font-family": "sans-serif", "font-size": "12"},
        )
        Xml.SubElement(self.root, "title").text = title
        self.box(0, 0, width, height, "#ffffff")

    def box(self, x: float, y: float, width: float, height: float, colour: str, line: str = "none") -> None:
        """A rectangle; `line` is the colour of its border."""
        place = {"x": x, "y": y, "width": width, "height": height}
        numbers = {name: f"{value:g}" for name, value in place.items()}
        Xml.SubElement(self.root, "rect", fill=colour, stroke=line, **numbers)

    def word(self, x: float, y: float, text: str, colour: str = INK, anchor: str = "start") -> None:
        """One line of text."""
        attributes = {"x": f"{x:g}", "y": f"{y:g}", "fill": colour, "text-anchor": anchor}
        Xml.SubElement(self.root, "text", attributes).text = text

    def write(self, name: str, folder: Path) -> None:
        """To `folder/name`."""
        Xml.indent(self.root)
        (folder / name).write_text(Xml.tostring(self.root, encoding="unicode") + "\n")


def weight() -> Tensor:
    """ROWS x COLUMNS, all different."""
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(3))


def unstructured(matrix: Tensor, kept: float = 0.25) -> Tensor:
    """The largest of all weights."""
    threshold = matrix.abs().flatten().kthvalue(round(matrix.numel() * (1 - kept))).values
    return matrix * (matrix.abs() > threshold)


def blocks(matrix: Tensor, rows: int = 4, kept: float = 0.25) -> Tensor:
    """The largest blocks of `rows` rows by one column."""
    norms = matrix.reshape(-1, rows, COLUMNS).square().mean(1)
    return matrix * (unstructured(norms, kept) != 0).repeat_interleave(rows, dim=0)


def two_of_four(matrix: Tensor) -> Tensor:
    """The two largest of each four neighbours in a row."""
    groups = matrix.abs().reshape(ROWS, -1, 4)
    keep = torch.zeros_like(groups).scatter_(2, groups.topk(2, dim=2).indices, 1.0)
    return matrix * keep.reshape(ROWS, COLUMNS)


def channels(matrix: Tensor) -> Tensor:
    """Without the smallest rows and columns."""
    rows, columns = matrix.norm(dim=1).topk(4).indices, matrix.norm(dim=0).topk(8).indices
    keep = torch.zeros_like(matrix)
    keep[rows[:, None], columns[None, :]] = 1.0
    return matrix * keep


PANELS: tuple[tuple[str, Callable[[Tensor], Tensor], RowBlocks], ...] = (
    ("unstructured", unstructured, RowBlocks(1)),
    ("blocks 4x1", blocks, RowBlocks(4)),
    ("2:4", two_of_four, RowBlocks(1)),
    ("channels", channels, RowBlocks(4, live_first=True)),
)


def stored_places(matrix: Tensor, pattern: RowBlocks) -> Tensor:
    """Which elements the packed weight holds, zeros within blocks included."""
    packed = pack(torch.where(matrix != 0, matrix, 0.0), pattern)
    held = torch.zeros(packed.groups * pattern.rows, COLUMNS, dtype=torch.bool)
    if pattern.shared:
        held[:, packed.columns.long()] = True
    else:
        for group in range(packed.groups):
            start, end = packed.pointers[group : group + 2].tolist()
            rows = packed.order[group * pattern.rows : (group + 1) * pattern.rows].long()
            held[rows[:, None], packed.columns[start:end].long()[None, :]] = True
    return held[:ROWS]


def draw_matrix(picture: Picture, left: float, top: float, matrix: Tensor, held: Tensor) -> None:
    """Weights that are not zero, zeros that are stored with them, and all other zeros."""
    for row in range(matrix.shape[0]):
        for column in range(matrix.shape[1]):
            colour = KEPT if matrix[row, column] != 0 else FILL if held[row, column] else EMPTY
            picture.box(left + column * CELL, top + row * CELL, CELL - 1, CELL - 1, colour)


def draw_patterns(folder: Path) -> None:
    """The weights of four ways to prune, each in the pattern that suits it."""
    width = 2 * (COLUMNS * CELL + GAP) + GAP
    picture = Picture(width, 2 * (ROWS * CELL + TITLE) + GAP, "Four patterns of zeros")
    for number, (name, prune, pattern) in enumerate(PANELS):
        left = GAP + number % 2 * (COLUMNS * CELL + GAP)
        top = TITLE + number // 2 * (ROWS * CELL + TITLE)
        matrix = prune(weight())
        held = stored_places(matrix, pattern)
        kept = int((matrix != 0).sum())
        picture.word(left, top - 10, f"{name}: {kept} of {matrix.numel()} are left")
        draw_matrix(picture, left, top, matrix, held)
    picture.write("patterns.svg", folder)


def draw_packings(folder: Path) -> None:
    """The same unstructured weights in blocks of 1, 2 and 4 rows: fewer lists, more zeros within them."""
    matrix = unstructured(weight())
    width = 3 * (COLUMNS * CELL + GAP) + GAP
    picture = Picture(width, ROWS * CELL + TITLE + GAP, "One weight, packed three ways")
    for number, rows in enumerate((1, 2, 4)):
        left = GAP + number * (COLUMNS * CELL + GAP)
        held = stored_places(matrix, RowBlocks(rows))
        text = f"{RowBlocks(rows)}: {ROWS // rows} lists, {int(held.sum())} stored"
        picture.word(left, TITLE - 10, text)
        draw_matrix(picture, left, TITLE, matrix, held)
    picture.write("packings.svg", folder)


def width_of(packed: PackedRows) -> int:
    """Of one entry of a list: the column, its values, and a gap."""
    return 22 + 38 * packed.pattern.rows + 4


def draw_list(picture: Picture, top: float, packed: PackedRows, group: int) -> None:
    """The list of one block of rows: a column and its values, again and again."""
    start, end = packed.pointers[group : group + 2].tolist()
    rows = packed.pattern.rows
    first = group * rows
    label = f"row {first}" if rows == 1 else f"rows {first}-{first + rows - 1}"
    picture.word(GAP, top + 14, label)
    x: float = GAP + 76
    for index in range(start, end):
        picture.box(x, top, 22, 20, "#ffffff", LIGHT)
        picture.word(x + 11, top + 14, str(int(packed.columns[index])), LIGHT, "middle")
        x += 22
        for value in packed.values[index].tolist():
            picture.box(x, top, 38, 20, KEPT)
            picture.word(x + 19, top + 14, f"{value:.1f}", "#ffffff", "middle")
            x += 38
        x += 4


def draw_stream(folder: Path) -> None:
    """The packed streams of a weight pruned one by one, and of one pruned in blocks of four rows."""
    weights = {RowBlocks(1): unstructured(weight()), RowBlocks(4): blocks(weight())}
    streams = {pattern: pack(matrix, pattern) for pattern, matrix in weights.items()}
    lists = sum(packed.groups for packed in streams.values())
    longest = max(int(packed.pointers.diff().max()) * width_of(packed) for packed in streams.values())
    picture = Picture(GAP + 76 + longest + GAP, TITLE + 26 * lists + TITLE + 20, "The packed stream")
    top: float = TITLE
    for pattern, packed in streams.items():
        picture.word(GAP, top - 12, f"{pattern}: {packed.stored} values, {len(packed.columns)} columns")
        for group in range(packed.groups):
            draw_list(picture, top, packed, group)
            top += 26
        top += TITLE
    picture.write("stream.svg", folder)


class Small(nn.Module):
    """Tokens, three linear layers with what lies between them, and something no region takes in."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, 64)
        self.first, self.norm = nn.Linear(64, 128), nn.LayerNorm(128)
        self.second, self.last = nn.Linear(128, 64), nn.Linear(64, 64)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        x = self.second(self.norm(torch.relu(self.first(x))))
        return self.last(x.cumsum(dim=1))  # a running sum over tokens ends the region


def small_model() -> nn.Module:
    """`Small`, with nine of ten weights zero."""
    torch.manual_seed(0)
    model = Small().eval()
    for layer in (model.first, model.second, model.last):
        layer.weight.data *= torch.rand_like(layer.weight) < 0.1
    return model


def draw_regions(folder: Path) -> None:
    """The rewritten graph of a small model: what runs as one call, and what PyTorch runs between."""
    compiled = compile_sparse(small_model(), (torch.zeros(2, 5, dtype=torch.long),), target="reference")
    assert compiled.graph is not None
    regions = iter(compiled.report.regions)
    targets = [str(node.target) for node in compiled.graph.graph.nodes if node.op == "call_function"]
    picture = Picture(510, 140, "Regions of a graph")
    picture.word(GAP, 26, "from left to right: blue runs as one call, the rest is PyTorch's")
    x: float = GAP
    for target in (target for target in targets if "getitem" not in target):
        if x > GAP:
            picture.word(x - GAP + 8, 72, "→", LIGHT)
        if "region" in target:
            region = next(regions)
            words, colour, ink = [region.name, *region.layers], KEPT, "#ffffff"
        else:
            words, colour, ink = [target.removeprefix("aten.").partition(".")[0], "PyTorch"], EMPTY, INK
        width = 24 + 7.5 * max(map(len, words))
        picture.box(x, 40, width, 26 + 18 * len(words), colour, LIGHT)
        for number, word in enumerate(words):
            picture.word(x + 12, 64 + 18 * number, word, ink)
        x += width + GAP
    picture.write("regions.svg", folder)


DRAWINGS = (draw_patterns, draw_packings, draw_stream, draw_regions)


def main(folder: Path = HERE) -> None:
    """All pictures, into `folder`."""
    for draw in DRAWINGS:
        draw(folder)


if __name__ == "__main__":
    main()
