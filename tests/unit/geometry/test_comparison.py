"""Two geometries side by side: equal ones, rotated ones, unrelated ones, and texts that differ."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from microtome.geometry import Geometry, compare, measure
from tests import toys


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Geometry:
    folder: Path = toys.save_checkpoint(tmp_path_factory.mktemp("comparison") / "model")
    return measure(folder, toys.toy_texts(documents=24), window=24, depth="quick", sites=["resid_post.0", "resid_post.2"])


def _rows(one: Geometry, other: Geometry) -> dict[tuple[str, str, str, str], dict]:
    rows = compare(one, other, draws=100).to_pylist()
    return {(row["subject"], row["stat"], row["site"], row["other"]): row for row in rows}


def _changed(found: Geometry, turn: torch.Tensor) -> Geometry:
    """The same with every vector multiplied by a matrix."""
    sites = {}
    for name, site in found.sites.items():
        halves = site.parts.halves and tuple(
            replace(half, mu=half.mu @ turn, pos=half.pos @ turn) for half in site.parts.halves
        )
        mu, far = site.parts.mu @ turn, torch.zeros(turn.shape[1])
        parts = replace(site.parts, mu=mu, pos=site.parts.pos @ turn, halves=halves, lowest=far, highest=far)
        sites[name] = replace(site, parts=parts, contexts=replace(site.contexts, ctx=site.contexts.ctx @ turn))
    return replace(found, sites=sites)


def test_a_geometry_is_like_itself_and_like_its_rotation_in_a_wider_space(found: Geometry) -> None:
    width = len(next(iter(found.sites.values())).parts.mu)
    frame, _ = torch.linalg.qr(torch.randn(width + 9, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    for other in (found, _changed(found, 3.0 * frame.T)):
        rows = _rows(found, other)
        assert len(rows) == 2 * 2 * 4
        for site in map(str, found.sites):
            for subject in ("pos", "ctx"):
                assert rows[subject, "cka", site, site]["value"] == pytest.approx(1, abs=1e-9)
                assert rows[subject, "procrustes", site, site]["value"] == pytest.approx(0, abs=1e-6)
                assert rows[subject, "cka", site, site]["control"] < 0.9
                assert rows[subject, "procrustes", site, site]["control"] > 0.1


def test_documents_are_matched_by_their_text_and_not_by_their_number(found: Geometry) -> None:
    site = next(iter(found.sites))
    shifted = {(number + 5) % len(found.documents): text for number, text in found.documents.items()}
    moved = replace(found.sites[site].windows, document=(found.sites[site].windows.document + 5) % len(found.documents))
    renamed = replace(found, documents=shifted, sites={site: replace(found.sites[site], windows=moved)})
    rows = _rows(found, renamed)
    assert rows["ctx", "cka", str(site), str(site)]["value"] == pytest.approx(1, abs=1e-9)
    wrong = _rows(found, replace(renamed, documents=found.documents))
    assert wrong["ctx", "cka", str(site), str(site)]["value"] < 0.9


def test_other_documents_leave_position_and_say_why_there_is_no_context(found: Geometry) -> None:
    rows = _rows(found, replace(found, documents={number: f"other {text}" for number, text in found.documents.items()}))
    site = str(next(iter(found.sites)))
    assert rows["pos", "cka", site, site]["value"] == pytest.approx(1, abs=1e-9)
    assert rows["ctx", "cka", site, site]["value"] is None
    assert rows["ctx", "cka", site, site]["undefined"] == "the two did not read the same documents"


def test_too_few_shared_documents_are_one_reason_for_every_comparison_of_context(found: Geometry) -> None:
    number = next(iter(found.documents))
    rows = _rows(found, replace(found, documents={number: found.documents[number]}))
    why = "documents that both read are too few: 1, and comparing takes 4"
    assert {row["undefined"] for (subject, *_), row in rows.items() if subject == "ctx"} == {why}
    assert {row["undefined"] for (subject, *_), row in rows.items() if subject == "pos"} == {None}
