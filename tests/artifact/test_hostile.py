"""Damaged, truncated, older, newer, foreign and hostile files: an error that says so, or the module as it was."""

from __future__ import annotations

import io
import json
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsecomp import ArtifactError, ArtifactWarning, SparseModule, load
from sparsecomp.artifact import container, module_bytes, module_of, registry
from tests.artifact.nets import FEATURES, Tokens, compiled_of, pruned

SECTIONS = ("manifest.json", "graphs.json", "weights.safetensors", "code/0.so")


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(2, 5, FEATURES, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def compiled(x: Tensor) -> SparseModule:
    return compiled_of(pruned(Tokens()), x, target="cpu")


@pytest.fixture(scope="module")
def data(compiled: SparseModule) -> bytes:
    return module_bytes(compiled)


@pytest.fixture(scope="module")
def expected(compiled: SparseModule, x: Tensor) -> Tensor:
    return compiled(x)  # type: ignore[no-any-return]


def unpacked(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def repacked(
    sections: dict[str, bytes], edit: Callable[[dict[str, Any]], object] = id, honest: bool = True
) -> bytes:
    """A file as an attacker would write it: `honest`, with the right hashes in an edited manifest."""
    sections = dict(sections)
    manifest = json.loads(sections.pop("manifest.json"))
    if honest:
        manifest["sections"] = {
            name: {"bytes": len(section), "sha256": container.digest_of(section)}
            for name, section in sections.items()
        }
    edit(manifest)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, section in (("manifest.json", json.dumps(manifest).encode()), *sections.items()):
            archive.writestr(name, section)
    return file.getvalue()


def refused(data: bytes, match: str, trust: bool = False) -> None:
    with pytest.raises(ArtifactError, match=match):
        module_of(data, trust, "m.sparsecomp")


def read_or_refused(data: bytes) -> SparseModule | None:
    """The module, or None after an error that names the file; no other error."""
    try:
        return module_of(data, False, "m.sparsecomp")
    except ArtifactError as error:
        if "m.sparsecomp" not in str(error):
            raise
        return None


@pytest.fixture
def no_native_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading native code fails the test."""

    def fail(*args: object) -> None:
        raise SystemExit("native code of an unverified file is loaded")

    monkeypatch.setattr("sparsecomp.codegen.library.adopt", fail)


# Accidents ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::sparsecomp.ArtifactWarning", "ignore::UserWarning")
@settings(max_examples=60, deadline=None)
@given(
    place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), keep=st.floats(0, 1), cut=st.booleans()
)
def test_flipped_bits_and_truncations(
    place: float, bit: int, keep: float, cut: bool, data: bytes, x: Tensor, expected: Tensor
) -> None:
    damaged = bytearray(data)
    damaged[int(place * len(data))] ^= 1 << bit
    if cut:
        del damaged[int(keep * len(data)) :]
    back = read_or_refused(bytes(damaged))
    if back is not None:  # a bit that means nothing, a date in the archive's directory say
        assert torch.equal(back(x), expected)


FILE_HEADER = 30
"""Bytes before the name of a section, in a zip file."""


def borders(data: bytes) -> list[int]:
    """Where something begins: each section's header and content, the directory, each entry of it, the archive's end."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos, directory = archive.infolist(), archive.start_dir
    found = [0, directory, data.index(b"PK\x05\x06")]
    for info in infos:
        content = info.header_offset + FILE_HEADER + len(info.filename.encode())
        found += [info.header_offset, content, content + info.file_size]
    place = directory
    while (place := data.find(b"PK\x01\x02", place)) >= 0:
        found.append(place)
        place += 4
    return sorted(set(found))


@pytest.mark.usefixtures("no_native_code")
def test_a_file_cut_off_at_any_border(data: bytes) -> None:
    found = borders(data)
    assert len(found) > 3 * len(SECTIONS)
    for border in found:
        for end in {max(0, border - 1), border, border + 1}:
            refused(data[:end], "m.sparsecomp", trust=True)


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.usefixtures("no_native_code")
def test_a_flipped_bit_in_each_section(section: str, data: bytes) -> None:
    content = unpacked(data)[section]
    for place in (0, len(content) // 2, len(content) - 1):
        damaged = bytearray(data)
        damaged[data.index(content) + place] ^= 4
        refused(bytes(damaged), "m.sparsecomp")
        refused(bytes(damaged), "m.sparsecomp", trust=True)


@pytest.mark.parametrize("section", SECTIONS[1:])
@pytest.mark.usefixtures("no_native_code")
def test_a_section_that_is_not_the_one_the_manifest_means(section: str, data: bytes) -> None:
    sections = unpacked(data)
    sections[section] = sections[section][:-1] + b" "
    refused(repacked(sections, honest=False), "SHA-256 is not the one in the manifest", trust=True)
    del sections[section]
    refused(repacked(sections, honest=False), f"section '{section}' is missing", trust=True)


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"\x80\x04N.", b"not a zip", struct.pack("<Q", 2**60) + b"{}"], ids=repr
)
def test_another_kind_of_file(content: bytes) -> None:
    refused(content, "no saved module")


def test_a_zip_of_another_kind(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "m.pt")
    refused((tmp_path / "m.pt").read_bytes(), "does not belong in it")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("manifest.json", "{}")
    refused(file.getvalue(), "another kind of file")


def test_older_and_newer_formats(data: bytes) -> None:
    def version(number: object) -> bytes:
        return repacked(unpacked(data), lambda manifest: manifest.update(format=number))

    refused(version(container.FORMAT + 1), "read it with a newer sparsecomp")
    refused(version(container.FORMAT - 1), "save the module again")
    refused(version("1"), "its format is '1'")


def test_a_target_of_a_newer_library(data: bytes) -> None:
    newer = repacked(unpacked(data), lambda manifest: manifest["target"].update(kind="abacus"))
    refused(newer, "m.sparsecomp.*'abacus'.*is not known")


# Attacks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../evil.so", "/etc/passwd", "code/../../x.so", "code/x.so", "x.pkl"])
def test_names_of_sections_lead_nowhere(name: str, data: bytes) -> None:
    sections = unpacked(data)
    refused(repacked({**sections, name: b"evil"}), "does not belong in it")

    def point(manifest: dict[str, Any]) -> None:
        for region in manifest["variants"][0]["regions"].values():
            region["code"]["section"] = name

    refused(repacked(sections, point), "m.sparsecomp", trust=True)


@pytest.mark.usefixtures("no_native_code")
def test_a_link_in_the_archive_leads_nowhere(data: bytes, tmp_path: Path) -> None:
    """A section is never unpacked to a name: a link is the few bytes of its target, and those are no code."""
    (tmp_path / "outside").write_bytes(unpacked(data)["code/0.so"])
    sections = unpacked(data) | {"code/0.so": str(tmp_path / "outside").encode()}
    file = io.BytesIO(repacked(sections, honest=False))
    with zipfile.ZipFile(io.BytesIO(file.getvalue())) as archive:
        entries = [(info, archive.read(info)) for info in archive.infolist()]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for info, content in entries:
            link = info.filename == "code/0.so"
            info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16 if link else 0
            archive.writestr(info, content)
    refused(file.getvalue(), "section 'code/0.so' is damaged", trust=True)


def test_two_sections_of_one_name(data: bytes) -> None:
    file = io.BytesIO(data)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(file, "a") as archive:
        archive.writestr("code/0.so", b"evil")
    refused(file.getvalue(), "does not belong in it")


def test_compressed_sections_are_refused(data: bytes) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, section in unpacked(data).items():
            archive.writestr(name, section)
    refused(file.getvalue(), "claim more bytes than it has")  # a bomb would, too
    with zipfile.ZipFile(file, "w") as archive:
        for name, section in unpacked(data).items():
            archive.writestr(name, section, zipfile.ZIP_DEFLATED if name == "graphs.json" else None)
    refused(file.getvalue(), "section 'graphs.json' is compressed or encrypted")


def test_huge_declared_sizes(data: bytes) -> None:
    place = data.index(b"PK\x01\x02")  # the first entry of the archive's directory
    damaged = bytearray(data)
    damaged[place + 20 : place + 28] = struct.pack("<II", 2**32 - 2, 2**32 - 2)
    refused(bytes(damaged), "claim more bytes than it has")
    sections = unpacked(data)
    length = struct.pack("<Q", 2**62)
    sections["weights.safetensors"] = length + sections["weights.safetensors"][8:]
    refused(repacked(sections), "weights cannot be read")

    def large(manifest: dict[str, Any]) -> None:
        manifest["streams"][0]["layer"]["weight_shape"] = [2**40, 2**20]

    refused(repacked(unpacked(data), large), "too large for its size")


@pytest.mark.usefixtures("no_native_code")
def test_code_of_an_honest_looking_file_is_not_loaded(data: bytes, x: Tensor, expected: Tensor) -> None:
    """Right hashes in a new manifest do not help: this machine did not write that manifest."""
    sections = unpacked(data)
    sections["code/0.so"] = b"\x7fELF evil"
    with pytest.warns(ArtifactWarning, match="not written on this machine"):
        back = module_of(repacked(sections), False, "m.sparsecomp")
    assert torch.allclose(back(x), expected, atol=1e-4)


def test_trusted_code_that_is_none(data: bytes) -> None:
    sections = unpacked(data)
    sections["code/0.so"] = b"\x7fELF evil"

    def another(manifest: dict[str, Any]) -> None:
        for region in manifest["variants"][0]["regions"].values():
            region["code"]["fingerprint"] = "0" * 64

    refused(repacked(sections, another), "native code is that of another region", trust=True)


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a source line as a name": (
        lambda graph: graph["nodes"][0].update(name="x; import os"),
        "where a name was expected",
    ),
    "a path with code": (
        lambda graph: graph["nodes"][-2].update(op="get_attr", target="a') or print('"),
        "where the path of a constant was expected",
    ),
    "a keyword argument with code": (
        lambda graph: graph["nodes"][-2].update(kwargs={"a=1, b": 1}),
        "where a name was expected",
    ),
    "a function of Python": (
        lambda graph: graph["nodes"][-2].update(target="os.system"),
        "does not run from a file",
    ),
    "a method": (lambda graph: graph["nodes"][-2].update(op="call_method"), "kind 'call_method'"),
    "an operator that writes": (
        lambda graph: graph["nodes"][-2].update(target="aten.add_.Tensor"),
        "does not run from a file",
    ),
    "an operator that reads files": (
        lambda graph: graph["nodes"][-2].update(target="aten.from_file.default"),
        "does not run from a file",
    ),
    "a node that comes later": (
        lambda graph: graph["nodes"][-2].update(args=[{"node": "output"}]),
        "makes no sense",
    ),
    "two of one name": (lambda graph: graph["nodes"].append(graph["nodes"][0]), "are named"),
    "no output": (lambda graph: graph["nodes"].pop(), "makes no sense"),
}


