"""Figures for papers and notes: what tables of an atlas say by layer and at single sites, drawn with matplotlib.

Call `draw_shares(atlas.sql("select * from geometry_shares"))` and `save` what it gives, or
`save_all(figures_of(atlas.sql), folder)` for all of them, as `microtome figures` does. Figures draw records and recompute nothing; what is interactive
belongs in `web`.
"""

from microtome.report.alignment import draw_alignment as draw_alignment
from microtome.report.attention import draw_attention as draw_attention
from microtome.report.collection import figures_of as figures_of
from microtome.report.collection import save_all as save_all
from microtome.report.drawing import save as save
from microtome.report.figures import draw_losses as draw_losses
from microtome.report.figures import draw_shares as draw_shares
from microtome.report.figures import draw_stat as draw_stat
from microtome.report.geometry import draw_context_map as draw_context_map
from microtome.report.geometry import draw_frequencies as draw_frequencies
from microtome.report.geometry import draw_joint_cosines as draw_joint_cosines
from microtome.report.geometry import draw_position_cosines as draw_position_cosines
from microtome.report.geometry import draw_spectra as draw_spectra
from microtome.report.geometry import draw_spiral as draw_spiral
from microtome.report.vocabulary import draw_group_stat as draw_group_stat
from microtome.report.vocabulary import draw_head_scores as draw_head_scores
from microtome.report.vocabulary import draw_pairs as draw_pairs
from microtome.report.vocabulary import draw_types as draw_types
