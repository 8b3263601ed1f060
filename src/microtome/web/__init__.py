"""The page of an atlas: a server for this machine, and a static folder for any web server.

Call `serve` to look at an atlas, `export` to publish one. Both show the same page (`static/`) over one data-source interface:
typed JSON from DuckDB over the atlas's Parquet files, or the same JSON written out in compressed shards.
"""

from microtome.web.app import create_app as create_app
from microtome.web.export import export as export
from microtome.web.server import serve as serve
