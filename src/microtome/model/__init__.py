"""Transformers as microtome sees them: opening, families, observing, weights, certificate."""

from microtome.model.cache import CacheEntry as CacheEntry
from microtome.model.cache import caches as caches
from microtome.model.cache import remove_cache as remove_cache
from microtome.model.images import patch_grid as patch_grid
from microtome.model.model import Model as Model
from microtome.model.model import SiteRow as SiteRow
from microtome.model.model import site_table as site_table
from microtome.model.observe import capture as capture
from microtome.model.observe import final_norm as final_norm
from microtome.model.observe import forward as forward
from microtome.model.observe import inputs_of as inputs_of
from microtome.model.observe import observe as observe
from microtome.model.observe import unembed as unembed
from microtome.model.opening import Checkpoint as Checkpoint
from microtome.model.opening import load as load
from microtome.model.opening import open_checkpoint as open_checkpoint
from microtome.model.record import Certificate as Certificate
from microtome.model.selection import sites_named as sites_named
from microtome.model.selection import vector_width as vector_width
from microtome.model.shape import Patches as Patches
from microtome.model.shape import Shape as Shape
from microtome.model.spellings import parse_site as parse_site
from microtome.model.spellings import spell as spell
from microtome.model.weights import Norm as Norm
from microtome.model.weights import Weights as Weights
from microtome.model.wrapping import wrap as wrap
