"""Gurnee et al. 2024, arXiv:2401.12181: which units do two models share, what are they like, and what are units for, by their weights?

usage: python -m recipes.gurnee2024 [MODEL] [TEXT] [--pair OWN OTHER] [--only {pair,decoder}] [--quick] [--seed N]

Universal units are sought between two models of one tokenizer (--pair). MODEL is a decoder (smollm2 if none is given), of whose units roles,
effects on the next token's entropy, and heads that they send to the first token are measured.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Final

import torch

from recipes.claims import Claim, Estimate, claims_table, layers_table, mean_of, share_of
from recipes.gurnee2024_measures import FULL, LARGEST_Q, LEAST, QUICK, Decoder, Held, Pair, measure_decoder, measure_pair
from recipes.windows import opened, text_of, windows_of

__all__ = ["DIFFERENCES", "decoder_claims", "describe_decoder", "describe_pair", "pair_claims"]

DIFFERENCES: Final = (
    "the pair are MiniLM-L6 and the paraphrase model of three layers: encoders trained for different tasks, but both cut out of one larger model, so "
    "that units may be alike by descent; the paper's five GPT-2 models differ by seed alone and share nothing but data",
    "one other model, not four; partners are chosen in one half of the documents and correlations are those of the other",
    "the decoder is SmolLM2 (135 M, gated) where none is named; the paper's are GPT-2 medium and Pythia 160M, with plain units. A gated unit may be reversed, "
    "so its side is that of the long tail of its activations",
    "questions are of spelling, repetition and place alone; the paper asks of parts of speech, positions and semantics too",
    "roles are by thresholds of ours; units of the paper are read off plots",
    "values that units are held at are multiples of the largest activation met; the paper's are 0 to 6",
    "a unit is held against the first token's key less the others': what all keys share changes no attention. There is no BOS in SmolLM2: the first token "
    "is that of the window",
)
_SURE: Final = 1e-3


def pair_claims(found: Pair) -> list[Claim]:
    """What the paper says of universal units, as far as it was measured."""
    share, chance, same = share_of(found.universal), share_of(found.shuffled), share_of(found.copy)
    made = [
        Claim(
            "some units are universal: a unit of another model is like them beyond any basis (excess above 0.5)",
            "1.23 % to 4.16 % of units, over three kinds of model",
            f"{share.percent} of {found.universal.numel()} units of {found.own} in {found.other}; either sign {share_of(found.any_sign).percent}",
            f"shuffled weights {chance.percent}; a permuted copy {same.percent}",
            share.above(chance) and same.above(share),
        )
    ]
    count = int(found.universal.sum())
    if 2 < count < found.universal.numel() - 2:
        made += _of_statistics(found)
        inside, outside = (share_of(found.in_family[mine]) for mine in (found.universal, ~found.universal))
        share, rest = (mean_of(found.explained[mine]) for mine in (found.universal, ~found.universal))
        made.append(
            Claim(
                "most universal units belong to a few families that a question explains",
                "most of those looked at",
                f"the best question explains {share.percent} of variance; {LEAST:.0%} or more in {inside.percent} of units",
                f"other units {rest.percent}, {outside.percent} of them; questions shifted {float(found.by_shift[found.universal].mean()):.1%}",
                share.above(rest) and inside.value > 0.5,
            )
        )
    return made


def _of_statistics(found: Pair) -> list[Claim]:
    expected = {
        "kurtosis of activation": ("their activations are rare and large: kurtosis", "higher", 1),
        "skewness of activation": ("skewness of their activations", "higher", 1),
        "bias before the activation": ("they start from further below: bias", "more negative", -1),
        "length of what is written": ("they write longer vectors", "larger", 1),
    }
    made = []
    for each in found.statistics:
        if each.name in expected:
            says, paper, way = expected[each.name]
            agrees = each.p <= _SURE and way * (each.more - 0.5) > 0 and abs(each.more - 0.5) > 2 * abs(each.random - 0.5)
            made.append(
                Claim(
                    says,
                    paper,
                    f"a universal unit has more than another in {each.more:.0%} of pairs of a layer (p {each.p:.1g})",
                    f"as many random units {each.random:.0%}",
                    agrees,
                )
            )
    return made


def decoder_claims(found: Decoder) -> list[Claim]:
    """What the paper says of roles, entropy and heads, as far as it was measured."""
    return [*_of_roles(found), *_of_entropy(found), *_of_heads(found)]


def _where(found: Decoder, role: str) -> float:
    """The mean depth of the units of a role, 0 to 1."""
    counts = torch.tensor(found.counts[role], dtype=torch.float64)
    depth = torch.tensor(found.layers, dtype=torch.float64) / max(1, found.depth - 1)
    return float((counts * depth).sum() / counts.sum())


def _of_roles(found: Decoder) -> list[Claim]:
    made = []
    total = found.units * len(found.layers)
    for role in ("prediction", "suppression", "partition"):
        count, chance = sum(found.counts[role]), float(torch.tensor(found.random[role]).mean())
        share = count / total
        where = f", at {_where(found, role):.0%} of the depth" if count else ""
        made.append(
            Claim(
                f"there are {role} units",
                "in all models, from the middle on" if role != "partition" else "many, early and late",
                f"{count} of {total} ({share:.1%}){where}",
                f"random directions of the layers {chance:.1%}",
                count > 0 and share > 2 * chance,
            )
        )
    early, late = sum(found.counts["prediction"]), sum(found.counts["suppression"])
    if early and late:
        last = max(1, len(found.layers) // 5)
        ends = [(sum(found.counts[role][-last:]), sum(found.counts[role])) for role in ("prediction", "suppression")]
        shares = [share_of(torch.arange(whole) < end) for end, whole in ends]
        made.append(
            Claim(
                "suppression takes over from prediction in the last layers",
                "prediction first, then a shift in the final layers",
                f"of suppression units {shares[1].percent} are in the last fifth of layers; mean depth {_where(found, 'suppression'):.0%}",
                f"of prediction units {shares[0].percent}; mean depth {_where(found, 'prediction'):.0%}",
                shares[1].above(shares[0]),
            )
        )
    return made


def _change(held: Held, name: str) -> tuple[float, float]:
    """From the first value to the last: of the unit, and the mean size over units that write as much."""
    values = getattr(held.found, name)
    change = values[:, -1] - values[:, 0]
    return float(change[0]), float(change[1:].abs().mean())


def _of_entropy(found: Decoder) -> list[Claim]:
    if not found.held:
        return []
    kept = torch.tensor([[float(each.found.same[0, -1]), float(each.found.same[1:, -1].mean())] for each in found.held])
    entropy = torch.tensor([_change(each, "entropy") for each in found.held])
    length = torch.tensor([_change(each, "length") for each in found.held])
    named = sum(each.role == "scale" for each in found.held)
    per = entropy.abs() / (1 - kept).clamp_min(0.01)
    own, others = (mean_of(per[:, column]) for column in (0, 1))
    return [
        Claim(
            "units that write long vectors where no logit is scale the final norm: entropy changes, ranks hardly do",
            "entropy rises much; the rank of the true token hardly changes",
            f"{named} of the {len(found.held)} held have the role by their weights; entropy {mean_of(entropy[:, 0])} nats, length of the stream {mean_of(length[:, 0])}, same most probable token at {float(kept[:, 0].mean()):.0%}; "
            f"entropy for each token changed {own}",
            f"units that write as much: entropy {mean_of(entropy[:, 1])} in size, length {mean_of(length[:, 1])}, same most probable token "
            f"{float(kept[:, 1].mean()):.0%}; for each token {others}",
            None if len(found.held) < 3 else named > 0 and own.above(others),
        )
    ]


def _of_heads(found: Decoder) -> list[Claim]:
    counts = [sum(int((each.q <= LARGEST_Q).sum()) for each in some) for some in (found.deactivated, found.turned)]
    tested = sum(len(each.q) for each in found.deactivated)
    made = [
        Claim(
            "units write towards or against the first token's key of later heads",
            "some units, beyond random ones",
            f"{counts[0]} of {tested} units beyond the random directions of their layer (q <= {LARGEST_Q})",
            f"with heads' directions turned at random {counts[1]}",
            share_of(torch.arange(tested) < counts[0]).above(share_of(torch.arange(tested) < counts[1])),
        )
    ]
    if found.pushed:
        own = mean_of(torch.cat([each.pushed[:, 0] for each in found.pushed]))
        random = mean_of(torch.cat([each.pushed[:, 1:].flatten() for each in found.pushed]))
        sizes = [
            torch.cat([each.found.when_active[:, some].abs().flatten() for each in found.pushed]) for some in ([0], [1, 2, 3])
        ]
        made.append(
            Claim(
                "without such a unit the head looks less, or more, at the first token, as the weights say",
                "attention to BOS falls by up to half where the unit is ablated",
                f"attention owed to the unit where it is active {own}; size of the change {mean_of(sizes[0])}; {len(found.pushed)} pairs, held-out documents",
                f"units that write as much {random}; size {mean_of(sizes[1])}",
                own.above(random) and own.above(0.0),
            )
        )
    return made


def describe_pair(found: Pair) -> str:
    """The claims on universal units, layers and statistics."""
    heads = ("universal", "either sign", "permuted copy", "shuffled", "of a family")
    rows = []
    for place, layer in enumerate(found.layers):
        parts = (found.universal, found.any_sign, found.copy, found.shuffled)
        cells = [f"{float(part[place].double().mean()):.1%}" for part in parts]
        mine = found.universal[place]
        cells.append(f"{float(found.in_family[place][mine].double().mean()):.0%}" if bool(mine.any()) else "-")
        rows.append((layer, cells))
    lines = [
        f"  {each.name:>30}  {each.more:.2f} (p {each.p:.1g}; random units {each.random:.2f})" for each in found.statistics
    ]
    return "\n".join(
        [
            f"{found.own} in {found.other}: {found.universal.numel()} units at {found.tokens} tokens",
            "",
            claims_table(pair_claims(found)),
            "",
            "share of units by layer:",
            layers_table(heads, rows),
            "",
            "how often a universal unit has more than another of its layer:",
            *lines,
        ]
    )


def describe_decoder(found: Decoder) -> str:
    """The claims on a decoder's units, roles by layer, units held and heads sent to the first token."""
    roles = list(found.counts)
    rows = [(layer, [str(found.counts[role][place]) for role in roles]) for place, layer in enumerate(found.layers)]
    lines = [
        "units held at 0 and at twice what they reach: entropy, length, same most probable token (units that write as much):"
    ]
    for each in found.held:
        entropy, length = _change(each, "entropy"), _change(each, "length")
        same = float(each.found.same[0, -1]), float(each.found.same[1:, -1].mean())
        role = f" ({each.role})" if each.role else ""
        lines.append(
            f"  {each.unit}{role}: {entropy[0]:+.2f} ({entropy[1]:.2f}) nats, {length[0]:+.2f} ({length[1]:.2f}), {same[0]:.0%} ({same[1]:.0%})"
        )
    lines += [
        "",
        "units and heads: cosine, attention to the first token, what it owes to the unit where it is active (units that write as much):",
    ]
    for each in found.pushed:
        own, random = mean_of(each.pushed[:, 0]), mean_of(each.pushed[:, 1:])
        lines.append(
            f"  {each.unit} -> heads.{each.head[0]}/{each.head[1]}: {each.towards:+.2f}, {float(each.found.attention.mean()):.2f}, {own} ({_short(random)})"
        )
    return "\n".join(
        [
            f"{found.model}: roles of units in {len(found.layers)} layers",
            "",
            claims_table(decoder_claims(found)),
            "",
            "units by role:",
            layers_table(roles, rows),
            "",
            *lines,
        ]
    )


def _short(each: Estimate) -> str:
    return f"{each.value:.2g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2", help="a decoder: a packaged one or a checkpoint")
    parser.add_argument("text", nargs="?", default="bbc", help="texts, or a packaged text")
    parser.add_argument("--pair", nargs=2, default=("minilm", "paraphrase-minilm"), help="two models of one tokenizer")
    parser.add_argument("--only", choices=("pair", "decoder"), help="one of the two parts")
    parser.add_argument("--quick", action="store_true", help="some layers, fewer windows: some minutes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    size, text, parts = QUICK if options.quick else FULL, text_of(options.text), []
    if options.only != "decoder":
        own, other = (opened(name) for name in options.pair)
        windows = windows_of(own, text, size.windows, size.window, options.seed)
        parts.append(describe_pair(measure_pair(own, other, windows, size, seed=options.seed)))
    if options.only != "pair":
        model = opened(options.model)
        windows = windows_of(model, text, size.windows, size.window, options.seed)
        parts.append(describe_decoder(measure_decoder(model, windows, size, seed=options.seed)))
    differs = "\n".join(["What differs from the paper:", *(f"  - {each}" for each in DIFFERENCES)])
    sys.stdout.write("\n\n".join([*parts, differs]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
