"""`microtome steer` and `microtome neurons`: what they print and write, and what they refuse."""

import json
from pathlib import Path

import pytest
import torch

from microtome.atlas import Atlas
from tests import toys
from tests.unit.cli.calls import run


def test_three_texts_with_their_losses(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("steer", checkpoint, "The river holds", "The stone", "--unit", "neurons.2/7", "--set", 40, "--most", 5)
    assert run(monkeypatch, *asked, "--dtype", "float32") == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.endswith("...")] == ["The river holds ...", "The stone ..."]
    heads = [line for line in printed if ": loss by the unchanged model " in line]
    assert len(heads) == 6
    assert heads[1].startswith("neurons.2/7 set to 40: ")
    assert "drawn at random from the same layers" in heads[2]
    assert not heads[2].startswith("neurons.2/7 ")
    model = toys.toy_decoder()
    ids = model.tokenizer("The river holds", return_tensors="pt").input_ids
    with torch.inference_mode():
        found = model.module.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        logits = model.module(torch.cat([ids[0], found])[None]).logits[0, ids.shape[1] - 1 : -1]
    loss = float(torch.nn.functional.cross_entropy(logits, found))
    assert heads[0] == f"as it is: loss by the unchanged model {loss:.2f}"
    assert printed[printed.index(heads[0]) + 1].strip() == model.tokenizer.decode(found).strip()
    assert printed[printed.index(heads[1]) + 1] != printed[printed.index(heads[0]) + 1]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--unit", "neurons.2/7"), "a unit is scaled or set, and not both"),
        (("--unit", "neurons.2/7", "--set", 1, "--scale", 2), "a unit is scaled or set, and not both"),
        (("--unit", "neurons.2/7", "--unit", "neurons.2/7", "--scale", 2), "would be changed twice"),
        (("--unit", "neurons.2/7-", "--scale", 2), "a unit is changed whole"),
        (("--unit", "neurons.9/7", "--scale", 2), "neurons of toy are up to neurons.2/39"),
        (("--unit", "factors.1/7", "--scale", 2), "it is of a dictionary instead name its file"),
        (("--unit", "neurons.2/7", "--scale", "inf"), "it makes NaN or infinity"),
        (("--unit", "neurons.2/7", "--scale", 2, "--most", 500), "ask for"),
    ],
)
def test_what_cannot_be_steered_is_refused(
    checkpoint: Path,
    arguments: tuple[object, ...],
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, "steer", checkpoint, "The river", *arguments) == 2
    printed = capsys.readouterr()
    assert why in " ".join(printed.err.split())
    assert printed.out == ""


def test_neurons_goes_deeper_in_an_atlas_that_is_there(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, text = tmp_path / "atlas", tmp_path / "texts"
    text.mkdir()
    for place, document in enumerate(toys.toy_texts()):
        (text / f"{place:02d}.txt").write_text(document)
    common = ("-o", output, "--window", 24, "--dtype", "float32")
    assert run(monkeypatch, "build", checkpoint, text, *common) == 0
    atlas = Atlas(output)
    assert "microtome neurons" in str(atlas.manifest.runs["main"].absent)
    assert run(monkeypatch, "neurons", checkpoint, text, *common) == 0
    counted = "select stat, count(*) as n from unit_stats where stat like 'loss_%' group by stat order by stat"
    rows = {row["stat"]: row["n"] for row in Atlas(output).sql(counted).to_pylist()}
    assert rows == {"loss_ablated": 24, "loss_effect": 120}
    together = "select a.value as exact, e.value as first from unit_stats a join unit_stats e using (unit) where a.stat = 'loss_ablated' and e.stat = 'loss_effect'"
    found = Atlas(output).sql(together).to_pylist()
    exact, first = (torch.tensor([row[name] for row in found]) for name in ("exact", "first"))
    assert float(torch.corrcoef(torch.stack([exact, first]))[0, 1]) > 0.4


def test_scaling_changes_the_text_and_scaling_by_one_does_not(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {}
    for scale in (1, -60):
        asked = (
            "steer",
            checkpoint,
            "The river holds",
            "--unit",
            "neurons.2/7",
            "--unit",
            "neurons.1/3",
            "--scale",
            scale,
            "--most",
            8,
        )
        assert run(monkeypatch, *asked, "--dtype", "float32") == 0
        printed = capsys.readouterr().out.splitlines()
        heads = [place for place, line in enumerate(printed) if ": loss by the unchanged model " in line]
        assert f"times {scale}: " in printed[heads[1]]
        said[scale] = [printed[place + 1].strip() for place in heads[:2]]
    assert said[1][0] == said[1][1] == said[-60][0]
    assert said[-60][1] != said[-60][0]


def test_facts_and_labels_come_from_files(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, text = tmp_path / "atlas", tmp_path / "texts"
    text.mkdir()
    for place, document in enumerate(toys.toy_texts()):
        (text / f"{place:02d}.txt").write_text(document)
    facts, labels = tmp_path / "facts.jsonl", tmp_path / "labelled.txt"
    facts.write_text(json.dumps({"relation": "next", "subject": "river", "answer": "stone", "prompts": ["the {subject}"]}))
    words = [word for document in toys.toy_texts() for word in document.split()]
    tagged = [f"{word}/{'short' if len(word) < 5 else 'long'}" for word in words]
    labels.write_text("\n".join(" ".join(tagged[start : start + 12]) for start in range(0, len(tagged), 12)))
    common = ("-o", output, "--window", 24, "--dtype", "float32", "--depth", "quick")
    assert run(monkeypatch, "neurons", checkpoint, text, *common, "--facts", facts, "--labels", labels) == 0
    atlas = Atlas(output)
    assert [row["subject"] for row in atlas.sql("select subject from facts").to_pylist()] == ["river"]
    probed = atlas.sql("select distinct label from probes where f1 is not null").to_pylist()
    assert {row["label"] for row in probed} >= {"short", "long"} or {row["label"] for row in probed} == {"short"}


@pytest.mark.parametrize(("option", "content"), [("--facts", "{}"), ("--labels", "no labels here")])
def test_a_bad_file_is_refused_and_nothing_is_written(
    option: str,
    content: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad, text = tmp_path / "bad.txt", tmp_path / "text.txt"
    bad.write_text(content)
    text.write_text(" ".join(toys.toy_texts()))
    assert run(monkeypatch, "neurons", checkpoint, text, "-o", tmp_path / "atlas", option, bad) == 2
    assert "bad.txt" in capsys.readouterr().err
    assert not (tmp_path / "atlas").exists()
