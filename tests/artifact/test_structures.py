"""Containers come back; classes that this process does not know come as something like them."""

from __future__ import annotations

import json
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
import transformers as hf

from sparsecomp import ArtifactError
from sparsecomp.artifact.structures import SavedOutput, decode_structure, encode_structure
from sparsecomp.unflatten import unflatten

Point = namedtuple("Point", "x y")


def back(value: Any, change: Any = str) -> Any:
    leaves, spec = pytree.tree_flatten(value)
    text = change(json.dumps(encode_structure(spec)))
    return unflatten(decode_structure(json.loads(text)), leaves)


@pytest.mark.parametrize(
    "value",
    [
        1,
        None,
        (),
        [],
        {},
        (1, [2, (3,)], {"a": {"b": 4}, 5: ()}),
        {"z": 1, "a": 2},
        OrderedDict(z=1, a=[2]),
        {"size": (torch.Size([2, 3]), torch.Size([]))},
    ],
    ids=repr,
)
def test_containers_come_back(value: Any) -> None:
    found = back(value)
    assert found == value
    assert type(found) is type(value)
    assert list(found) == list(value) if isinstance(value, dict) else True


def test_a_known_output_class() -> None:
    output = hf.modeling_outputs.BaseModelOutput(last_hidden_state=torch.ones(1))
    found = back(output)
    assert type(found) is type(output)
    assert torch.equal(found.last_hidden_state, output.last_hidden_state)


def test_an_unknown_output_class() -> None:
    output = hf.modeling_outputs.BaseModelOutput(last_hidden_state=1, attentions=(2, 3))
    found = back(output, lambda text: text.replace("transformers", "elsewhere"))
    assert isinstance(found, SavedOutput)
    assert found.last_hidden_state == found[0] == found["last_hidden_state"] == 1
    assert found.to_tuple() == (1, (2, 3))
    assert back(found) == found
    with pytest.raises(AttributeError, match="the outputs are last_hidden_state, attentions"):
        _ = found.logits


def test_a_named_tuple_is_not_imported() -> None:
    found = back(Point(1, [2]))
    assert isinstance(found, SavedOutput)
    assert (found.x, found[1]) == (1, [2])


def test_what_has_no_form_is_named() -> None:
    class Box:
        pass

    pytree.register_pytree_node(Box, lambda box: ([1], None), lambda values, context: Box())
    with pytest.raises(ArtifactError, match="takes or returns a Box"):
        encode_structure(pytree.tree_structure([Box()]))


@pytest.mark.parametrize(
    "data",
    [
        None,
        "leaves",
        [],
        {},
        {"tuple": "leaf"},
        {"box": []},
        {"dict": ["leaf"]},
        {"dict": ["leaf", "leaf"], "keys": ["a", "a"]},
        {"named": ["leaf"], "keys": [1], "class": "x"},
    ],
    ids=repr,
)
def test_what_is_no_structure(data: Any) -> None:
    with pytest.raises(ArtifactError, match="where a container was expected"):
        decode_structure(data)


def test_towers_are_refused() -> None:
    data: Any = "leaf"
    for _ in range(100):
        data = {"list": [data]}
    with pytest.raises(ArtifactError, match="where a container was expected"):
        decode_structure(data)
