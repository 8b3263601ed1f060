"""Names of other tools for sites live in one module; everywhere else microtome speaks its own words.

Prose is exempt: docstrings and comments may name them.
"""

import ast
import re

import pytest

from tests.tree import docstring_lines, modules

HOME = "model/spellings.py"
FOREIGN = re.compile(
    r"hook_(embed|pos_embed|resid_|attn_|mlp_|q\b|k\b|v\b|z\b|rot_|pattern|normalized|scale|result|pre\b|post\b|router)"  # TransformerLens
    r"|ln_final\.hook|ln[12]\.hook|blocks\.(\{|\d+)"
    r"|\.(output|input)\[0\]|\.nns\b"  # nnsight
    r"|hidden_states\[\d|hidden_states\.\d"  # Hugging Face
)


def foreign(tree: ast.Module) -> list[tuple[int, str]]:
    """Line and text of every string outside prose that is a foreign spelling."""
    prose = docstring_lines(tree)
    return [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.lineno not in prose
        and FOREIGN.search(node.value)
    ]


def test_foreign_spellings_live_in_one_module() -> None:
    found = {name: strings for name, tree in modules().items() if name != HOME and (strings := foreign(tree))}
    assert found == {}


def test_the_one_module_speaks_them() -> None:
    """Should the spellings move, this test must move with them, or the one above tests nothing."""
    assert foreign(modules()[HOME])


@pytest.mark.parametrize(
    "text", ["blocks.6.hook_resid_post", "blocks.{i}.attn.hook_z", "hidden_states[3]", "model.layers[2].output[0]"]
)
def test_a_foreign_spelling_is_noticed(text: str) -> None:
    assert foreign(ast.parse(f"site = {text!r}"))
    assert not foreign(ast.parse(f'"""Prose about {text}."""'))


def test_own_words_are_not_foreign() -> None:
    own = ["resid_post.6", "mlp_act", "output_hidden_states", "hidden_states", "W_out.24/343"]
    assert [text for text in own if foreign(ast.parse(f"site = {text!r}"))] == []
