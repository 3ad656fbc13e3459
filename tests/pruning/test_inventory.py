"""What is left in a pruned model."""

from __future__ import annotations

import torch
from torch import nn

from sparsecomp.pruning.candidate import DENSE, Candidate
from sparsecomp.pruning.inventory import take_inventory
from sparsecomp.pruning.model import prune_model
from sparsecomp.pruning.storage import storage


def test_every_weight_is_counted_in_its_smallest_format() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 8))
    choices = {"0": Candidate("unstructured", 0.5), "1": Candidate("4x1", 0.9), "2": DENSE}
    prune_model(model, choices, (), "magnitude")
    found = take_inventory(model, choices)
    assert found.kept == {"0": 1024, "1": 104, "2": 256}
    assert [found.stored[name].format for name in "012"] == ["bitmap", "bsr 4x1", "dense"]
    forms = [{form.format: form.nbytes for form in storage(model[n].weight != 0)} for n in (0, 1)]  # type: ignore[arg-type]
    assert found.nbytes == forms[0]["bitmap"] + forms[1]["bsr 4x1"] + 256 * 4
    assert found.formats == {name: forms[0][name] + forms[1][name] for name in forms[0]}
    assert list(found.formats.values()) == sorted(found.formats.values())
    assert not any(name.endswith("1x1") for name in found.formats)  # which are bitmap and csr
    assert found.nonzeros == 1024 + 104 + 256 + 32 + 32 + 8
