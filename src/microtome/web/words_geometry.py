"""Words for people: labels and one-line meanings of measures of hidden states, and which of them are shown first.

Names not listed here are shown as they are in the tables.
"""

from typing import Final

__all__ = ["headline", "measure"]

_MEASURES: Final = {
    "omega2": ("Position's effect", "share of the variance that position explains, corrected for the number of positions"),
    "share that two halves of the documents agree on": (
        "Position, held out",
        "share of the variance that position explains in one half of the documents and in the other alike",
    ),
    "share that even and odd blocks of windows agree on": (
        "Context, held out",
        "share of the variance that context explains in even and odd blocks of a window alike",
    ),
    "relative_norm": ("Size of position", "length of the position part over that of hidden states"),
    "energy": ("Energy", "mean square length of a position vector"),
    "screenot_rank": ("Rank", "how many directions stand out of the noise (ScreeNOT)"),
    "effective_rank": ("Effective rank", "how many directions the part uses, by the entropy of its spectrum"),
    "stable_rank": ("Stable rank", "sum of squared singular values over the largest of them"),
    "participation_ratio": ("Participation ratio", "how many directions share the variance, if they shared it evenly"),
    "explained_ratio": ("Explained by the rank", "share of the sum of singular values in the directions that stand out"),
    "low_frequency_10": (
        "Slow in position",
        "share of the Gram matrix of positions in its ten lowest frequencies: near 1 for a smooth curve",
    ),
    "low_frequency_energy_10": (
        "Slow in position, energy",
        "share of the position part's energy in its ten lowest frequencies",
    ),
    "roughness": (
        "Roughness",
        "squared steps from a position to the next over squared lengths: 0 is a slow curve, 2 a random order",
    ),
    "spiral_angle_r2": ("Even winding", "how straight a line the angle of the position curve is: 1 winds evenly"),
    "spiral_turns": ("Turns", "how often the position curve goes round"),
    "spiral_monotonicity": ("Opening", "rank correlation of the curve's radius with position: 1 opens, -1 closes"),
    "map_trustworthiness": (
        "Trustworthiness of the map",
        "from 0 to 1: how many neighbours on the map of contexts are neighbours among the states",
    ),
    "clusters": ("Clusters of contexts", "how many clusters of context parts are stable"),
    "cluster_stability": ("Stability of clusters", "how alike clusterings of two halves are"),
    "mean_absolute_cosine": (
        "Position against context",
        "mean size of the cosine of a position vector and a context part: near 0 if they do not get in each other's way",
    ),
    "largest_absolute_cosine": ("Largest cosine", "largest size of the cosine of a position vector and a context part"),
    "coherence": ("Coherence", "largest cosine of the leading directions of position and of context"),
    "leak": ("Leak", "share of the context part that lies in the leading directions of position"),
    "isoscore_star": ("IsoScore*", "how evenly hidden states use all directions: 1 evenly, 0 one direction"),
    "mean_cosine, raw": ("Mean cosine", "mean cosine of two hidden states: far above 0 if they share a direction"),
    "mean_cosine, mu removed": ("Mean cosine without the mean", "the same without the mean state"),
    "massive_coordinates": ("Massive coordinates", "coordinates with huge values at few tokens"),
    "sink_positions": ("Sinks", "positions whose states are far longer than others"),
}

_HEADLINES: Final = (
    ("pos", "share that two halves of the documents agree on"),
    ("ctx", "share that even and odd blocks of windows agree on"),
    ("pos", "relative_norm"),
    ("pos", "screenot_rank"),
    ("pos cross-validated", "effective_rank"),
    ("pos cross-validated", "low_frequency_10"),
    ("pos", "roughness"),
    ("pos", "spiral_angle_r2"),
    ("pos", "spiral_turns"),
    ("pos and ctx", "mean_absolute_cosine"),
    ("pos and ctx", "leak"),
    ("ctx", "map_trustworthiness"),
    ("ctx", "cluster_stability"),
    ("states", "isoscore_star"),
    ("states", "mean_cosine, raw"),
    ("states", "massive_coordinates"),
)
_PLACES: Final = {each: n for n, each in enumerate(_HEADLINES)}


def measure(stat: str) -> tuple[str, str]:
    """The label and meaning of a measure; its own name where nothing is known of it."""
    return _MEASURES.get(stat, (stat[:1].upper() + stat[1:].replace("_", " "), ""))


def headline(subject: str, stat: str) -> int | None:
    """The place of a measure among those that are shown first."""
    return _PLACES.get((subject, stat))
