"""Every fold class of microtome with parameters to test it at. A new fold adds a line here, or `test_folds` fails.

Also the planted stream that all of them see: each window's tensors depend on the window alone, so it may be cut anyhow.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from microtome.capture import SiteGram
from microtome.core import Batch, ExpertRows, Fold, Role, Site, UnitAddress
from microtome.examples import DecileContexts, PilotQuantiles, TokenCounts, UnitSurvey
from microtome.examples.chosen import Chosen
from microtome.explain import ExcerptSurvey, Selection
from microtome.factors.basis import Factors
from microtome.factors.cofiring import Cofiring
from microtome.factors.dictionary import Above, Dictionary, Encoder
from microtome.factors.importance import TopCodes
from microtome.factors.scaling import identity
from microtome.geometry.anova import PARTS
from microtome.geometry.attention import QKSplit, Reading, Side
from microtome.geometry.decomposition import Centre, Decomposition, Parts
from microtome.geometry.filtering import PositionFilter
from microtome.geometry.handling import Handled
from microtome.geometry.identity import TokenIdentity
from microtome.geometry.sample import WindowSample
from microtome.model import Model, Norm
from microtome.model.scoring import Scoring, Turn
from microtome.neurons import Neurons
from microtome.neurons.aggregation import Aggregation
from microtome.neurons.coactivation import SampledRows
from microtome.neurons.effects import FirstOrderEffects, UnitAblations
from microtome.neurons.fact_folds import FactTests, PromptWorth
from microtome.neurons.facts import AskedFact, Fact, ask
from microtome.neurons.families import FamilyMoments
from microtome.neurons.memories import value_tokens
from microtome.neurons.positional import PositionalActivity
from microtome.neurons.quadrants import QuadrantContexts
from microtome.neurons.sparsity import SparseActivity
from microtome.probes.folds import WordMoments, WordRows
from microtome.probes.words import LabelledWords
from microtome.readout import output_reader
from microtome.readout.sample import TargetCounts, TokenSample
from microtome.vocabulary.active import ActiveUnits
from microtome.vocabulary.attribution import Attribution, Layer, Wiring
from tests.unit.model.tiny import opened
from tests.unit.neurons.planted_models import dictionary_model

SIZES: Mapping[str, int] = {"d_model": 6, "unit": 5, "head": 4, "head_kv": 2, "d_head": 3, "expert": 3, "vocab": 11}
LONGEST, JUNK = 12, 3e4


@dataclass(frozen=True)
class FoldCase:
    """A fold at parameters that fit `SIZES`; `experts` where its sites are to be rows of a mixture of experts.

    `rounding` is the relative difference allowed where the same windows come in other batches: sums within a batch are float32. Laws are tried
    on `windows` of them: fewer where a fold runs a model on each.
    """

    name: str
    make: Callable[[], Fold]
    experts: bool = False
    masked: bool = False
    rounding: float = 1e-5
    windows: int = 30


_EDGES = torch.linspace(-2, 2, 11)[:, None].repeat(1, SIZES["unit"])
_DENSE = Neurons(2, SIZES["unit"])
_RESID = Site("resid_post", 1)


def _drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=_generator(0, 7))


def _reading() -> Reading:
    """Two key heads for four query heads, the first two of three coordinates turning."""
    angles = torch.arange(LONGEST)[:, None] * torch.tensor([0.3, 0.3, 0.0])
    turn = Turn(angles.cos(), angles.sin() * torch.tensor([-1, 1, 0]), torch.tensor([1, 0, 2]))
    query, key = (Side(_drawn(SIZES[axis], SIZES["d_model"], SIZES["d_head"]), None, None) for axis in ("head", "head_kv"))
    return Reading(None, query, key, Scoring(0.5, None, turn, None))


def _factors() -> Factors:
    """Five of the stream, some of which are active at most tokens."""
    directions = torch.nn.functional.normalize(_drawn(1, SIZES["unit"], SIZES["d_model"]), dim=-1)
    coder = Encoder(directions.mT.contiguous(), torch.zeros(SIZES["unit"]), Above(torch.full((SIZES["unit"],), 0.3)))
    scaling, nothing = identity(1, SIZES["d_model"]), torch.zeros(1, SIZES["d_model"])
    return Factors(Dictionary("five", "shared", (_RESID,), (_RESID,), coder, scaling, directions, nothing), _RESID)


@functools.cache
def _words() -> Model:
    return dictionary_model("silu")


@functools.cache
def _facts() -> tuple[AskedFact, ...]:
    """A fact for each window of the stream: which word follows another."""
    words = [f"w{2 + window % 8}" for window in range(64)]
    return tuple(
        ask(_words(), Fact(("next", "after")[number % 2], word, f"w{int(word[1:]) + 1}", ("w2 {subject}",)))
        for number, word in enumerate(words)
    )


def _known() -> tuple[tuple[UnitAddress, ...], ...]:
    """The unit of each, but of every third none."""
    return tuple((UnitAddress("neurons", 2 + window % 8, layer=0),) if window % 3 else () for window in range(len(_facts())))


@functools.cache
def _labelled() -> LabelledWords:
    """Two words in each window, of three classes, documents in turn in both halves."""
    row = torch.arange(128)
    text = row // 2
    return LabelledWords(
        text, row % 2, row % 2 + 1, row % 3, text, text % 2, row % 5, ("a", "b", "c"), ("word",) * len(row), 0, 0, {}
    )


def _position_filter() -> PositionFilter:
    """Of a tiny GPT-2; its first 11 ids are those of the stream."""
    none: dict[str, float] = dict.fromkeys(PARTS, math.nan)
    pos = _drawn(LONGEST - 2, 16).double()
    parts = Parts(Site("resid_post", 0), pos[0], pos, (1,) * len(pos), 1, len(pos), none, none, none, 1.0)
    return PositionFilter(opened("gpt2"), (parts,), keep=(0,), draws=1)


def _aggregation() -> Aggregation:
    """Of a tiny GPT-2; its first 11 ids are those of the stream."""
    model = opened("gpt2")
    reader = output_reader(model.weights)
    values = torch.stack([value_tokens(model, layer, reader).token for layer in range(model.shape.layers)])
    return Aggregation(model, values, reader, seed=3)


def _wiring() -> Wiring:
    """Two pre-norm layers with biases, one unit of the second looked at."""
    width, gain = SIZES["d_model"], Norm("rms", _drawn(SIZES["d_model"]), None, 1e-5)
    out, bias = _drawn(SIZES["head"], SIZES["d_head"], width), _drawn(width)
    layers = (Layer(out, bias, bias, None, None), Layer(out, None, None, None, None, (2,), _drawn(1, width)))
    return Wiring("pre", layers, gain, _drawn(width, SIZES["vocab"]), bias, None, positions=True)


CASES: tuple[FoldCase, ...] = (
    FoldCase("unit survey", lambda: UnitSurvey(_DENSE, k=3, neighbours=4)),
    FoldCase("unit survey of an expert", lambda: UnitSurvey(Neurons(2, SIZES["unit"], expert=0), k=3), experts=True),
    FoldCase("pilot quantiles", lambda: PilotQuantiles(_DENSE, rows=20, seed=3)),
    FoldCase("decile contexts", lambda: DecileContexts(_DENSE, _EDGES, per_decile=2, rate=0.5, seed=3, neighbours=4)),
    FoldCase(
        "contexts of active tokens",
        lambda: DecileContexts(
            _DENSE, _EDGES.abs().sort(dim=0).values, per_decile=2, rate=0.8, seed=3, neighbours=4, of="active"
        ),
    ),
    FoldCase("second moments", lambda: SiteGram(_RESID, torch.full((SIZES["d_model"],), 0.1), rate=0.6, seed=3)),
    FoldCase("co-firing", lambda: Cofiring(_factors(), draws=2)),
    FoldCase("top codes", lambda: TopCodes(_DENSE, n=3)),
    FoldCase("token counts", lambda: TokenCounts(SIZES["vocab"])),
    FoldCase("centre", lambda: Centre(_RESID, SIZES["d_model"])),
    FoldCase("decomposition", lambda: Decomposition(_RESID, torch.full((SIZES["d_model"],), 0.1), LONGEST)),
    FoldCase(
        "decomposition in a sketch", lambda: Decomposition(_RESID, torch.full((SIZES["d_model"],), 0.1), LONGEST, sketch=3)
    ),
    FoldCase(
        "query-key split",
        lambda: QKSplit(2, _reading(), torch.full((SIZES["d_model"],), 0.1), _drawn(LONGEST, SIZES["d_model"]), queries=5),
    ),
    FoldCase(
        "token identity in a sketch", lambda: TokenIdentity(_RESID, torch.full((SIZES["d_model"],), 0.1), LONGEST, sketch=3)
    ),
    FoldCase(
        "handled decomposition",
        lambda: Handled(
            Decomposition(_RESID, torch.full((SIZES["d_model"],), 0.1), LONGEST),
            massive=2.0,
            masked=(1,),
            low=torch.full((SIZES["d_model"],), -1.0),
            high=torch.full((SIZES["d_model"],), 1.0),
        ),
    ),
    FoldCase("token identity", lambda: TokenIdentity(_RESID, torch.full((SIZES["d_model"],), 0.1), LONGEST)),
    FoldCase("position filter", _position_filter),
    FoldCase("aggregation", _aggregation),
    FoldCase("sampled rows", lambda: SampledRows(_DENSE, 0.5, 3)),
    FoldCase("prompt worth", lambda: PromptWorth(_words(), _facts()), windows=9),
    FoldCase("fact tests", lambda: FactTests(_words(), _facts(), _known(), draws=2, others=1), windows=9),
    FoldCase("word moments", lambda: WordMoments(_DENSE.sites[0], SIZES["unit"], _labelled(), _labelled().y.flip(0)[None])),
    FoldCase("word rows", lambda: WordRows(_DENSE.sites[0], torch.tensor([1, 3]), _labelled(), torch.arange(0, 60, 3))),
    FoldCase("excerpts", lambda: ExcerptSurvey(_DENSE, Selection(length=4, active=4, random=4, shortest=2))),
    FoldCase(
        "excerpts of an expert",
        lambda: ExcerptSurvey(Neurons(2, SIZES["unit"], expert=0), Selection(length=4, active=4, random=4, shortest=2)),
        experts=True,
    ),
    FoldCase(
        "excerpts of chosen units",
        lambda: ExcerptSurvey(Chosen(_DENSE, (1, 3)), Selection(length=4, active=4, random=4, shortest=2)),
    ),
    FoldCase("gate quadrants", lambda: QuadrantContexts(2, SIZES["unit"], k=3, neighbours=4)),
    FoldCase("first-order effects", lambda: FirstOrderEffects(opened("gpt2"))),
    FoldCase("unit ablations", lambda: UnitAblations(opened("gpt2"), (0, 2), (1, 5)), rounding=1e-3),
    FoldCase("window sample", lambda: WindowSample(_RESID, SIZES["d_model"], rows=5, seed=3)),
    FoldCase("token sample", lambda: TokenSample(_RESID, SIZES["d_model"], "next", rate=0.5, seed=3)),
    FoldCase("masked token sample", lambda: TokenSample(_RESID, SIZES["d_model"], "masked", rate=0.9, seed=3), masked=True),
    FoldCase("active units", lambda: ActiveUnits(Site("mlp_act", 2), SIZES["unit"], 3, "next", rate=0.5, seed=3)),
    FoldCase(
        "active units of experts by their sub-updates",
        lambda: ActiveUnits(
            Site("mlp_act", 2),
            SIZES["unit"],
            3,
            "next",
            rate=0.5,
            seed=3,
            lengths=_drawn(SIZES["expert"] * SIZES["unit"]).abs(),
        ),
        experts=True,
    ),
    FoldCase("active coordinates of heads", lambda: ActiveUnits(Site("z", 1), 12, 3, "masked", rate=0.9, seed=3), masked=True),
    FoldCase("attribution", lambda: Attribution(_wiring(), "next", rate=0.5, seed=3, draws=4)),
    FoldCase("positional activity", lambda: PositionalActivity(2, torch.full((SIZES["unit"],), 0.5), LONGEST, draws=3)),
    FoldCase("places", lambda: PositionalActivity(2, torch.full((SIZES["unit"],), 0.5), LONGEST, draws=3, width=4)),
    FoldCase("sparse activity", lambda: SparseActivity(2, torch.linspace(0.5, 2, SIZES["unit"]), tau=0.5)),
    FoldCase("family moments", lambda: FamilyMoments(_DENSE, torch.eye(2, SIZES["vocab"]) > 0, LONGEST, draws=3)),
    FoldCase("target counts", lambda: TargetCounts(SIZES["vocab"], "next")),
)


@dataclass(frozen=True)
class Stream:
    """Planted windows with these indices, as batches for one case."""

    case: FoldCase
    fold: Fold = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fold", self.case.make())

    def batch(self, windows: Sequence[int], longest: int | None = None) -> Batch:
        """The windows as a batch, padded to `longest`, or to the longest of them."""
        lengths = [_length(window) for window in windows]
        tokens = longest or max(lengths)
        ids = torch.zeros(len(windows), tokens, dtype=torch.int64)
        roles = torch.zeros(len(windows), tokens, dtype=torch.uint8)
        targets = torch.full((len(windows), tokens), -100)
        for row, (window, length) in enumerate(zip(windows, lengths, strict=True)):
            ids[row, :length] = torch.randint(0, SIZES["vocab"], (length,), generator=_generator(window, 0))
            roles[row, 0], roles[row, 1:length] = int(Role.FIRST), int(Role.CONTENT)
            targets[row, 2:length:3] = ids[row, 2:length:3]
        index = torch.tensor(list(windows))
        return Batch(
            ids=ids, roles=roles, window=index, document=index // 3, start=index % 3 * LONGEST,
            half=(index // 3 % 2).to(torch.uint8), label=index // 3 % 2, extra={}, targets=targets if self.case.masked else None,
        )  # fmt: skip

    def values(self, windows: Sequence[int], tokens: int) -> dict[Site, Tensor | ExpertRows]:
        """Tensors of the fold's sites for these windows, junk wherever a window has no token."""
        return {site: self._tensor(site, number, windows, tokens) for number, site in enumerate(self.fold.sites)}

    def feed(self, state: dict[str, Tensor], windows: Sequence[int], longest: int | None = None) -> None:
        """Update `state` with one batch."""
        batch = self.batch(windows, longest)
        self.fold.update(state, self.values(windows, batch.ids.shape[1]), batch)

    def state(self, cut: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """The state after the batches of `cut`."""
        state = self.fold.init()
        for windows in cut:
            self.feed(state, windows)
        return state

    def _tensor(self, site: Site, number: int, windows: Sequence[int], tokens: int) -> Tensor | ExpertRows:
        axes = site.spec.axes[1:]
        shape = [LONGEST if axis in ("token", "query", "key") else SIZES[axis] for axis in axes]
        tensor = torch.full((len(windows), *(tokens if n == LONGEST else n for n in shape)), JUNK)
        for row, window in enumerate(windows):
            drawn = torch.randn(shape, generator=_generator(window, number + 1))
            part = tuple(slice(_length(window)) if n == LONGEST else slice(None) for n in shape)
            tensor[row][part] = drawn[part]
        return _routed(tensor, windows) if self.case.experts else tensor


def _routed(tensor: Tensor, windows: Sequence[int]) -> ExpertRows:
    """Each token to one expert, by window and position."""
    count, tokens, _ = tensor.shape
    place = torch.arange(tokens) + torch.tensor(list(windows))[:, None]
    token = torch.arange(count * tokens)
    weight = (place.reshape(-1) % 7 + 1) / 8
    return ExpertRows(tensor.reshape(count * tokens, -1), token, place.reshape(-1) % SIZES["expert"], weight, count, tokens)


def _length(window: int) -> int:
    return 4 + window * 5 % (LONGEST - 3)


def _generator(window: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * number + window)


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest finite magnitude; infinities must agree."""
    if a.shape != b.shape or not torch.equal(a.isinf(), b.isinf()):
        return math.inf
    finite = a.isfinite()
    a, b = a[finite].double(), b[finite].double()
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-300)) if a.numel() else 0.0
