"""The files of a datastore: in a local folder, or wherever fsspec reaches.

In: a path, or a URL such as `s3://bucket/store` (whose fsspec library must be installed). A file
appears whole or not at all: locally by a temporary name, fsync and rename; elsewhere as one object,
which object stores publish at once.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from gradsieve.errors import StoreError
from gradsieve.io import atomic


class Folder:
    """A folder of small and large files, all right in it.

    Args:
        path: A local path or a URL.

    Raises:
        StoreError: If the URL's kind is not known, or its library not installed.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            self._files, self.path = url_to_fs(str(path))
        except (ImportError, ValueError) as error:
            raise StoreError(
                f"The datastore's place cannot be reached: {error}.",
                str(path),
                "Give a folder, or a URL whose fsspec library is installed (s3fs, gcsfs, ...).",
            ) from None
        self.local = isinstance(self._files, LocalFileSystem)
        self._shown = self.path if self.local else str(path).rstrip("/")

    def __str__(self) -> str:
        return self._shown

    def where(self, name: str) -> str:
        """How a file is told to people."""
        return f"{self}/{name}"

    def names(self, pattern: str) -> list[str]:
        """Names of the files that match, in order."""
        try:
            found = self._files.ls(self.path, detail=False, refresh=True)
        except FileNotFoundError:
            return []
        names = (path.rstrip("/").rpartition("/")[2] for path in found)
        return sorted(name for name in names if fnmatch.fnmatchcase(name, pattern))

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return bool(self._files.isfile(self._at(name)))

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            StoreError: If it can't be reached.
        """
        with self._told(name):
            return int(self._files.size(self._at(name)))

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """A file's bytes, or some of them.

        Raises:
            StoreError: If it can't be read.
        """
        with self._told(name):
            content: bytes = self._files.cat_file(self._at(name), start=start, end=end)
            return content

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all.

        Raises:
            StoreError: If it can't be written, e.g. since the disk is full.
        """
        with self._told(name):
            self._put(name, content)

    def create(self, name: str, content: bytes) -> None:
        """Write a file unless there is one; of two writers at once the first has its way.

        Raises:
            StoreError: If it can't be written.
        """
        if self.exists(name):
            return
        with self._told(name):
            if not self.local:
                self._put(name, content)
                return
            spare = f".{name}.{uuid4().hex}.tmp"
            self._put(spare, content)
            _rename_if_new(Path(self.path) / spare, Path(self.path) / name)

    def _put(self, name: str, content: bytes) -> None:
        if self.local:
            with atomic(Path(self.path) / name) as temporary:
                temporary.write_bytes(content)
        else:
            self._files.makedirs(self.path, exist_ok=True)
            self._files.pipe_file(self._at(name), content)

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"A file of the datastore cannot be read or written: {error.strerror or error}.",
                self.where(name),
                "Make room or give access, then run the same command again: what is done is kept.",
            ) from error

    def _at(self, name: str) -> str:
        return f"{self.path}/{name}"


def _rename_if_new(old: Path, new: Path) -> None:
    try:
        os.link(old, new)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        old.replace(new)
    old.unlink(missing_ok=True)
