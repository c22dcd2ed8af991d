"""Rows of bytes in files that several processes write and read at once, and that a kill leaves readable."""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mokd_det.errors import CacheError

__all__ = ["RowKey", "TapStore", "locked", "remove_rows", "rows_exist"]

logger = logging.getLogger(__name__)

_ROWS, _INDEX = ".rows", ".index"
# key (image, view, height, width), digest of the pixels; offset, length and checksum of the row
_ENTRY = struct.Struct("<QIIIQQQI")
_CHECKSUM = struct.Struct("<I")
_RECORD = _ENTRY.size + _CHECKSUM.size
_MEBIBYTE = 2**20


class RowKey(NamedTuple):
    """What a row belongs to.

    Attributes:
        image, view: index in the data set, and view of the image.
        height, width: of the padded batch, in pixels.
    """

    image: int
    view: int
    height: int
    width: int


class _Entry(NamedTuple):
    digest: int
    shard: int
    offset: int
    length: int
    checksum: int


class TapStore:
    """Rows by :class:`RowKey`.

    A directory holds shards, each a file of rows and an index. Every process appends to a shard of its own, which
    it holds by a lock, and reads all of them through memory maps. An index record is written after the rows it tells
    of, with checksums of both: a kill leaves rows that no record tells of, which the next writer of the shard removes,
    and a power cut rows whose checksum is wrong, which are not used.

    Args:
        directory: exists.
        limit: bytes that this process may add; may be changed until the first :meth:`write`.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self._directory = directory
        self.limit = limit
        self._entries: dict[RowKey, _Entry] = {}
        self._shards: dict[int, _Shard] = {}
        self._own: _Writer | None = None
        self.is_full = False
        self.refresh()

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        files = (file for suffix in (_ROWS, _INDEX) for file in self._directory.glob(f"*{suffix}"))
        return sum(file.stat().st_size for file in files)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: RowKey) -> bool:
        return key in self._entries

    def digest(self, key: RowKey) -> int:
        """Digest of the pixels that the row was made from."""
        return self._entries[key].digest

    def read(self, key: RowKey) -> Tensor | None:
        """The row, (bytes,) uint8 in the memory map: to be copied, not written to.

        None if the file does not hold what was written; the row is then forgotten, and this is logged.
        """
        entry = self._entries[key]
        row = self._shards[entry.shard].row(entry)
        if row is None:
            del self._entries[key]
            logger.warning(
                "Teacher cache: the taps of image %d, view %d, are damaged in %s; they are computed anew",
                key.image,
                key.view,
                self._shards[entry.shard].rows_file,
            )
        return row

    def write(self, keys: Sequence[RowKey], digests: Sequence[int], rows: Tensor) -> bool:
        """Add rows, all or none; False if the limit is reached or the disk is full, which is logged once.

        Args:
            keys, digests: of the rows, and of the pixels they were made from.
            rows: (len(keys), bytes) uint8 on the CPU.
        """
        if self.is_full:
            return False
        if self._own is None:
            self._own = _Writer(self._directory, self.limit)
            self._shards[self._own.number] = self._own.shard
            for key, entry in self._own.found:
                self._entries.setdefault(key, entry)
        entries = self._own.append(keys, digests, rows)
        if entries is None:
            self.is_full = True
            logger.warning(
                "Teacher cache: %s after %d images (%.1f MiB); those that it lacks are computed in every epoch",
                self._own.full_because,
                len(self),
                self.size / _MEBIBYTE,
            )
            return False
        self._entries.update(zip(keys, entries, strict=True))
        return True

    def refresh(self) -> None:
        """Learn of the rows that other processes have added."""
        for file in sorted(self._directory.glob(f"*{_INDEX}")):
            number = int(file.stem)
            shard = self._shards.setdefault(number, _Shard(self._directory, number))
            for key, entry in shard.new_entries():
                # The first of two equal ones stays, so that a run sees the same numbers all along.
                self._entries.setdefault(key, entry)


class _Shard:
    """A file of rows and its index, for reading."""

    def __init__(self, directory: Path, number: int) -> None:
        self.number = number
        self.rows_file = directory / f"{number:04d}{_ROWS}"
        self.index_file = directory / f"{number:04d}{_INDEX}"
        self.seen = 0
        self._map: mmap.mmap | None = None

    def new_entries(self) -> Iterator[tuple[RowKey, _Entry]]:
        """What the index tells since the last call."""
        if self.index_file.stat().st_size < self.seen + _RECORD:
            return
        with open(self.index_file, "rb") as file:
            file.seek(self.seen)
            content = file.read()
        whole = len(content) - len(content) % _RECORD
        for start in range(0, whole, _RECORD):
            self.seen += _RECORD
            record = content[start : start + _RECORD]
            fields = record[: _ENTRY.size]
            if _CHECKSUM.pack(zlib.crc32(fields)) != record[_ENTRY.size :]:
                logger.warning(
                    "Teacher cache: record %d of %s is damaged; its image is computed anew",
                    self.seen // _RECORD - 1,
                    self.index_file,
                )
                continue
            *key, digest, offset, length, row_checksum = _ENTRY.unpack(fields)
            yield RowKey(*key), _Entry(digest, self.number, offset, length, row_checksum)

    def row(self, entry: _Entry) -> Tensor | None:
        end = entry.offset + entry.length
        if self._map is None or len(self._map) < end:
            self._map = self._mapped(end)
        if self._map is None:
            return None
        content = memoryview(self._map)[entry.offset : end]
        if zlib.crc32(content) != entry.checksum:
            return None
        return torch.frombuffer(content, dtype=torch.uint8)

    def _mapped(self, end: int) -> mmap.mmap | None:
        try:
            with open(self.rows_file, "rb") as file:
                if os.fstat(file.fileno()).st_size < end:
                    return None
                # Copy on write, of which there is none: torch wants no read-only memory.
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileNotFoundError:
            return None


class _Writer:
    """The shard that this process appends to: the first one that no other process holds."""

    def __init__(self, directory: Path, limit: int) -> None:
        self.number = 0
        while not self._take(directory):
            self.number += 1
        self.shard = _Shard(directory, self.number)
        self.found = list(self.shard.new_entries())
        self._rows = open(self.shard.rows_file, "ab", buffering=0)  # noqa: SIM115  (open as long as this is)
        self._end = max((entry.offset + entry.length for _, entry in self.found), default=0)
        # What a kill has left behind the last record.
        self._rows.truncate(self._end)
        self._index.truncate(self.shard.seen)
        self._left = limit
        self.full_because = ""

    def _take(self, directory: Path) -> bool:
        self._index = open(directory / f"{self.number:04d}{_INDEX}", "ab", buffering=0)  # noqa: SIM115
        try:
            # Held until the process ends, however it does.
            fcntl.flock(self._index, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._index.close()
            return False
        except OSError as error:
            raise CacheError(
                f"the teacher cache cannot lock files in '{directory}' ({error.strerror}); put it on a local disk"
            ) from error
        return True

    def append(self, keys: Sequence[RowKey], digests: Sequence[int], rows: Tensor) -> list[_Entry] | None:
        length = rows.shape[1]
        needed = len(keys) * (length + _RECORD)
        if needed > self._left:
            self.full_because = "limit reached (model.teacher_cache.limit_gib)"
            return None
        content = memoryview(rows.contiguous().numpy().reshape(-1))
        entries, records = [], bytearray()
        for row, (key, digest) in enumerate(zip(keys, digests, strict=True)):
            checksum = zlib.crc32(content[row * length : (row + 1) * length])
            entry = _Entry(digest, self.number, self._end + row * length, length, checksum)
            fields = _ENTRY.pack(*key, digest, entry.offset, length, checksum)
            records += fields + _CHECKSUM.pack(zlib.crc32(fields))
            entries.append(entry)
        try:
            _write_all(self._rows.fileno(), content)
            _write_all(self._index.fileno(), memoryview(records))
        except OSError as error:
            self._rows.truncate(self._end)
            self._index.truncate(self.shard.seen)
            self.full_because = f"cannot be written to ({error.strerror})"
            return None
        self._end += len(content)
        self.shard.seen += len(records)
        self._left -= needed
        return entries


def _write_all(file: int, content: memoryview) -> None:
    while content:
        content = content[os.write(file, content) :]


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other processes out of a directory that is being set up."""
    with open(directory / ".lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def rows_exist(directory: Path) -> bool:
    """Whether a store has been written to."""
    return any(directory.glob(f"*{_INDEX}"))


def remove_rows(directory: Path) -> None:
    """Delete a store; processes that read it keep what they have open."""
    # The index first: rows without it are nothing, an index without rows is damage.
    for suffix in (_INDEX, _ROWS):
        for file in directory.glob(f"*{suffix}"):
            file.unlink()
