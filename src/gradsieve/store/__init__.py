"""The gradient datastore: projected gradients of a pool's rows, stored on disk in shards.

docs/format.md specifies the format. `create_store` opens one for writing, `open_store` for reading;
`inspect`, `convert` and `merge` work on existing ones.
"""

from gradsieve.store.format import RowKey, key_table
from gradsieve.store.maintain import convert, inspect, merge
from gradsieve.store.reader import Shard, Store, Wanted, open_store
from gradsieve.store.writer import StoreWriter, create_store, open_writer, rows_where, sound_store

__all__ = [
    "RowKey",
    "Shard",
    "Store",
    "StoreWriter",
    "Wanted",
    "convert",
    "create_store",
    "inspect",
    "key_table",
    "merge",
    "open_store",
    "open_writer",
    "rows_where",
    "sound_store",
]
