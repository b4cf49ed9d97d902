"""The gradient datastore: projected gradients of a pool's rows, on disk, shard by shard.

docs/format.md is the format. `create_store` writes, `open_store` reads; `inspect`, `convert` and
`merge` are for whole ones.
"""

from gradsieve.store.manage import convert, inspect, merge
from gradsieve.store.names import RowKey, read_row_keys
from gradsieve.store.reader import Store, open_store
from gradsieve.store.writer import StoreWriter, create_store

__all__ = [
    "RowKey",
    "Store",
    "StoreWriter",
    "convert",
    "create_store",
    "inspect",
    "merge",
    "open_store",
    "read_row_keys",
]
