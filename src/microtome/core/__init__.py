"""Names that every layer shares: sites, axes, addresses, batches, the fold contract, the one error."""

from microtome.core.addresses import UnitAddress as UnitAddress
from microtome.core.addresses import WeightAddress as WeightAddress
from microtome.core.bases import Basis as Basis
from microtome.core.bases import ExpertRows as ExpertRows
from microtome.core.batches import CONTENT as CONTENT
from microtome.core.batches import Batch as Batch
from microtome.core.batches import Half as Half
from microtome.core.batches import Role as Role
from microtome.core.batches import places_of as places_of
from microtome.core.batches import token_keys as token_keys
from microtome.core.errors import Interrupted as Interrupted
from microtome.core.errors import Malformed as Malformed
from microtome.core.errors import NotFound as NotFound
from microtome.core.errors import Refusal as Refusal
from microtome.core.folds import Fold as Fold
from microtome.core.folds import RowFold as RowFold
from microtome.core.folds import State as State
from microtome.core.sites import SITES as SITES
from microtome.core.sites import Site as Site
from microtome.core.sites import SiteSpec as SiteSpec
