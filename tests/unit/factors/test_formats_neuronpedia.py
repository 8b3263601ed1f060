"""Batches of features have the layout that SAEDashboard writes and Neuronpedia's importer reads."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microtome.core import Refusal
from microtome.factors.formats.neuronpedia import (
    Context,
    Feature,
    Histogram,
    Interval,
    Neighbour,
    Source,
    Weighted,
    write_features,
)

SOURCE = Source("gpt2-small", 6, "res-yun", "2k", dataset="wikitext", prompts=24, tokens_in_prompt=128)
FEATURE = Feature(
    index=3,
    contexts=(
        Context(("He", " left", " ☃"), (0.0, 2.5, 0.25), 1),
        Context((" the", " left"), (0.0, 1.0), 1, Interval(0.5, 1.5, 0.2)),
    ),
    promoted=Weighted((" home", "</b>"), (1.5, 1.0)),
    suppressed=Weighted((" right",), (-2.0,)),
    share=0.01,
    activations=Histogram((0.5, 1.5), (7.0, 2.0)),
    logits=Histogram((-1.0, 1.0), (3.0, 4.0)),
    aligned=((5, 0.5, 0.1),),
    similar=(Neighbour(8, 0.75, 0.5),),
    correlated=(Neighbour(11, 0.25, 0.125),),
    heads=(0.5, 0.5),
    direction=(0.6, 0.8),
)
LAYOUT: dict[str, Any] = {
    "feature_index": 3,
    "neuron_alignment_indices": [5],
    "neuron_alignment_values": [0.5],
    "neuron_alignment_l1": [0.1],
    "correlated_neurons_indices": [11],
    "correlated_neurons_l1": [0.125],
    "correlated_neurons_pearson": [0.25],
    "correlated_features_indices": [8],
    "correlated_features_l1": [0.5],
    "correlated_features_pearson": [0.75],
    "neg_str": [" right"],
    "neg_values": [-2.0],
    "pos_str": [" home", "</b>"],
    "pos_values": [1.5, 1.0],
    "frac_nonzero": 0.01,
    "freq_hist_data_bar_values": [0.5, 1.5],
    "freq_hist_data_bar_heights": [7.0, 2.0],
    "logits_hist_data_bar_heights": [3.0, 4.0],
    "logits_hist_data_bar_values": [-1.0, 1.0],
    "n_prompts_total": 24,
    "n_tokens_in_prompt": 128,
    "dataset": "wikitext",
    "decoder_weights_dist": [0.5, 0.5],
    "activations": [
        {
            "bin_min": -1.0,
            "bin_max": 2.5,
            "bin_contains": -1.0,
            "tokens": ["He", " left", " ☃"],
            "values": [0.0, 2.5, 0.25],
            "qualifying_token_index": 1,
        },
        {
            "bin_min": 0.5,
            "bin_max": 1.5,
            "bin_contains": 0.2,
            "tokens": [" the", " left"],
            "values": [0.0, 1.0],
            "qualifying_token_index": 1,
        },
    ],
    "vector": [0.6, 0.8],
}


def test_a_batch_has_the_documented_layout(tmp_path: Path) -> None:
    (path,) = write_features([FEATURE], SOURCE, tmp_path / "out")
    assert path == tmp_path / "out" / "batch-0.json"
    assert json.loads(path.read_text("utf-8")) == {
        "model_id": "gpt2-small",
        "layer": 6,
        "sae_set": "res-yun",
        "sae_id_suffix": "2k",
        "features": [LAYOUT],
    }


def test_features_are_split_into_batches_and_empty_lists_are_there(tmp_path: Path) -> None:
    paths = write_features((Feature(index) for index in range(5)), SOURCE, tmp_path, together=2)
    assert [path.name for path in paths] == ["batch-0.json", "batch-1.json", "batch-2.json"]
    batches = [json.loads(path.read_text())["features"] for path in paths]
    assert [[each["feature_index"] for each in batch] for batch in batches] == [[0, 1], [2, 3], [4]]
    assert {name: type(value) for name, value in batches[0][0].items()} == {name: type(v) for name, v in LAYOUT.items()}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"index": -1}, "its number is below 0"),
        ({"share": 1.5}, "1.5 is no share of tokens"),
        ({"promoted": Weighted(("a",), ())}, "promoted has not a value for each token"),
        ({"suppressed": Weighted((), (1.0,))}, "suppressed has not a value for each token"),
        ({"activations": Histogram((1.0,), ())}, "the histogram of activations has not a height for each bar"),
        ({"logits": Histogram((1.0,), ())}, "the histogram of logits has not a height for each bar"),
        ({"contexts": (Context((), (), 0),)}, "a context has no token"),
        ({"contexts": (Context(("a",), (1.0, 2.0), 0),)}, "a context has not a value for each token"),
        ({"contexts": (Context(("a",), (1.0,), 1),)}, "a context was chosen for a token that it does not have"),
        ({"contexts": (Context(("a",), (float("nan"),), 0),)}, "bin_max has a number that is not finite"),
        ({"contexts": (Context(("a",), (-math.inf,), 0, Interval(0.0, 1.0, 0.1)),)}, "values has a number that is not finite"),
        ({"promoted": Weighted(("a",), (float("inf"),))}, "pos_values has a number that is not finite"),
        ({"share": float("nan")}, "nan is no share"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    with pytest.raises(Refusal, match=f"feature .* for Neuronpedia: {why}"):
        write_features([replace(FEATURE, **change)], SOURCE, tmp_path)
    assert not list(tmp_path.iterdir())


def test_features_that_come_twice_or_not_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="feature 3 for Neuronpedia: it comes twice"):
        write_features([FEATURE, FEATURE], SOURCE, tmp_path)
    with pytest.raises(Refusal, match="there are no features"):
        write_features([], SOURCE, tmp_path)
    with pytest.raises(Refusal, match="a file has one at least"):
        write_features([FEATURE], SOURCE, tmp_path, together=0)


def test_numbers_of_numpy_are_written_as_numbers(tmp_path: Path) -> None:
    values = [float(each) for each in np.array([0.5, 0.25], np.float32)]
    (path,) = write_features([replace(FEATURE, contexts=(Context(("a", "b"), values, 0),))], SOURCE, tmp_path)
    assert json.loads(path.read_text())["features"][0]["activations"][0]["values"] == [0.5, 0.25]
