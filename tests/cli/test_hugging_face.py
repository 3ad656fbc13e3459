"""Models in a folder that `save_pretrained` wrote: tiny ones, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsecomp import InputError
from sparsecomp.cli.example import Example
from sparsecomp.cli.models import load_example
from tests.cli.nets import as_json, refusal

transformers = pytest.importorskip("transformers")


def bert(**settings: Any) -> Any:
    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=50,
        **settings,
    )
    return transformers.BertModel(config)


def saved(model: Any, folder: Path) -> Example:
    model.save_pretrained(folder)
    return load_example(str(folder), (), 0)


def test_a_text_model_gets_tokens_and_a_mask(tmp_path: Path) -> None:
    model = bert(max_position_embeddings=20).eval()
    found = saved(model, tmp_path)
    assert {name: tuple(one.shape) for name, one in found.kwargs.items()} == {
        "input_ids": (1, 20),
        "attention_mask": (1, 20),
    }
    expected = model(**found.kwargs).last_hidden_state
    assert torch.equal(found.module(**found.kwargs).last_hidden_state, expected)
    assert as_json("analyze", str(tmp_path), "-q")["totals"]["layers"] >= 6


def test_an_image_model_gets_an_image_of_the_size_its_processor_makes(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 40}}))
    found = saved(transformers.ResNetModel(config), tmp_path)
    assert {name: tuple(one.shape) for name, one in found.kwargs.items()} == {"pixel_values": (1, 3, 40, 40)}


def test_a_model_of_two_texts_gets_both_and_runs(tmp_path: Path) -> None:
    config = transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=30)
    found = saved(transformers.T5ForConditionalGeneration(config), tmp_path)
    assert found.kwargs["decoder_input_ids"].shape == (1, 16)
    assert found.module(**found.kwargs).logits.shape == (1, 16, 30)


def test_half_precision_runs_as_float32_and_says_so(tmp_path: Path) -> None:
    found = saved(bert().to(torch.bfloat16), tmp_path)
    assert {one.dtype for one in found.module.parameters()} == {torch.float32}
    assert found.notes == ("its weights, stored as bfloat16, run as float32",)


def test_code_of_a_folder_never_runs(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert f"transformers cannot read {tmp_path}: " in refusal("analyze", str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_without_transformers_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bert().save_pretrained(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(InputError, match=r"needs transformers: pip install 'sparsecomp\[models\]'"):
        load_example(str(tmp_path), (), 0)
