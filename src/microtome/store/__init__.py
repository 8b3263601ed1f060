"""Files on disk: atomic writes, fold states, tables, the manifest, fingerprints."""

from microtome.store.files import DiskFull as DiskFull
from microtome.store.files import committed as committed
from microtome.store.files import digest as digest
from microtome.store.files import full as full
from microtome.store.files import locked as locked
from microtome.store.files import sweep as sweep
from microtome.store.fingerprint import fingerprint as fingerprint
from microtome.store.manifest import SCHEMA_VERSION as SCHEMA_VERSION
from microtome.store.manifest import Manifest as Manifest
from microtome.store.manifest import ModelCard as ModelCard
from microtome.store.manifest import RunCard as RunCard
from microtome.store.manifest import manifest_path as manifest_path
from microtome.store.manifest import read_manifest as read_manifest
from microtome.store.manifest import write_manifest as write_manifest
from microtome.store.states import Damaged as Damaged
from microtome.store.states import delete_states as delete_states
from microtome.store.states import has_states as has_states
from microtome.store.states import read_states as read_states
from microtome.store.states import write_states as write_states
from microtome.store.tables import NEIGHBOURS as NEIGHBOURS
from microtome.store.tables import TABLES as TABLES
from microtome.store.tables import TableSpec as TableSpec
from microtome.store.tables import empty_table as empty_table
from microtome.store.tables import stream_table as stream_table
from microtome.store.tables import table_path as table_path
from microtome.store.tables import write_table as write_table