@pytest.mark.parametrize("what", EDITS)
def test_graphs_are_data(what: str, data: bytes) -> None:
    edit, message = EDITS[what]
    sections = unpacked(data)
    graphs = json.loads(sections["graphs.json"])
    for found in graphs:
        edit(found["graph"])
    sections["graphs.json"] = json.dumps(graphs).encode()
    refused(repacked(sections), message)
    refused(
        repacked(unpacked(data), lambda manifest: edit(manifest["variants"][0]["graph"])), message, trust=True
    )


def test_a_condition_is_arithmetic_and_nothing_else(data: bytes) -> None:
    sections = unpacked(data)
    graphs = json.loads(sections["graphs.json"])
    graphs[0]["contract"]["guards"] = ["__import__('os').system('true')"]
    sections["graphs.json"] = json.dumps(graphs).encode()
    refused(repacked(sections), "not plain arithmetic")


def leaves_of(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values in a JSON document."""
    if isinstance(data, dict | list):
        items = data.items() if isinstance(data, dict) else enumerate(data)
        return [path, *(leaf for key, value in items for leaf in leaves_of(value, (*path, key)))]
    return [path]


STRANGE: tuple[Any, ...] = (None, -1, 0, 10**30, 1.5, "", "x", "t0", [], {}, [[]], {"node": "x"}, True)


@pytest.mark.filterwarnings("ignore::sparsecomp.ArtifactWarning")
@settings(max_examples=100, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), value=st.sampled_from(STRANGE), drop=st.booleans())
def test_strange_manifests_and_graphs_with_right_hashes(
    where: float, value: Any, drop: bool, data: bytes
) -> None:
    """Whatever an attacker writes into the descriptions: an error, or a module whose code was not run."""
    sections = unpacked(data)
    documents = [json.loads(sections["manifest.json"]), json.loads(sections["graphs.json"])]
    del documents[0]["sections"]
    places = [path for path in leaves_of(documents) if len(path) > 1]
    *path, last = places[int(where * len(places))]
    owner: Any = documents
    for key in path:
        owner = owner[key]
    if drop:
        del owner[last]
    else:
        owner[last] = value
    sections["graphs.json"] = json.dumps(documents[1]).encode()
    sections["manifest.json"] = json.dumps(documents[0]).encode()
    back = read_or_refused(repacked(sections))
    if back is not None:
        back.state_dict()


@pytest.mark.filterwarnings("ignore::sparsecomp.ArtifactWarning")
@settings(max_examples=80, deadline=None)
@given(
    section=st.sampled_from(["weights.safetensors", "graphs.json"]),
    place=st.integers(0, 4000),
    written=st.binary(min_size=1, max_size=12),
    cut=st.booleans(),
)
def test_strange_sections_with_right_hashes(
    section: str, place: int, written: bytes, cut: bool, data: bytes
) -> None:
    """Bytes that nobody wrote, where the headers of the tensors and the graphs are."""
    sections = unpacked(data)
    content = bytearray(sections[section])
    place %= len(content)
    content[place : len(content) if cut else place + len(written)] = written
    sections[section] = bytes(content)
    back = read_or_refused(repacked(sections))
    if back is not None:
        back.state_dict()


def test_a_registry_of_rubbish_trusts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSECOMP_CACHE", str(tmp_path))
    lines = [
        b"\x00\xff",
        b"[" * 100_000,
        b"[]",
        b"null",
        b'{"sha256": null}',
        b'{"sha256": ["%s"]}' % (b"a" * 64),
    ]
    (tmp_path / "trusted-1.jsonl").write_bytes(b"\n".join(lines))
    assert not registry.is_registered("a" * 64)
    registry.register("a" * 64)
    assert registry.is_registered("a" * 64)


def test_the_registry_survives_a_line_cut_off(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSECOMP_CACHE", str(tmp_path))
    registry.register("a" * 64)
    with (tmp_path / "trusted-1.jsonl").open("a") as file:
        file.write('{"sha25')
    registry.register("b" * 64)
    registry.register("b" * 64)
    assert registry.is_registered("a" * 64)
    assert registry.is_registered("b" * 64)
    assert not registry.is_registered("c" * 64)
    assert len((tmp_path / "trusted-1.jsonl").read_text().splitlines()) == 3


def test_a_registry_that_cannot_be_written(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARSECOMP_CACHE", str(tmp_path / "file" / "folder"))
    registry.register("a" * 64)
    assert "is not registered" in caplog.text
    (tmp_path / "m.sparsecomp").write_bytes(data)
    with pytest.warns(ArtifactWarning, match="not written on this machine"):
        load(tmp_path / "m.sparsecomp")
