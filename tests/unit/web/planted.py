"""A made-up atlas with everything that a page must cope with: hostile tokens, right-to-left text, split characters, NaN."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from microtome.store import Manifest, ModelCard, RunCard, table_path, write_manifest, write_table

RUN = "main"
HOSTILE = "<script>document.title='owned'</script>"
PLANTED = " liberty"
"""The token that unit neurons.1/7 fires on, and that neurons.0/3 promotes most."""

_TEXT = (
    "Fellow citizens of the Senate and of the House: the state of the union depends on liberty, on honest labor and on the "
    "careful use of the public money. In the past year the revenue of the Treasury exceeded the expenses by a small amount. "
    "Treaties of commerce with Spain and with France were signed at Paris on the third of March. The navy has seven ships on "
    "the coast, and the army stands at its usual strength. It is for Congress to decide whether further roads, canals and "
    "schools shall be built. No nation can keep its liberty without the consent of a free and educated people. "
)
_STRANGE = f"He wrote {HOSTILE} and \x1b[31mred\x1b[0m and \u202etxet desrever\u202c then שלום עולם, مرحبا بالعالم, 日本語 and 🙂 end. "
_STATS = ("density", "kurtosis", "max", "mean", "min", "skewness", "std", "token_share_top", "write_norm")
_CONTROLLED = ("token_share_top",)


def plant(atlas: Path, *, layers: int = 4, width: int = 64, documents: int = 12, contexts: bool = True) -> Path:
    """Write an atlas of `layers` x `width` feed-forward units; without `contexts` one of the weights alone."""
    atlas.mkdir(parents=True)
    rng = np.random.default_rng(0)
    texts = [_TEXT * 3 if n % 4 else _STRANGE + _TEXT + _STRANGE for n in range(documents)]
    vocabulary, windows = _cut(texts)
    names = [f"neurons.{layer}/{unit}" for layer in range(layers) for unit in range(width)]
    layer_of = np.repeat(np.arange(layers), width)
    _plant_units(atlas, rng, names, layer_of, width)
    _plant_tokens(atlas, rng, names, vocabulary)
    write_table(atlas, "vocabulary", "corpus", pa.table({"token": range(len(vocabulary)), "text": vocabulary}))
    if contexts:
        _plant_text(atlas, texts, windows)
        _plant_contexts(atlas, rng, names, layer_of, vocabulary, windows)
        _plant_layers(atlas, rng, layers)
    _plant_findings(atlas, names)
    write_manifest(atlas, _manifest(layers, width, len(vocabulary), contexts))
    return atlas


def _cut(texts: list[str]) -> tuple[list[str], list[dict]]:
    """A vocabulary of words (with their space) and, for what is not ASCII, of bytes; windows of 64 tokens."""
    vocabulary: dict[str, int] = {"<|begin|>": 0}
    pieces: dict[int, int] = {}
    windows = []
    for document, text in enumerate(texts):
        ids, starts, ends = [], [], []
        at = 0
        while at < len(text):
            end = at + 1
            if text[at] < "\x80":
                while end < len(text) and text[end] not in " <" and text[end] < "\x80":
                    end += 1
                ids.append(vocabulary.setdefault(text[at:end], len(vocabulary)))
                starts.append(at)
                ends.append(end)
            else:
                for byte in text[at].encode():
                    if byte not in pieces:
                        pieces[byte] = vocabulary.setdefault(f"\ufffd{byte:02x}", len(vocabulary))
                    ids.append(pieces[byte])
                    starts.append(at)
                    ends.append(end)
            at = end
        windows += [
            {
                "document": document, "start": first, "ids": [0, *ids[first : first + 63]],
                "char_start": [-1, *starts[first : first + 63]], "char_end": [-1, *ends[first : first + 63]],
            }
            for first in range(0, len(ids), 63)
        ]  # fmt: skip
    return [f"\\x{text[1:]}" if text.startswith("\ufffd") else text for text in vocabulary], windows


def _plant_units(atlas: Path, rng: np.random.Generator, names: list[str], layer_of: np.ndarray, width: int) -> None:
    count = len(names)
    write_table(atlas, "units", "neurons", pa.table({
        "unit": names, "basis": ["neurons"] * count, "name": pa.nulls(count, pa.string()), "layer": layer_of,
        "expert": pa.nulls(count, pa.int16()), "index": np.tile(np.arange(width), count // width),
    }))  # fmt: skip
    depth = layer_of / max(1, layer_of.max())
    values = {
        "density": np.clip(0.35 - 0.25 * np.sin(3 * depth) + 0.08 * rng.standard_normal(count), 0.001, 1),
        "kurtosis": np.exp(1 + 2 * depth + rng.standard_normal(count)),
        "max": 2 + rng.gamma(3.0, 1.0, count),
        "mean": 0.1 * rng.standard_normal(count),
        "min": -0.3 * rng.gamma(3.0, 1.0, count),
        "token_share_top": rng.integers(0, 11, count) / 10,
        "write_norm": 1 + depth + 0.1 * rng.standard_normal(count),
        "skewness": rng.standard_normal(count),
        "std": np.abs(0.4 + 0.2 * rng.standard_normal(count)),
    }
    values["kurtosis"][5] = np.nan
    rows = len(_STATS) * count
    controlled = np.repeat([stat in _CONTROLLED for stat in _STATS], count)

    def beside(values: np.ndarray) -> pa.Array:
        return pa.array(values, mask=~controlled)

    write_table(atlas, "unit_stats", "neurons", pa.table({
        "unit": names * len(_STATS), "site": [f"mlp_act.{layer}" for layer in layer_of] * len(_STATS),
        "stat": np.repeat(_STATS, count), "value": np.concatenate([values[stat] for stat in _STATS]),
        "control": beside(np.full(rows, 0.033)), "control_kind": beside(np.full(rows, "token frequency", dtype=object)),
        "lo": beside(np.full(rows, 0.0)), "hi": beside(np.full(rows, 0.1)), "q": beside(rng.random(rows) ** 4), "run": [RUN] * rows,
    }))  # fmt: skip


def _plant_tokens(atlas: Path, rng: np.random.Generator, names: list[str], vocabulary: list[str]) -> None:
    count, k = len(names), 8
    tokens = rng.integers(1, len(vocabulary), (count, 2, k))
    tokens[:, :, 1:][tokens[:, :, 1:] == vocabulary.index(PLANTED)] = 1
    tokens[3, 0, 0] = vocabulary.index(PLANTED)
    scores = np.sort(rng.gamma(3.0, 1.0, (count, 2, k)), axis=2)[:, :, ::-1] * np.array([1, -1])[None, :, None]
    write_table(atlas, "tokens", "neurons", pa.table({
        "unit": np.repeat(names, 2 * k), "end": np.tile(np.repeat(["+", "-"], k), count), "rank": np.tile(np.arange(k), 2 * count),
        "token": tokens.ravel(), "score": scores.ravel().astype(np.float32),
        "control": (np.sign(scores) * np.linspace(2.2, 1.4, k)).ravel().astype(np.float32),
    }))  # fmt: skip


def _plant_text(atlas: Path, texts: list[str], windows: list[dict]) -> None:
    count = len(texts) + 1
    counts = [sum(window["document"] == n for window in windows) for n in range(count)]
    write_table(atlas, "documents", "corpus.main", pa.table({
        "run": [RUN] * count, "document": range(count), "name": [f"speech-{1790 + n}.txt" for n in range(count)],
        "label": [("early", "late")[n % 2] for n in range(count)], "half": [("discover", "confirm")[n % 2] for n in range(count)],
        "same_as": pa.nulls(count, pa.int64()), "tokens": [63 * n for n in counts], "windows": counts, "status": ["used"] * (count - 1) + ["skipped"],
        "reason": [None] * (count - 1) + ["not text: 43 % of its bytes are not UTF-8"], "text": [*texts, None],
    }))  # fmt: skip
    count = len(windows)
    write_table(atlas, "windows", "corpus.main", pa.table({
        "run": [RUN] * count, "window": range(count), "document": [w["document"] for w in windows],
        "start": [w["start"] for w in windows], "ids": [w["ids"] for w in windows],
        "roles": pa.array([[1, *[3] * (len(w["ids"]) - 1)] for w in windows], pa.list_(pa.uint8())),
        "char_start": [w["char_start"] for w in windows], "char_end": [w["char_end"] for w in windows],
    }))  # fmt: skip


def _plant_contexts(
    atlas: Path, rng: np.random.Generator, names: list[str], layer_of: np.ndarray, vocabulary: list[str], windows: list[dict]
) -> None:
    ends = ["top"] * 6 + ["bottom"] * 4 + [f"decile{n}" for n in range(10)]
    ranks = [*range(6), *range(4), *[0] * 10]
    count, per = len(names), len(ends)
    lengths = np.array([len(window["ids"]) for window in windows])
    window = rng.integers(0, len(windows), (count, per))
    position = (1 + rng.random((count, per)) * (lengths[window] - 1)).astype(np.int64)
    planted = [
        (n, w["ids"].index(vocabulary.index(PLANTED))) for n, w in enumerate(windows) if vocabulary.index(PLANTED) in w["ids"]
    ]
    special = names.index("neurons.1/7")
    for j in range(6):
        window[special, j], position[special, j] = planted[j % len(planted)]
    first = np.maximum(position - 16, 0)
    place = first[..., None] + np.arange(33)
    codes = np.clip(np.round(30 * rng.standard_normal((count, per, 33))), -60, 60)
    peak = place == position[..., None]
    level = np.array([127] * 6 + [-127] * 4 + list(np.linspace(-20, 70, 10)))
    codes = np.where(peak, level[None, :, None], codes)
    codes = np.where((place < lengths[window][..., None]) & (place <= position[..., None] + 16), codes, -128).astype(np.int8)
    scale = np.linspace(0.05, 0.03, per)[None, :] * (1 + rng.random((count, 1)))
    rows = count * per
    write_table(atlas, "contexts", "neurons", pa.table({
        "unit": np.repeat(names, per), "site": np.repeat([f"mlp_act.{layer}" for layer in layer_of], per), "end": ends * count,
        "half": [("discover", "confirm")[n % 2] for n in range(per)] * count, "rank": ranks * count,
        "value": (level[None, :] * scale).ravel().astype(np.float32), "window": window.ravel(), "position": position.ravel(),
        "first": first.ravel(), "scale": scale.ravel().astype(np.float32),
        "activations": pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), 33), "run": [RUN] * rows,
    }))  # fmt: skip


def _plant_layers(atlas: Path, rng: np.random.Generator, layers: int) -> None:
    sites = [("resid_pre.0", 0), *[(f"resid_post.{layer}", layer) for layer in range(layers)]]
    shares, losses = [], []
    for n, (site, layer) in enumerate(sites):
        x = n / layers
        pos, ctx = 0.25 * (1 - x) + 0.03, 0.2 + 0.08 * np.sin(3 * x)
        for part, share, control in (
            ("mu", None, None),
            ("pos", pos, 0.01),
            ("ctx", ctx, 0.06),
            ("resid", 1 - pos - ctx, None),
        ):
            shares.append({
                "run": RUN, "site": site, "layer": layer, "part": part, "share": share, "control": control,
                "control_kind": "shuffled" if control else None, "lo": None, "hi": None,
                "norm": 12 * (1 + 8 * x * x) * (share or 1.3) ** 0.5, "windows": 200, "tokens": 50000,
            })  # fmt: skip
        losses.append({
            "run": RUN, "objective": "next token", "site": site, "layer": layer, "loss": 10.4 - 6.6 * x**1.4, "control": 10.8,
            "control_kind": "random direction of equal norm", "lo": 10.7, "hi": 10.9, "tokens": 50000,
        })  # fmt: skip
    write_table(atlas, "geometry_shares", "geometry", pa.Table.from_pylist(shares))
    write_table(atlas, "layer_loss", "vocabulary", pa.Table.from_pylist(losses))


def _plant_findings(atlas: Path, names: list[str]) -> None:
    rows = {
        "neurons": [
            ("detector", "neurons.1/7+", "neurons.1/7 fires on ‘ liberty’: 6 of 6 top contexts in held-out documents (chance 0.2)", 1.0, 0.033, 2e-9),
            *[
                ("peaked unit", f"neurons.2/{n}", f"neurons.2/{n} is silent but for rare peaks: excess kurtosis {900 - n} (median of its layer 4)", 900.0 - n, 4.0, None)
                for n in range(12)
            ],
            ("promoter", "neurons.0/3", "neurons.0/3 promotes ‘ liberty’ more than any of 100 random directions of its norm", 9.1, 4.2, 0.004),
        ],
        "geometry": [
            ("share", "resid_post.3", "Position explains 3 % of the variance at resid_post.3, and 28 % at resid_pre.0", 0.28, 0.01, 0.0),
            ("share", "resid_post.1", f"A hostile name {HOSTILE} and \u202egnp.exe\u202c and \x1b[31m is shown as text", 0.4, None, None),
        ],
    }  # fmt: skip
    for lens, found in rows.items():
        columns = list(zip(*found, strict=True))
        write_table(atlas, "findings", lens, pa.table({
            "run": [RUN] * len(found), "rank": range(len(found)), "lens": [lens] * len(found), "kind": columns[0],
            "subject": columns[1], "sentence": columns[2], "value": columns[3], "control": pa.array(columns[4], pa.float64()),
            "control_kind": ["shuffled documents"] * len(found), "q": pa.array(columns[5], pa.float64()),
        }))  # fmt: skip
    assert "neurons.1/7" in names


def _manifest(layers: int, width: int, vocab: int, contexts: bool) -> Manifest:
    identities = [
        {"identity": "sum_i mlp_act_i W_out_i + b_out = mlp_out", "worst_error": 3e-7, "worst_layer": layers - 1},
        {"identity": "resid_pre + attn_out_post = resid_mid", "worst_error": 0.0, "worst_layer": 0},
        {"identity": "hooked logits = bare logits", "worst_error": 0.0, "worst_layer": None},
    ]
    identities = [row | {"tolerance": 1e-5, "passed": True} for row in identities]
    run = RunCard(
        status="complete", identity="9f" * 32, seed=0, window=64,
        depths=dict.fromkeys(("geometry", "neurons", "vocabulary"), "quick"),
        execution={"device": "cpu", "dtype": "float32", "threads": 2, "torch": "2.13.0"},
        certificate={
            "model": "planted/toy", "dtype": "bfloat16", "identities": identities,
            "dtypes": [{"layer": n, "relative_error": 0.01 + 0.001 * n, "worst_cosine": 0.999 - 0.002 * n} for n in range(layers)],
        },
        corpus={"name": "speeches", "source": "12 files"} if contexts else None,
        absent={"factors": "no dictionary was trained; run `microtome factors train`"}
        | ({} if contexts else {"contexts": "no text was given; run `microtome build MODEL TEXT`"}),
    )  # fmt: skip
    shape = {"layers": layers, "d_model": 32, "heads": 4, "d_mlp": width, "vocab": vocab, "gated": True, "context": None}
    model = ModelCard(
        name="planted/toy-4L", family="llama", architecture="LlamaForCausalLM", fingerprint="ab" * 20, shape=shape
    )
    return Manifest(written_by="microtome 0.1.0", model=model, runs={RUN: run})


def corrupt(atlas: Path, table: str, writer: str) -> Path:
    """Cut the end off a table's file."""
    path = table_path(atlas, table, writer)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path
