"""Models on several devices: which part goes where, that nothing meets what is elsewhere, and what is refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from microtome.capture.run import fold_batch
from microtome.core import Batch, ExpertRows, Refusal, Site, State
from microtome.model import capture, load, observe, wrap
from microtome.model.certificate import probe_batch
from microtome.model.placement import devices_named, room_on, split
from microtome.model.wrapping import uncertified
from tests import toys
from tests.pretend import apart, pretending
from tests.unit.model.tiny import TINY

TWO = "pretend:0,pretend:1"
CUDA = tuple(torch.device("cuda", each) for each in range(8))
LAYOUTS = ("gpt2", "llama-tied", "gpt_neox", "gemma2", "mixtral", "albert", "bert", "electra", "modernbert", "vit")
"""A family of each kind: plain and gated, parallel, sandwiched norms, experts, shared blocks, heads with a transform, pixels."""


def blocks(layers: int) -> list[str]:
    return [f"model.layers.{layer}" for layer in range(layers)]


def test_each_device_has_about_as_many_bytes() -> None:
    module = toys.llama(9)
    found = split(module, blocks(9), CUDA[:3])
    sizes = dict.fromkeys(map(str, CUDA[:3]), 0)
    for name, device in found.items():
        if name != "lm_head":  # it is the embeddings
            sizes[device] += sum(each.numel() for each in module.get_submodule(name).parameters())
    whole = sum(each.numel() for each in module.parameters())
    block = sum(each.numel() for each in module.get_submodule("model.layers.0").parameters())
    assert sum(sizes.values()) == whole
    assert all(abs(size - whole / 3) <= block for size in sizes.values())
    order = [found[name] for name in blocks(9)]
    assert order == sorted(order)


def test_a_head_that_is_the_embeddings_stays_with_them_and_another_comes_last() -> None:
    tied, own = toys.llama(4), toys.llama(4)
    own.lm_head.weight = torch.nn.Parameter(own.lm_head.weight.clone())
    assert split(tied, blocks(4), CUDA[:2])["lm_head"] == "cuda:0"
    assert split(own, blocks(4), CUDA[:2])["lm_head"] == "cuda:1"
    assert split(own, blocks(4), CUDA[:2])["model.rotary_emb"] == "cuda:0"  # without parameters, and used first


@pytest.mark.parametrize("devices", range(1, 9))
def test_every_device_has_a_block_where_there_are_as_many(devices: int) -> None:
    found = split(toys.llama(8), blocks(8), CUDA[:devices])
    assert {found[name] for name in blocks(8)} == {f"cuda:{each}" for each in range(devices)}


def test_more_devices_than_blocks_are_refused() -> None:
    with pytest.raises(Refusal, match="it has 2 blocks"):
        split(toys.llama(2), blocks(2), CUDA[:3])
    with pytest.raises(Refusal, match="it has 1 blocks"):
        split(toys.llama(2), ["model.layers.0"] * 12, CUDA[:2])


@pytest.mark.parametrize(
    ("device", "why"),
    [
        ("cpu,cpu", "told apart by number"),
        ("cuda:98,cuda:99", "torch finds no such device here"),
        ("cpu,nonsense", "no device has this name"),
    ],
)
def test_devices_that_do_not_go_together_are_refused(device: str, why: str) -> None:
    with pytest.raises(Refusal, match=why):
        devices_named(device)


def test_a_model_is_spread_by_itself_only_where_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 120))
    assert room_on("auto", 80) == (torch.device("cuda"),)
    assert room_on("auto", 81) == CUDA[:4]
    assert room_on("cuda", 1000) == CUDA[:4]
    assert room_on("cuda:1", 1000) == (CUDA[1],)
    assert room_on("cpu", 1000) == (torch.device("cpu"),)


@dataclass(frozen=True)
class _Ends:
    """A fold of the first and the last layer, which are on several devices: it adds what a model has made of a stream."""

    kind: ClassVar[str] = "test.ends"
    version: ClassVar[int] = 1
    sites: tuple[Site, ...]

    def init(self) -> State:
        return {}

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        first, last = (values[site] for site in self.sites)
        assert isinstance(first, Tensor)
        assert isinstance(last, Tensor)
        state["sum"] = (last - first).sum().cpu()

    def merge(self, state: State, later: State) -> State:
        return {"sum": state["sum"] + later["sum"]}

    def result(self, state: State) -> State:
        return state


def spread_each(place: str) -> None:
    """Open every layout on two devices, and compare its states with those of the CPU."""
    with pretending():
        for name in LAYOUTS:
            module = TINY[name]()
            module.save_pretrained(Path(place) / name)
            one, two = uncertified(module), load(Path(place) / name, device=TWO, dtype="float32")
            assert [str(each) for each in two.devices] == ["pretend:0", "pretend:1"]
            batch = probe_batch(two)
            ends, states = _Ends((Site("resid_pre", 0), Site("resid_post", two.shape.layers - 1))), [State(), State()]
            fold_batch(one, batch.to("cpu"), {"ends": ends}, {"ends": states[0]})
            fold_batch(two, batch, {"ends": ends}, {"ends": states[1]})
            torch.testing.assert_close(states[1]["sum"], states[0]["sum"], rtol=1e-3, atol=1e-3)
            for layer in range(two.shape.layers):
                sites = [Site(each, layer) for each in ("resid_pre", "attn_out", "mlp_out", "resid_post")]
                places = set[torch.device]()
                observe(two, batch, sites, lambda _, value, places=places: places.add(value.device), where="layer")
                assert places == {next(two.block(layer).parameters()).device}, name
                whole, spread = capture(one, batch.to("cpu"), sites), capture(two, batch, sites)
                for site in sites:
                    assert spread[site].device == two.device
                    torch.testing.assert_close(spread[site].cpu(), whole[site], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_model_of_each_layout_is_certified_on_two_devices_and_has_the_states_of_one(tmp_path: Path) -> None:
    apart(spread_each, tmp_path)


def test_a_model_whose_parameters_are_offloaded_is_refused() -> None:
    module = toys.llama(2)
    module.model.layers[1].to("meta")
    with pytest.raises(Refusal, match="offloaded"):
        load(module)


def meet_elsewhere() -> None:
    """Have tensors meet that are on several devices, and name devices that do not go together."""
    with pretending():
        here, there = torch.ones(2, device="pretend:0"), torch.ones(2, device="pretend:1")
        for meet in (lambda: here + there, lambda: here @ torch.ones(2), lambda: torch.ones(2)[there.long()]):
            with pytest.raises(RuntimeError, match="tensors are on"):
                meet()
        assert (here + there.to("pretend:0")).tolist() == [2, 2]
        assert here[torch.tensor([1])].item() == 1
        module = toys.llama(3)
        module.model.layers[2].to("pretend:1")
        with pytest.raises(RuntimeError, match="tensors are on"):
            wrap(module, toys.decoder_tokenizer())
        for devices in ("pretend:0,pretend:0", "pretend:0,pretend"):
            with pytest.raises(Refusal, match="told apart by number"):
                devices_named(devices)
        with pytest.raises(Refusal, match="devices of one kind"):
            devices_named("pretend:0,cpu:0")


def test_a_tensor_that_is_elsewhere_is_found() -> None:
    """The devices refuse what GPUs refuse: without this the tests on them could not fail."""
    apart(meet_elsewhere)
