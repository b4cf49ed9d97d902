"""The gradient datastore: projected gradients of a pool's rows, on disk, shard by shard.

docs/format.md is the format. `create_store` writes, `open_store` reads.
"""

from gradsieve.store.layout import RowKey
from gradsieve.store.reader import Store, open_store
from gradsieve.store.writer import StoreWriter, create_store

__all__ = ["RowKey", "Store", "StoreWriter", "create_store", "open_store"]
