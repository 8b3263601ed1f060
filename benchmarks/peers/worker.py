"""One contestant in a process of its own: loads the model, then runs the measured pass whenever a line comes in.

usage: worker.py NAME MODEL DTYPE. Answers every line on standard input with the seconds that one pass took: all `resid_post`
of the batch, kept until the pass is over, by the means that the tool's documentation recommends. Imports nothing of microtome
unless NAME is microtome, so that each tool runs in an environment of its own.
"""

import os
import sys
import time
from collections.abc import Callable

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

WINDOWS, TOKENS = 8, 256


def _ids(vocab: int) -> torch.Tensor:
    return torch.randint(0, vocab, (WINDOWS, TOKENS), generator=torch.Generator().manual_seed(0))


def bare(path: str, dtype: str) -> Callable[[], object]:
    """The body of the model and nothing else: the limit."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
    ids = _ids(model.config.vocab_size)

    def run() -> object:
        with torch.inference_mode():
            return model(ids, use_cache=False)

    return run


def microtome(path: str, dtype: str) -> Callable[[], object]:
    """`microtome.model.capture`."""
    from microtome.core import Batch, Site
    from microtome.model import capture, load

    model = load(path, dtype=dtype)
    ids = _ids(model.shape.vocab)
    row = torch.arange(WINDOWS)
    roles = torch.full(ids.shape, 3, dtype=torch.uint8)
    batch = Batch(ids, roles, row, row, row * 0, torch.zeros(WINDOWS, dtype=torch.uint8), row * 0, {})
    sites = [Site("resid_post", layer) for layer in range(model.shape.layers)]
    return lambda: capture(model, batch, sites)


def transformer_lens(path: str, dtype: str) -> Callable[[], object]:
    """`TransformerBridge.run_with_cache` with a filter, stopped before the head."""
    from transformer_lens.model_bridge import TransformerBridge  # pyright: ignore[reportMissingImports]

    model = TransformerBridge.boot_transformers(path, dtype=getattr(torch, dtype), device="cpu")
    ids = _ids(model.cfg.d_vocab)
    names = {f"blocks.{layer}.hook_out" for layer in range(model.cfg.n_layers)}

    def run() -> object:
        with torch.inference_mode():
            _, cache = model.run_with_cache(ids, names_filter=lambda name: name in names, stop_at_layer=model.cfg.n_layers)
        assert len(cache) == len(names), "every layer was captured"
        return cache

    return run


def nnsight(path: str, dtype: str) -> Callable[[], object]:
    """`with model.trace(ids)`, saving each layer's output, stopped after the last."""
    from nnsight import LanguageModel  # pyright: ignore[reportMissingImports]

    model = LanguageModel(path, dtype=getattr(torch, dtype), device_map="cpu", dispatch=True)
    ids = _ids(model.config.vocab_size)
    layers = model.config.num_hidden_layers

    def run() -> object:
        with torch.inference_mode():  # noqa: SIM117
            with model.trace(ids) as tracer:  # a trace must be a statement of its own
                saved = list().save()  # noqa: C408  # pyright: ignore[reportAttributeAccessIssue]
                for layer in range(layers):
                    saved.append(model.model.layers[layer].output)
                tracer.stop()
        assert len(saved) == layers, "every layer was captured"
        return saved

    return run


def interp_engine(path: str, dtype: str) -> Callable[[], object]:
    """`capture` on the eager backend."""
    import interp_engine as ie  # pyright: ignore[reportMissingImports]

    model = ie.load_model(path, backend="eager", device="cpu", dtype=dtype)
    config = model.model.config if hasattr(model, "model") else model.config
    ids = _ids(config.vocab_size)
    points = [f"resid_post.{layer}" for layer in range(config.num_hidden_layers)]

    def run() -> object:
        with torch.inference_mode():
            return ie.capture(model, ids, points)

    return run


CONTESTANTS = {f.__name__: f for f in (bare, microtome, transformer_lens, nnsight, interp_engine)}


def main() -> None:
    """Load, say ready, then answer every line with the seconds of one pass."""
    name, path, dtype = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # tools that print must not be taken for answers
    run = CONTESTANTS[name](path, dtype)
    run()
    answers.write("ready\n")
    answers.flush()
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        answers.write(f"{time.perf_counter() - start}\n")
        answers.flush()


if __name__ == "__main__":
    main()
