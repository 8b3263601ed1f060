"""Tables of a made-up geometry whose numbers tests know."""

import math

import numpy as np
import pyarrow as pa

from microtome.store import TABLES

SITES = (("resid_pre.0", 0), ("resid_post.0", 0), ("resid_post.1", 1), ("resid_post.2", 2), ("resid_post.10", 10))
POSITIONS, PLACES, WINDOWS = 40, 6, 4


def _table(name: str, rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows, TABLES[name].schema)


def _sites(run: str) -> list[dict]:
    return [{"run": run, "site": site, "layer": layer} for site, layer in SITES]


def spiral(position: int) -> tuple[float, float, float]:
    angle = 4 * math.pi * position / POSITIONS
    return (1 + position) * math.cos(angle), (1 + position) * math.sin(angle), float(position)


def positions(run: str = "main") -> pa.Table:
    rows = [
        at | {"position": place, "windows": 9, "norm": 1.0, "state_norm": 2.0} | dict(zip("xyz", spiral(place), strict=True))
        for at in _sites(run)
        for place in reversed(range(POSITIONS))
    ]
    return _table("geometry_positions", rows)


def singular(subject: str, rank: int) -> float:
    size = {"pos": 100.0, "pos noise": 2.0, "pos cross-validated": 90.0, "ctx": 50.0, "states": 7.0}[subject]
    sign = -1 if subject == "pos cross-validated" and rank >= 20 else 1
    return sign * size / (1 + rank)


def spectra(run: str = "main") -> pa.Table:
    subjects = ("pos", "pos noise", "pos cross-validated", "ctx", "states")
    rows = [
        at | {"subject": subject, "rank": rank, "value": singular(subject, rank)}
        for at in _sites(run)
        for subject in subjects
        for rank in range(80)
    ]
    return _table("geometry_spectra", rows)


def transform(subject: str) -> np.ndarray:
    block = np.diag(np.arange(10.0)) * (1 if subject == "pos" else 0.5)
    block[0, 0] = 1000.0
    block[1, 3] = block[3, 1] = -12.0
    return block


def frequencies(run: str = "main") -> pa.Table:
    rows = [
        at | {"subject": subject, "row": row, "column": column, "value": float(value)}
        for at in _sites(run)
        for subject in ("pos", "cosines of pos")
        for (row, column), value in np.ndenumerate(transform(subject))
    ]
    return _table("geometry_frequencies", rows)


def joint() -> np.ndarray:
    size = PLACES + WINDOWS
    found = np.cos(0.3 * np.abs(np.subtract.outer(np.arange(size), np.arange(size))))
    found[:PLACES, PLACES:] = found[PLACES:, :PLACES] = 0.125
    return found.astype(np.float32)


def cosines(run: str = "main") -> pa.Table:
    subjects = [("pos", 3 * place) for place in range(PLACES)] + [("ctx", 70 + window) for window in range(WINDOWS)]
    rows = [
        at | {"row": row, "subject": subject, "index": index, "cosines": joint()[row].tolist()}
        for at in _sites(run)
        for row, (subject, index) in reversed(list(enumerate(subjects)))
    ]
    return _table("geometry_cosines", rows)


def windows(run: str = "main", label: str | None = "label", cluster: bool = True) -> pa.Table:
    rows = [
        at
        | {
            "window": window,
            "document": window,
            "label": f"{label} {window % 2}" if label and window else None,
            "cluster": window % 3 if cluster else None,
            "norm": 1.0,
            "x": float(window),
            "y": float(-window),
        }
        for at in _sites(run)
        for window in range(9)
    ]
    return _table("geometry_windows", rows)


def stats(run: str = "main") -> pa.Table:
    rows = []
    for order, at in enumerate(_sites(run)):
        value = 5.0 + order
        rows.append(
            at
            | {
                "subject": "pos",
                "stat": "stable_rank",
                "value": value if order != 2 else None,
                "control": 20.0,
                "control_kind": "noise",
                "control_lo": 18.0,
                "control_hi": 23.0,
                "lo": value - 1,
                "hi": value + 2,
                "undefined": "too few positions" if order == 2 else None,
            }
        )
        rows.append(at | {"subject": "ctx", "stat": "map_trustworthiness", "value": 0.875, "control": 0.5, "control_kind": "r"})
        rows.append(at | {"subject": "ctx", "stat": "clusters", "value": None, "undefined": "too few windows"})
    return _table("geometry_stats", rows)


def energy(layer: int, head: int) -> dict[tuple[str, str], float]:
    main = 0.5 + 0.1 * layer + 0.05 * head
    return {("pos", "pos"): main, ("mu", "resid"): 0.96 - main, ("ctx", "ctx"): 0.03, ("const", "mu"): 0.01}


def attention(run: str = "main") -> pa.Table:
    rows = [
        {
            "run": run,
            "layer": layer,
            "head": head,
            "query_part": query,
            "key_part": key,
            "energy": value,
            "energy_control": 0.25,
            "share": value,
            "share_control": 0.0,
            "control_kind": "queries turned",
        }
        for layer in range(3)
        for head in range(2)
        for (query, key), value in energy(layer, head).items()
    ]
    return _table("geometry_attention", rows)


def shares(run: str = "main") -> pa.Table:
    rows = [
        at | {"part": part, "share": 1 / 3, "control": 0.1, "norm": 1.0}
        for at in _sites(run)
        for part in ("pos", "ctx", "resid")
    ]
    return _table("geometry_shares", rows)


def alike(subject: str, one: int, other: int) -> float:
    return (0.9 if subject == "pos" else 0.5) - 0.1 * abs(one - other)


def alignment(run: str = "main") -> pa.Table:
    rows = []
    for one, (site, _) in enumerate(SITES):
        for other, (further, _) in list(enumerate(SITES))[one + 1 :]:
            pair = {"run": run, "site": site, "other": further, "control": 0.01}
            for subject, stat in (("pos", "cka"), ("ctx", "cka"), ("ctx", "cka_debiased")):
                rows.append(pair | {"subject": subject, "stat": stat, "value": alike(subject, one, other)})
            if other == one + 1:
                rows.append(pair | {"subject": "pos", "stat": "mean_square_cosine_of_angles", "value": 0.75 + one / 100})
    return _table("geometry_alignment", rows)


def losses(run: str = "main") -> pa.Table:
    rows = [at | {"objective": "next_token", "loss": 3.0, "control": 5.0, "tokens": 9} for at in _sites(run)]
    return _table("layer_loss", rows)
