"""Words for people: labels and one-line meanings of statistics, bases and parts, and tokens spelt safely.

Names not listed here are shown as they are in the tables, so a lens may add statistics without touching the page.
"""

from typing import Final

from microtome.web.records import Column

__all__ = ["basis_label", "column"]

_STATS: Final = {
    "bigram_share_bottom": (
        "Same two words, lowest",
        "share of the lowest held-out contexts that end in one run of two tokens, chosen on the other half of the documents",
    ),
    "bigram_share_top": (
        "Same two words",
        "share of the highest held-out contexts that end in one run of two tokens, chosen on the other half of the documents",
    ),
    "cohesion_bottom": ("Alike, lowest", "mean cosine of the texts before two of its lowest held-out contexts"),
    "cohesion_tokens_bottom": (
        "Alike by token, lowest",
        "the same of other places at the same tokens: what the token alone brings",
    ),
    "cohesion_tokens_top": ("Alike by token", "the same of other places at the same tokens: what the token alone brings"),
    "cohesion_top": ("Alike", "mean cosine of the texts before two of its highest held-out contexts"),
    "copying_score": (
        "Copying",
        "whether the head writes the token it reads: +1 always, -1 always the opposite; from its weights",
    ),
    "density": ("Density", "share of tokens at which the activation is above 0"),
    "exact_share_top": (
        "Exact codes agree",
        "share of the highest held-out contexts in whose exact sparse code the factor is, too; beside its share of all exact codes",
    ),
    "importance": (
        "Importance",
        "mean of its largest codes in one half of the documents, in units of scaled states; beside that in the other half",
    ),
    "importance_raw": ("Importance, raw", "the same in the model's own units"),
    "kurtosis": ("Kurtosis", "excess kurtosis: how much rare, large activations dominate; 0 for a normal distribution"),
    "kurtosis_confirm": ("Kurtosis, held out", "excess kurtosis over the half of the documents that chose no unit"),
    "matching_score": ("Matching", "whether the head looks for its own token: +1 always, -1 away from it; from its weights"),
    "max": ("Largest", "the largest activation seen"),
    "mean": ("Mean", "mean activation over counted tokens"),
    "min": ("Smallest", "the smallest activation seen"),
    "next_share_bottom": (
        "Same next token, lowest",
        "share of the lowest held-out contexts that one token follows, the one chosen on the other half of the documents",
    ),
    "next_share_top": (
        "Same next token",
        "share of the highest held-out contexts that one token follows, the one chosen on the other half of the documents",
    ),
    "ov_norm": ("Write strength", "length (Frobenius) of value times output weights: how much the head can write"),
    "logit_variance": (
        "Logit variance",
        "how much the vector that the unit writes, at length 1, tells tokens apart: next to nothing if it acts on the norm alone",
    ),
    "pattern_f1": (
        "Best pattern, F1",
        "how well its best pattern says where it is active, on held-out documents: 1 is everywhere and nowhere else",
    ),
    "pattern_mcc": (
        "Best pattern",
        "correlation of being active with the answer to the question about a token (word, spelling, place, run of words) that says it best, on held-out "
        "documents",
    ),
    "place_information_large": (
        "Place, large",
        "what the place in the window says of the activation being large, in nats",
    ),
    "place_information_open": ("Place, open", "what the place in the window says of the unit being open, in nats"),
    "previous_score": ("Looks back", "attention that the head's weights alone give to the token before"),
    "profile_centre": ("Mean depth", "of its importance over the sites: 0 is before the first block, 1 behind the last"),
    "profile_early": (
        "Early or late",
        "importance at the first half of the sites less that at the second, over both: 1 is early, -1 late",
    ),
    "profile_width": ("Spread over depth", "standard deviation of the depth that its importance has"),
    "qk_norm": ("Look strength", "length (Frobenius) of query times key weights: how sharply the head can look"),
    "reach": (
        "Reach",
        "tokens of context on each side that bring 80 % of its code at held-out contexts; as much as there was if only the whole window does",
    ),
    "read_bottom": (
        "Read-out, lowest",
        "how far its most suppressed tokens stand out, in standard deviations over the vocabulary",
    ),
    "read_top": ("Read-out", "how far its most promoted tokens stand out, in standard deviations over the vocabulary"),
    "share_within_16": (
        "Code within 16",
        "share of its code at held-out contexts that is there with 16 tokens of context on each side",
    ),
    "skewness": ("Skewness", "asymmetry of the activation: positive means a long tail of large values"),
    "std": ("Std. dev.", "standard deviation of the activation"),
    "token_share_bottom": (
        "Same token, lowest",
        "share of the lowest held-out contexts that are at one token, the one chosen on the other half of the documents",
    ),
    "token_share_top": (
        "Same token",
        "share of the highest held-out contexts that are at one token, the one chosen on the other half of the documents",
    ),
    "trigram_share_bottom": (
        "Same three words, lowest",
        "share of the lowest held-out contexts that end in one run of three tokens, chosen on the other half of the documents",
    ),
    "trigram_share_top": (
        "Same three words",
        "share of the highest held-out contexts that end in one run of three tokens, chosen on the other half of the documents",
    ),
    "vocab_kurtosis": (
        "Vocabulary kurtosis",
        "excess kurtosis over the vocabulary of the cosines with what the unit writes: high if it writes about few tokens",
    ),
    "vocab_skewness": (
        "Vocabulary skewness",
        "which way these few tokens lie: positive if the unit promotes them where it is positive",
    ),
    "vocab_variance": ("Vocabulary variance", "variance of the same cosines: high if the unit divides the vocabulary"),
    "loss_effect": (
        "Effect on the loss",
        "what switching the unit off adds to the loss of held-out text, to first order, in nats a token",
    ),
    "loss_ablated": ("Loss without it", "what switching the unit off adds to the loss of held-out text, in nats a token"),
    "write_norm": ("Write norm", "length of the vector that the unit writes"),
}

_BASES: Final = {"neurons": "Feed-forward neurons", "heads": "Attention heads", "factors": "Factors"}


def column(stat: str) -> Column:
    """The label and meaning of a statistic; its own name where nothing is known of it."""
    label, meaning = _STATS.get(stat, (stat.replace("_", " ").capitalize(), ""))
    return Column(name=stat, label=label, meaning=meaning)


def basis_label(basis: str) -> str:
    """What the units of a basis are called."""
    return _BASES.get(basis, basis.replace("_", " ").capitalize())
