"""What the lenses add to a planted atlas, in numbers that a test can know: geometry, heads, factors, maps, labels, links."""

from pathlib import Path
from typing import Any

from microtome.store import rows_of, write_table
from tests.unit.web.planted import RUN

SITES = ("resid_pre.0", *(f"resid_post.{layer}" for layer in range(12)))
"""Thirteen sites; by letters resid_post.10 comes before resid_post.2."""
LARGE = "resid_post.2"
"""The site of which there is more than a page is told."""
HEADS = ("heads.0/0", "heads.0/1", "heads.1/0")
FACTORS = 6
ROLES = ("writes about few tokens", "divides the vocabulary in two")


def plant_lenses(atlas: Path) -> Path:
    """Add to an atlas of `planted.plant` what the tests of its pages know."""
    _plant_geometry(atlas)
    _plant_large_site(atlas)
    _plant_attention(atlas)
    _plant_heads(atlas)
    _plant_factors(atlas)
    _plant_labels(atlas)
    _plant_ties(atlas)
    return atlas


def _write(atlas: Path, table: str, writer: str, rows: list[dict[str, Any]]) -> None:
    write_table(atlas, table, writer, rows_of(table, rows))


def _plant_geometry(atlas: Path) -> None:
    """At site n: `leak` n / 100 beside control 0.5, `clusters` only at the first, undefined at the second."""
    stats = [
        {
            "run": RUN, "site": site, "layer": 0, "subject": "pos and ctx", "stat": "leak", "value": n / 100, "control": 0.5, "control_kind": "rotated",
            "control_lo": 0.4, "control_hi": 0.6, "lo": n / 100 - 0.001, "hi": n / 100 + 0.001, "q": 0.01, "undefined": None,
        }
        for n, site in enumerate(SITES)
    ]  # fmt: skip
    other = {"run": RUN, "layer": 0, "subject": "ctx", "stat": "clusters"}
    stats += [
        other | {"site": SITES[0], "value": 3.0},
        other | {"site": SITES[1], "value": None, "undefined": "no cluster is stable"},
        other
        | {
            "site": SITES[1],
            "stat": "map_trustworthiness",
            "value": 0.9,
            "control": 0.5,
            "control_kind": "a random arrangement",
        },
    ]
    _write(atlas, "geometry_stats", "lenses", stats)
    pair = {"run": RUN, "stat": "cka", "control": 0.1, "control_kind": "rows in random order"}
    rows = [("pos", SITES[0], SITES[12], 0.25), ("pos", SITES[3], SITES[11], 0.75), ("ctx", SITES[0], SITES[1], 1.0)]
    _write(
        atlas,
        "geometry_alignment",
        "lenses",
        [pair | dict(zip(("subject", "site", "other", "value"), row, strict=True)) for row in rows],
    )
    at = {"run": RUN, "site": SITES[1], "layer": 0}
    _write(atlas, "geometry_positions", "lenses", [
        at | {"position": n, "windows": 9 - n, "norm": n + 0.5, "state_norm": 10.0, "x": float(n), "y": -float(n), "z": None} for n in range(3)
    ])  # fmt: skip
    spectra = [at | {"subject": "pos", "rank": n, "value": 8.0 / (n + 1)} for n in range(3)]
    _write(atlas, "geometry_spectra", "lenses", spectra)
    _write(atlas, "geometry_frequencies", "lenses", [
        at | {"subject": "pos", "row": n, "column": m, "value": 10.0 * n + m} for n in range(2) for m in range(3)
    ])  # fmt: skip
    _write(atlas, "geometry_cosines", "lenses", [
        at | {"row": n, "subject": ("pos", "ctx")[n // 2], "index": 10 * n, "cosines": [1.0 if n == m else 0.1 * (n + m) for m in range(4)]} for n in range(4)
    ])  # fmt: skip
    _write(atlas, "geometry_windows", "lenses", [
        at | {"window": n, "document": n // 2, "label": ("late", "early", None)[n % 3], "cluster": None if n == 4 else n % 2, "norm": 1.0, "x": n / 2, "y": n / 4}
        for n in range(5)
    ])  # fmt: skip


def _plant_large_site(atlas: Path) -> None:
    """4,000 positions, spectra of 3,000 values, 70 x 70 frequencies, 900 rows of cosines, 9,000 windows of long labels."""
    at = {"run": RUN, "site": LARGE, "layer": 2}
    write = {
        "geometry_positions": [at | {"position": n, "windows": 1, "norm": n / 7, "state_norm": n / 3, "x": n / 9, "y": n / 11, "z": n / 13} for n in range(4000)],
        "geometry_spectra": [at | {"subject": f"part {part}", "rank": n, "value": 1 / (n + 1)} for part in range(6) for n in range(3000)],
        "geometry_frequencies": [at | {"subject": "pos", "row": n, "column": m, "value": n + m / 100} for n in range(70) for m in range(70)],
        "geometry_cosines": [at | {"row": n, "subject": "pos", "index": n, "cosines": [n / 900] * 900} for n in range(900)],
        "geometry_windows": [
            at | {"window": n, "document": n, "label": f"{n % 5000} " + "x" * 500, "cluster": n, "norm": n / 7, "x": n / 9, "y": n / 11} for n in range(9000)
        ],
    }  # fmt: skip
    for table, rows in write.items():
        _write(atlas, table, "large", rows)


def _plant_attention(atlas: Path) -> None:
    """Of head h of layer l, query part q and key part k: energy 1000 l + 100 h + 10 q + k; one pair is not there."""
    parts = ("mu", "pos", "ctx")
    _write(atlas, "geometry_attention", "lenses", [
        {
            "run": RUN, "layer": layer, "head": head, "query_part": query, "key_part": key, "energy": 1000.0 * layer + 100 * head + 10 * n + m,
            "energy_control": 1.0, "share": 0.5, "share_control": None, "control_kind": "rotated parts",
        }
        for layer in range(2) for head in range(2) for n, query in enumerate(parts) for m, key in enumerate(parts) if (layer, head, n, m) != (1, 1, 2, 2)
    ])  # fmt: skip


def _plant_heads(atlas: Path) -> None:
    _write(atlas, "units", "heads", [
        {"unit": unit, "basis": "heads", "layer": int(unit[6]), "index": int(unit[8])} for unit in HEADS
    ])  # fmt: skip
    _write(atlas, "unit_stats", "heads", [
        {
            "unit": unit, "stat": "copying_score", "value": 0.25 * n, "control": 0.1, "control_kind": "rotated inside", "q": (0.2, 0.05, None)[n], "run": RUN,
        }
        for n, unit in enumerate(HEADS)
    ])  # fmt: skip
    pairs = [
        {
            "head": HEADS[1], "circuit": circuit, "end": end, "rank": n, "token": n + 1, "other": n + 2, "score": 9.0 - n, "z": sign * (5.0 - n / 50),
            "control": 2.0,
        }
        for circuit in ("ov", "qk") for end, sign in (("+", 1), ("-", -1)) for n in range(150 if end == "+" else 2)
    ]  # fmt: skip
    _write(atlas, "pairs", "lenses", pairs)


def _plant_factors(atlas: Path) -> None:
    """Factor n is at (n, -n / 2) on a map, with importance n at resid_post.0 and 10 - n at resid_post.1, but factor 5, which has none."""
    units = [f"factors@toy/{n}" for n in range(FACTORS)]
    _write(
        atlas,
        "units",
        "factors",
        [{"unit": unit, "basis": "factors", "name": "toy", "index": n} for n, unit in enumerate(units)],
    )
    _write(atlas, "unit_places", "factors", [
        {"unit": unit, "layout": "t-SNE", "x": float(n), "y": -n / 2} for n, unit in enumerate(units)
    ])  # fmt: skip
    _write(atlas, "unit_stats", "factors", [
        {"unit": unit, "stat": "importance", "site": f"resid_post.{layer}", "value": float(value), "run": RUN}
        for n, unit in enumerate(units[:5]) for layer, value in enumerate((n, 10 - n))
    ])  # fmt: skip
    kept = {"run": RUN, "name": "toy", "site": "", "value": 0.8}
    _write(atlas, "dictionary_stats", "factors", [
        kept | {"stat": "trustworthiness", "control": 0.6, "control_kind": "two principal components"},
        kept | {"stat": "continuity", "control": 0.5, "control_kind": "places dealt out anew"},
        kept | {"stat": "explained", "control": 0.5, "control_kind": "places dealt out anew"},
    ])  # fmt: skip


def _plant_labels(atlas: Path) -> None:
    """Roles in layers 0 and 1; 40 tokens on 40 units, token n on n units more, of which one unit has two."""
    label = {
        "end": "",
        "kind": "role",
        "value": 1.0,
        "control": 0.1,
        "control_kind": "random directions",
        "q": 0.01,
        "run": RUN,
    }
    rows = [label | {"unit": f"neurons.0/{n}", "text": ROLES[0]} for n in range(5)]
    rows += [label | {"unit": f"neurons.{layer}/{n}", "text": ROLES[1]} for layer in (0, 1) for n in range(10, 12)]
    token = label | {"kind": "token"}
    rows += [token | {"unit": f"neurons.2/{n}", "text": f"‘t{n:02}’", "end": "top"} for n in range(40)]
    rows += [
        token | {"unit": "neurons.3/0", "text": "‘t00’", "end": "top"},
        token | {"unit": "neurons.3/0", "text": "‘t39’", "end": "bottom", "q": 1e-9},
    ]
    _write(atlas, "unit_labels", "lenses", rows)
    said = {
        "unit": "neurons.3/9",
        "end": "top",
        "method": "tokens",
        "text": "‘Liberty’ (9.0)",
        "pearson": 0.7,
        "control": 0.1,
        "q": 0.01,
        "run": RUN,
    }
    _write(atlas, "explanations", "lenses", [said])


def _plant_ties(atlas: Path) -> None:
    """Unit neurons.1/7 writes like neurons.0/3 (both ways) and, less than chance, like neurons.2/2; factors@toy/1 fires with it."""
    link = {"kind": "writes alike", "control": 0.3}
    _write(atlas, "links", "lenses", [
        link | {"unit": "neurons.1/7", "other": "neurons.0/3", "score": -0.9}, link | {"unit": "neurons.0/3", "other": "neurons.1/7", "score": -0.9},
        link | {"unit": "neurons.2/2", "other": "neurons.1/7", "score": 0.2}, link | {"unit": "neurons.1/7", "other": "W_out.1/3", "score": 0.8},
    ])  # fmt: skip
    tie = {"run": RUN, "unit": "neurons.1/7", "score": 0.5, "control": 0.1}
    _write(atlas, "coactivations", "lenses", [tie | {"other": "factors@toy/1"}])
    _write(atlas, "cofirings", "lenses", [tie | {"other": "factors@toy/1", "shifted": 0.1, "expected": 0.1}])
