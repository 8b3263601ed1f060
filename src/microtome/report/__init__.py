"""Figures for papers and notes: what tables of an atlas say by layer, drawn with matplotlib.

Call `draw_shares(atlas.sql("select * from geometry_shares"))` and `save` what it gives. Figures draw records and recompute
nothing; what is interactive belongs in `web`.
"""

from microtome.report.figures import draw_losses as draw_losses
from microtome.report.figures import draw_shares as draw_shares
from microtome.report.figures import save as save
