"""What survives an interrupt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from sparsecomp import InputError
from sparsecomp.pruning.state import State, digest, state_of


def test_numbers_and_tensors_are_found_again(tmp_path: Path) -> None:
    first = State(tmp_path / "run")
    first.put("a", 1.5)
    first.put("a", 2.5)
    first.put("b", {"c": [1, 2]})
    first.put_tensor("w", torch.arange(4.0))
    again = State(tmp_path / "run")
    assert again.get("a") == 2.5
    assert again.get("b") == {"c": [1, 2]}
    assert again.get("absent") is None
    found = again.tensor("w")
    assert found is not None
    assert torch.equal(found, torch.arange(4.0))
    again.drop_tensors()
    assert again.tensor("w") is None


def test_a_line_cut_off_by_a_crash_loses_nothing_else(tmp_path: Path) -> None:
    State(tmp_path).put("a", 1)
    with (tmp_path / "state.jsonl").open("a") as file:
        file.write('{"key": "b", "val')
    State(tmp_path).put("c", 3)
    again = State(tmp_path)
    assert (again.get("a"), again.get("b"), again.get("c")) == (1, None, 3)


def test_a_broken_tensor_is_made_again(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.put_tensor("w", torch.ones(3))
    (path,) = tmp_path.glob("*.pt")
    path.write_bytes(path.read_bytes()[:20])
    assert state.tensor("w") is None


def test_without_a_folder_numbers_stay_in_memory(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    state = State(None)
    state.put("a", 1)
    state.put_tensor("w", torch.ones(1))
    assert state.get("a") == 1
    assert state.tensor("w") is None
    (tmp_path / "file").touch()
    blocked = State(tmp_path / "file" / "below")
    blocked.put("a", 1)
    assert blocked.get("a") == 1
    assert "not kept" in caplog.text


def test_the_digest_is_of_values() -> None:
    model, x = nn.Linear(4, 4), torch.ones(2, 4)
    name = digest(model, [x])
    assert digest(model, [x.clone()]) == name
    assert digest(model, [x + 1]) != name
    assert digest(model, [(x,)]) != name
    with torch.no_grad():
        model.weight[0, 0] += 1
    assert digest(model, [x]) != name
    assert digest(model.to(torch.bfloat16), [{"x": x.to(torch.bfloat16), "flag": True}])


def test_the_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    state_of(tmp_path, "one").put("a", 1)
    assert state_of(tmp_path, "one").get("a") == 1
    with pytest.raises(InputError, match="holds what was found for another model"):
        state_of(tmp_path, "other")
