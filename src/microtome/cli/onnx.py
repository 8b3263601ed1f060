"""A BERT checkpoint from an ONNX graph: reading initializers under the names they had before export.

Only for the packaged encoder that is published in no other form. Opening the result belongs in `model`.
"""

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from microtome.core import Refusal

__all__ = ["write_bert"]

_PREFIX: Final = "model.0.auto_model."
"""What sentence-transformers puts before the encoder's names."""


def write_bert(graph: bytes, folder: Path) -> None:
    """Write config.json and model.safetensors of the BERT encoder that `graph` computes.

    Sizes are read from the weights, except the heads', which the family of MiniLM models fixes at 12.

    Errors: `Refusal` where onnx is not installed.
    """
    from safetensors.numpy import save_file

    tensors = {name.removeprefix(_PREFIX): value for name, value in _weights(graph).items()}
    layers = {int(name.split(".")[2]) for name in tensors if name.startswith("encoder.layer.")}
    vocab, width = tensors["embeddings.word_embeddings.weight"].shape
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": vocab,
        "hidden_size": width,
        "num_hidden_layers": len(layers),
        "num_attention_heads": 12,
        "intermediate_size": tensors["encoder.layer.0.intermediate.dense.bias"].shape[0],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": tensors["embeddings.position_embeddings.weight"].shape[0],
        "type_vocab_size": tensors["embeddings.token_type_embeddings.weight"].shape[0],
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _weights(graph: bytes) -> dict[str, Float[np.ndarray, "..."]]:
    """Floating initializers by name; an anonymous matrix is named by the bias that is added to its product, and turned."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise Refusal("reading an ONNX graph", why="onnx is not installed", instead="run: pip install onnx") from error

    model: Any = onnx.load_model_from_string(graph).graph
    values = {one.name: numpy_helper.to_array(one) for one in model.initializer}
    maker = {output: node for node in model.node for output in node.output}
    named = {name: value for name, value in values.items() if not name.startswith("onnx::")}
    for node in model.node:
        biases = [name for name in node.input if name in values and name.endswith(".bias")]
        others = [name for name in node.input if name not in biases]
        product = maker.get(others[0]) if node.op_type == "Add" and len(biases) == len(others) == 1 else None
        if product is not None and product.op_type == "MatMul":
            matrices = [values[name] for name in product.input if name in values]
            if matrices:
                named[biases[0].removesuffix("bias") + "weight"] = matrices[0].T
    return {name: np.ascontiguousarray(value) for name, value in named.items() if value.dtype == np.float32 and "." in name}
