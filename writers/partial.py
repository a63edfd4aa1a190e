"""What there is of a file while it is written, and how the next start of its writer continues.

Beside ``x.beton`` lie meanwhile ``.x.beton.partial``, ``.x.beton.samples.gz.partial`` and the journal,
``.x.beton.journal``. Its first line says what is being written; one more follows for each page, after
that page was synced. Each line begins with its own hash, so one that was torn by a kill or a power
cut is known and written again. The journal is also the lock: one writer at a time.
"""

import contextlib
import errno
import fcntl
import io
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from ffcv_r50.data import beton, samples
from ffcv_r50.errors import UserError
from ffcv_r50.files import sync_folder

CHECKPOINT_SECONDS = 5.0
"""Between two times that filled pages are synced and journaled. A kill costs at most what was done
since, and the page that was being filled."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Page(NamedTuple):
    """A page that was filled."""

    images: int
    """Images of the selection that are done with it, stored or left out."""
    rows: list[tuple[int, ...]]
    """Mode, height, width, bytes, label and the fields behind it of each of its samples."""
    kept: int
    """Of these, images whose pixels are those of their source."""
    skipped: list[dict[str, str]]
    """Path and reason of the images that were left out since the page before."""
    names_end: int
    """Size of the samples file, with this page's samples, in bytes."""


class Partial:
    """The files that are being written; use :func:`opened`."""

    def __init__(self, path: Path, journal: BinaryIO) -> None:
        self._path = path
        self._journal = journal
        self._finals = (path, samples.path_beside(path), beton.sidecar_path(path))
        self._partials = [_hidden(final, "partial") for final in self._finals]
        self._waiting: list[Page] = []
        self._synced = time.monotonic()
        self.images = 0
        """Images that are done for good: what the next start need not do again."""
        self.finished = False
        """Whether all files are whole, and only their names may be missing."""
        self.data: BinaryIO = io.BytesIO()
        """What becomes the ``.beton`` file."""
        self.names: BinaryIO = io.BytesIO()
        """What becomes the samples file."""

    def begin(self, key: str) -> None:
        """Open the files where an earlier start under the same key has left them, or anew."""
        self._find(key)
        if not self.finished:
            mode = "r+b" if self.images else "w+b"
            if not self.images:
                for partial in self._partials:
                    partial.unlink(missing_ok=True)
            self.data = cast(BinaryIO, open(self._partials[0], mode))  # noqa: SIM115
            self.names = cast(BinaryIO, open(self._partials[1], mode))  # noqa: SIM115
            if not self.images:
                self._journal.truncate(0)
                self._append([{"key": key}])

    def pages(self) -> Iterator[Page]:
        """Those that earlier starts have filled. The files continue behind the last of them."""
        end = 0
        for line in self._lines():
            record = json.loads(line)
            if "rows" in record:
                page = Page(**record)
                end = page.names_end
                yield page
        self.names.truncate(end)
        self.names.seek(end)

    def add(self, page: Page) -> None:
        """Note a page that has been written."""
        self._waiting.append(page)
        if time.monotonic() - self._synced >= CHECKPOINT_SECONDS:
            self._checkpoint()

    def finish(self, sidecar: bytes | None, *, names: bool = True) -> None:
        """Make everything durable, under the temporary names.

        Args:
            sidecar: its content; None for a dataset without.
            names: whether there is a samples file.
        """
        if sidecar is not None:
            with open(self._partials[2], "wb") as file:
                file.write(sidecar)
                file.flush()
                os.fsync(file.fileno())
        self._checkpoint()
        if not names:
            self._partials[1].unlink()
        self._append([{"finished": True}])
        self.finished = True

    def publish(self) -> None:
        """Give the finished files their names.

        The old sidecar and samples file go first, the new ones come last: a kill in between leaves a
        dataset without them, never with wrong ones, and the next start does the rest.
        """
        if self._partials[0].exists():
            for final in self._finals[1:]:
                final.unlink(missing_ok=True)
        for partial, final in zip(self._partials, self._finals, strict=True):
            if partial.exists():
                os.replace(partial, final)
        sync_folder(self._path.parent)
        _hidden(self._path, "journal").unlink()

    def leave(self) -> None:
        """After an error: keep what the same command can continue, and say so; else remove it."""
        if self.finished or self.images:
            print(f"kept {self.images:,} images for {self._path}; the same command continues")
        else:
            for partial in (*self._partials, _hidden(self._path, "journal")):
                partial.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files."""
        for file in (self.data, self.names):
            with contextlib.suppress(OSError):  # a buffer that a full disk does not take
                file.close()

    def _checkpoint(self) -> None:
        for file in (self.data, self.names):
            file.flush()
            os.fsync(file.fileno())
        self._append(page._asdict() for page in self._waiting)
        if self._waiting:
            self.images = self._waiting[-1].images
        self._waiting.clear()
        self._synced = time.monotonic()

    def _append(self, records: Iterable[dict[str, Any]]) -> None:
        self._journal.seek(0, os.SEEK_END)
        for record in records:
            line = json.dumps(record).encode()
            self._journal.write(samples.digest(line).encode() + b" " + line + b"\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def _lines(self) -> Iterator[bytes]:
        """Those of the journal that are whole; what follows them is cut off."""
        self._journal.seek(0)
        end = 0
        while line := self._journal.readline():
            digest, _, record = line.rstrip(b"\n").partition(b" ")
            if digest != samples.digest(record).encode() or not line.endswith(b"\n"):
                self._journal.truncate(end)
                return
            end += len(line)
            yield record

    def _find(self, key: str) -> None:
        """See what an earlier start has left, and say whether it is of use."""
        first = page = last = b"{}"
        for i, last in enumerate(self._lines()):
            if i == 0:
                first = last
            elif b'"rows"' in last:
                page = last
        images = int(json.loads(page).get("images", 0))
        finished = "finished" in json.loads(last)
        if not images and not finished:
            return
        if json.loads(first).get("key") != key:
            print(f"note: {self._path}: {images:,} images that another command left are discarded")
        elif not finished and not all(partial.exists() for partial in self._partials[:2]):
            print(f"note: {self._path}: {images:,} images are gone that a killed writer had done")
        else:
            print(f"{self._path}: continuing after {images:,} images")
            self.images, self.finished = images, finished


@contextlib.contextmanager
def opened(path: Path, key: str) -> Iterator[Partial]:
    """Lock a target, and continue with what an earlier start has left of it.

    Args:
        path: the ``.beton`` file.
        key: says what is written; what was left under another key is discarded.

    Raises:
        UserError: another writer is at work on it.
        OSError: the folder is not writable, or the disk is full.
    """
    with _locked(path) as journal:
        partial = Partial(path, journal)
        try:
            partial.begin(key)
            yield partial
        except BaseException:
            partial.close()
            partial.leave()
            raise
        partial.close()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """The journal, open; nobody else has it, on any machine whose file system knows locks."""
    name = _hidden(path, "journal")
    while True:
        with open(os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{path}: another writer is at work on it; wait for it, or name another file"
                ) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                print(f"note: {path.parent} has no file locks; start no second writer of {path}")
            # Who had it before may have finished, and removed it, since it was opened here.
            if name.exists() and os.path.samestat(os.fstat(file.fileno()), name.stat()):
                yield file
                return


def _hidden(path: Path, suffix: str) -> Path:
    """``x.beton`` -> ``.x.beton.SUFFIX``."""
    return path.with_name(f".{path.name}.{suffix}")
