"""Peak memory of reading the weights of a checkpoint that is much larger: 8 GB of float32 on disk, made up, never built.

usage: python -m benchmarks.large [--depth quick|standard]
`microtome vocabulary` runs in a process of its own. What it holds itself (anonymous pages) is told apart from the pages of the files
that it reads, which the system takes back when it needs them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.interleaved import write_results

RESULTS = Path(__file__).with_name("results.json")
LAYERS, WIDTH, UNITS, HEADS, VOCABULARY = 8, 4096, 16384, 32, 4000
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": UNITS,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
_EVERY = 0.05


def write(folder: Path) -> int:
    """The checkpoint, one file a layer, of normal random numbers; its bytes."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * WIDTH**-0.5

    def kept(name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / name, {"format": "pt"})
        index.update(dict.fromkeys(tensors, name))

    index: dict[str, str] = {}
    kept(
        "ends.safetensors",
        {
            "model.embed_tokens.weight": drawn(VOCABULARY, WIDTH),
            "lm_head.weight": drawn(VOCABULARY, WIDTH),
            "model.norm.weight": torch.ones(WIDTH),
        },
    )
    for layer in range(LAYERS):
        sizes = {f"self_attn.{part}_proj": (WIDTH, WIDTH) for part in "qkvo"}
        sizes |= {"mlp.gate_proj": (UNITS, WIDTH), "mlp.up_proj": (UNITS, WIDTH), "mlp.down_proj": (WIDTH, UNITS)}
        tensors = {f"model.layers.{layer}.{name}.weight": drawn(*shape) for name, shape in sizes.items()}
        norms = ("input_layernorm", "post_attention_layernorm")
        tensors |= {f"model.layers.{layer}.{name}.weight": torch.ones(WIDTH) for name in norms}
        kept(f"layer-{layer}.safetensors", tensors)
    size = sum(path.stat().st_size for path in folder.iterdir())
    (folder / "config.json").write_text(json.dumps(CONFIG), "utf-8")
    listed = {"metadata": {"total_size": size}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listed), "utf-8")
    return size


def watched(command: list[str]) -> dict[str, float]:
    """Run a command; its seconds, and its greatest anonymous and whole resident memory in bytes."""
    begin, peak = time.perf_counter(), {"RssAnon": 0, "VmHWM": 0}
    with subprocess.Popen(command) as child:
        while child.poll() is None:
            for line in Path(f"/proc/{child.pid}/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in peak:
                    peak[name] = max(peak[name], int(value.split()[0]) * 1024)
            time.sleep(_EVERY)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}")
    return {"seconds": time.perf_counter() - begin, "own_bytes": peak["RssAnon"], "resident_bytes": peak["VmHWM"]}


def main() -> None:
    """Make the checkpoint, read it, and write results.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--depth", choices=("quick", "standard"), default="quick")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        folder.mkdir()
        size = write(folder)
        verb = ["-c", "from microtome.cli import main; main()", "vocabulary", str(folder), "--depth", options.depth]
        found = watched([sys.executable, *verb, "-o", f"{temporary}/atlas"])
    row = {"depth": options.depth, "checkpoint_bytes": size, **found}
    write_results(RESULTS, f"large checkpoint, depth {options.depth}", [row])
    sys.stdout.write(
        f"{size / 1e9:.1f} GB on disk: {found['own_bytes'] / 1e9:.2f} GB of its own, {found['resident_bytes'] / 1e9:.2f} GB resident "
        f"with mapped files, {found['seconds']:.0f} s\n"
    )


if __name__ == "__main__":
    main()
