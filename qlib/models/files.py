"""The one way to touch the disk: what is written is the old file (or folder) or the new one, never a part.

    with atomic_file(path) as fresh:             write to `fresh`; at the end `path` becomes it
    with atomic_folder(folder, ours) as fresh:   the same for a folder; what we did not write survives

What is being made lies beside its target in `.quantdraft-TAG-XXXXXXXX`, TAG a hash of the target's name: so a
name of any length works, and two writers never share a place. They take turns, by a lock that the system
frees when its holder dies: whatever lies there while nobody holds the lock is what a killed run left, and the
next writer removes it.

A folder is replaced by two renames: the old one to `.NAME.old`, the new one to NAME. If the second fails, the
first is undone. A process that is killed between them leaves only `.NAME.old`: readers look there
(`current`), and the next writer puts it back.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from safetensors import SafetensorError, safe_open

from qlib.errors import FileError, ModelError, QlibError

log = logging.getLogger(__name__)

LONGEST = 255  # bytes of a file's name, on all usual file systems
WAIT = 0.01  # seconds between two attempts to get a lock
ATTEMPTS = 20  # to read a folder that others replace meanwhile
FREE_ATTEMPTS = 3  # of them without making the writers wait
SEAL = "digest"  # where a JSON object keeps its own hash
_PREFIX = ".quantdraft-"

Result = TypeVar("Result")
Owned = Callable[[Path], Sequence[str]]
"""From a folder to the names in it that we wrote and may remove, what identifies it last; raises a QlibError
where the folder is not ours."""


# --- reading


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a missing or malformed file is a ModelError that names it."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing. A checkpoint folder in Hugging Face layout has it.") from error
    except OSError as error:
        raise file_error("read", path, error) from error
    return parse_json(content, path)


def parse_json(content: bytes, path: Path) -> dict[str, Any]:
    """Return the JSON object in the content of a file; anything else is a ModelError that names the file."""
    try:
        values = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # malformed JSON, or not UTF-8; nested without end
        raise ModelError(f"Cannot read {path}: it is not valid JSON ({error}).") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} holds a {type(values).__name__}, not a JSON object.")
    return values


def sha256_of(content: Path | bytes) -> str:
    """Return the SHA-256 of a file, or of bytes, in hexadecimal."""
    digest = hashlib.sha256()
    if isinstance(content, bytes):
        digest.update(content)
    else:
        with content.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def digest_of(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a JSON object, however it is laid out; its own seal does not count."""
    rest = {key: value for key, value in content.items() if key != SEAL}
    return sha256_of(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its own hash in it; `digest_of` tells whether it was changed since."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(content)))  # as it will be read: tuples become lists
    return plain | {SEAL: digest_of(plain)}


def identity(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a file is replaced or written to; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class open_safetensors:  # noqa: N801  (reads as a function)
    """`safe_open` whose errors name the file and what to do."""

    def __init__(self, path: Path):
        self.path = path
        self.held = contextlib.ExitStack()

    def __enter__(self) -> Any:
        try:
            self.file: Any = safe_open(self._utf8(), framework="pt")
            return self.file.__enter__()  # type: ignore[no-untyped-call]
        except FileNotFoundError as error:
            raise ModelError(f"{self.path} is missing. Download or convert the model again.") from error
        except (SafetensorError, OSError, RuntimeError) as error:  # the last: torch, of a file that has gone
            self.held.close()
            size = (identity(self.path) or (0, 0, 0))[2]
            raise ModelError(
                f"{self.path} ({size:,} bytes) is damaged or truncated: {error}. "
                "Download or convert it again."
            ) from error

    def __exit__(self, *exception: Any) -> None:
        self.file.__exit__(*exception)
        self.held.close()

    def _utf8(self) -> str | Path:
        """Return the path, or another way to the file where safetensors cannot read the path's bytes."""
        try:
            os.fsencode(self.path).decode("utf-8")
        except UnicodeDecodeError:
            return f"/dev/fd/{self.held.enter_context(self.path.open('rb')).fileno()}"
        return self.path


# --- errors of the disk

_REASONS = {
    errno.ENOSPC: ("the disk is full", "Make room, or choose a folder on another disk"),
    errno.EDQUOT: ("your share of the disk is full", "Make room, or choose a folder on another disk"),
    errno.EACCES: ("no right to do that there", "Choose a folder of your own, or change its rights"),
    errno.EPERM: ("no right to do that there", "Choose a folder of your own, or change its rights"),
    errno.EROFS: ("the disk can only be read", "Choose a folder on another disk"),
    errno.ENAMETOOLONG: ("the name is too long", "Choose a shorter one"),
    errno.ENOTDIR: ("a part of the path is a file", "Choose another folder"),
    errno.EEXIST: ("a part of the path is a file", "Choose another folder"),
    errno.EISDIR: ("it is a folder", "Choose another name"),
    errno.EBUSY: ("it is in use, perhaps as a mount point", "Choose a folder inside of it"),
}


def file_error(what: str, path: Path, error: Exception) -> FileError:
    """Return the FileError that says which path could not be written (or read), why, and what to do."""
    code = getattr(error, "errno", None)
    text = getattr(error, "strerror", None) or str(error)
    if code is None and isinstance(error, SafetensorError):  # it tells the number in words only
        code = next((each for each in _REASONS if f"os error {each})" in text), None)
    reason, remedy = _REASONS.get(code or 0, ("the disk refused", "Check the path and the disk"))
    found = FileError(f"Cannot {what} {path}: {reason} ({text}). {remedy}.")
    found.errno = code
    return found


@contextmanager
def disk_errors(what: str, path: Path) -> Iterator[None]:
    """Turn errors of the disk into a FileError: "Cannot `what` `path`: the disk is full ..."."""
    try:
        yield
    except QlibError:
        raise
    except (OSError, SafetensorError) as error:
        raise file_error(what, path, error) from error


# --- locks


class BusyError(FileError):
    """Somebody else holds the lock, and we were not to wait."""


@contextmanager
def locked(target: Path, *, wait: bool = True, holder: str = "another process") -> Iterator[None]:
    """Hold the lock of a path: others wait here, or are refused.

    Parameters
    ----------
    target : Path
        What is locked; it need not exist, its folder must. The lock is a hidden file beside it that goes away
        at the end. The system frees it when its holder is killed.
    wait : bool
        False: a BusyError at once where somebody holds it.
    holder : str
        Who holds it, for the log.
    """
    place = target.with_name(f"{_prefix(target)}.lock")
    told = False
    while (file := _lock(place)) is None:
        if not wait:
            raise BusyError(f"{target} is in use by {holder}.")
        if not told:
            log.info("waiting for %s", holder)
            told = True
        time.sleep(WAIT)
    try:
        yield
    finally:
        _free(file, place)


def _free(file: IO[bytes], place: Path) -> None:
    with contextlib.suppress(OSError):  # a file that stays locks nothing
        place.unlink()
    file.close()


def _lock(place: Path) -> IO[bytes] | None:
    """Return the locked file; None where somebody else has it."""
    file = place.open("a+b")
    try:
        # Its last holder may have removed it after we opened it: then another file is the lock now.
        if _try_lock(file) and _is_there(file, place):
            return file
    except BaseException:
        file.close()
        raise
    file.close()
    return None


def _is_there(file: IO[bytes], place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), place.stat())
    except FileNotFoundError:
        return False


if sys.platform == "win32":  # pragma: no cover
    import msvcrt

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            # A result of hours is worth more than the protection against a second writer.
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            log.warning("%s: this file system has no locks; do not write there twice at once", file.name)
        return True


# --- writing


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, UTF-8, indented; the file is the old one or the new one, never a part."""
    with atomic_file(path) as fresh:
        fresh.write_text(json_text(content), encoding="utf-8")


def json_text(content: Mapping[str, Any]) -> str:
    """Return a JSON object as it stands in a file."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path to write a file to; at the end it becomes `path` at once. After an error nothing changes.

    Raises
    ------
    FileError
        The disk is full, or may not be written: the message names the path, the reason and the remedy.
    """
    with disk_errors("write", path), work_place(path) as work:
        fresh = _subfolder(work) / path.name
        yield fresh
        _flush(work)
        fresh.replace(path)
        _sync(path.parent)


@contextmanager
def atomic_folder(folder: Path, ours: Owned) -> Iterator[Path]:
    """Yield an empty folder to fill; at the end it becomes `folder` at once. After an error nothing changes.

    Parameters
    ----------
    folder : Path
        Parents are created. A link stays a link: what it points to is replaced. Files in it that we did not
        write move into the new folder.
    ours : callable
        Tells which files of the folder we wrote, or raises the error for a folder that is not ours.

    Raises
    ------
    FileError
        The disk is full, or may not be written: the message names the path, the reason and the remedy.
    QlibError
        What `ours` raises.
    """
    with disk_errors("write", folder):
        if folder.exists():
            ours(folder)  # names the folder as the user did, and before anything is touched
        target = Path(os.path.realpath(folder))
        _check_replaceable(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with work_place(target) as work:
            recover(target, ours)
            if target.exists():
                ours(target)  # again: somebody may have put something else there while we waited
            fresh = _subfolder(work)
            yield fresh
            install(fresh, target, ours)


@contextmanager
def work_place(target: Path, *, holder: str | None = None) -> Iterator[Path]:
    """Hold the lock of a path and yield an empty folder beside it, removed at the end.

    What killed runs left there is removed first.
    """
    with locked(target, holder=holder or f"another process that writes {target}"):
        clean(target)
        work = Path(tempfile.mkdtemp(prefix=f"{_prefix(target)}-", dir=target.parent))
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def clean(target: Path) -> None:
    """Remove work places that killed runs left beside a path. Call it with the lock of the path held."""
    for place in target.parent.glob(f"{_prefix(target)}-????????"):
        shutil.rmtree(place, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what killed runs left in a folder, whatever they wrote there; what is in use stays."""
    names = {entry.name for entry in folder.glob(f"{_PREFIX}????????[-.]*")}
    for prefix in {name[: len(_PREFIX) + 8] for name in names}:
        place = folder / f"{prefix}.lock"
        if (file := _lock(place)) is not None:
            for work in folder.glob(f"{prefix}-????????"):
                shutil.rmtree(work, ignore_errors=True)
            _free(file, place)


def _subfolder(work: Path) -> Path:
    """Return a folder with the usual rights; the work place itself is closed to others."""
    fresh = work / "new"
    fresh.mkdir()
    return fresh


def _prefix(target: Path) -> str:
    return f"{_PREFIX}{sha256_of(os.fsencode(target.name))[:8]}"


# --- replacing a folder


def install(fresh: Path, folder: Path, ours: Owned) -> None:
    """Put a finished folder in the place of another, of which only what is ours goes. Hold the lock."""
    mine = ours(folder) if folder.exists() else ()
    _check_names(fresh, folder, mine)
    _flush(fresh)
    old = next(place for place in _old_places(folder) if not os.path.lexists(place))
    try:
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    _sync(folder.parent)
    _settle(old, folder, mine)


def recover(folder: Path, ours: Owned) -> None:
    """Put back, or clear away, what a run left that was killed while it replaced a folder. Hold the lock."""
    for old in _old_places(folder):
        if old.is_symlink() or not old.is_dir():
            continue
        with contextlib.suppress(OSError):
            old.rmdir()  # all of it was cleared, but for the folder itself
            continue
        try:
            mine = ours(old)
        except QlibError:
            continue  # somebody else's
        if folder.exists():
            _settle(old, folder, mine)
        else:
            log.warning("%s was being replaced by a run that was killed; the older one is back", folder)
            old.rename(folder)


def mend(folder: Path, ours: Owned, *, wait: bool = True) -> None:
    """Put a folder in order without writing to it: what killed runs left is put back or removed."""
    target = Path(os.path.realpath(folder))
    if target.parent.is_dir():
        with disk_errors("write", folder), locked(target, wait=wait, holder=f"another writer of {target}"):
            clean(target)
            recover(target, ours)


def current(folder: Path, mark: str) -> Path:
    """Return where a folder can be read now: there, or where it lies while it is being replaced.

    `mark` names a file by which a folder of ours is known. A folder that is nowhere is returned as it is.
    """
    target = Path(os.path.realpath(folder))
    for _ in range(2):  # between two looks, a writer may have finished
        if folder.exists():
            return folder
        for place in _old_places(target):
            if (place / mark).is_file():
                return place
    return folder


def read_whole(folder: Path, mark: str, read: Callable[[Path], Result]) -> Result:
    """Return what `read` makes of a folder that others may replace meanwhile: of one folder, never of parts.

    Parameters
    ----------
    folder : Path
        Where the user says that it lies.
    mark : str
        The file by which a folder of ours is known; each writer makes a new one.
    read : callable
        Gets the folder's place now. It must raise an error for files that do not fit together.

    Raises
    ------
    Exception
        What `read` raises of a folder that nobody has touched.
    FileError
        The folder is replaced again and again, and cannot be locked.
    """
    for attempt in range(ATTEMPTS):
        with contextlib.ExitStack() as held:
            if attempt >= FREE_ATTEMPTS:
                with contextlib.suppress(OSError):  # the disk may be one that can only be read
                    target = Path(os.path.realpath(folder))
                    held.enter_context(locked(target, holder=f"another process that writes {target}"))
            place = current(folder, mark)
            before = identity(place / mark)
            try:
                return read(place)
            except Exception:  # of a folder that vanishes under it, any part may raise anything
                if current(folder, mark) == place and identity(place / mark) == before:
                    raise
                log.info("%s was replaced while it was read; reading it again", folder)
    raise FileError(f"{folder} was replaced {ATTEMPTS} times while it was read. Wait for who writes there.")


def _old_places(folder: Path) -> Iterator[Path]:
    """Yield names for a folder that has to step aside; somebody else may use the first."""
    first = f".{folder.name}.old"
    if len(os.fsencode(first)) <= LONGEST:
        yield folder.with_name(first)
    for number in range(10):
        yield folder.with_name(f"{_prefix(folder)}.old{number or ''}")


def _settle(old: Path, folder: Path, mine: Sequence[str]) -> None:
    """Move what is not ours from a replaced folder into the new one, and remove the rest.

    The new folder is in place, so trouble here is no failure: the next writer tries again.
    """
    try:
        if not old.exists():
            return
        for entry in sorted(old.iterdir()):
            if entry.name not in mine and not os.path.lexists(folder / entry.name):
                entry.rename(folder / entry.name)
        for name in mine:
            if (old / name).is_dir() and not (old / name).is_symlink():
                shutil.rmtree(old / name)
            else:
                (old / name).unlink(missing_ok=True)
        old.rmdir()
    except OSError as error:
        log.warning(
            "%s is written, but what was there before could not be cleared from %s: %s", folder, old, error
        )


def _check_replaceable(folder: Path) -> None:
    """Raise a FileError before the work begins where the folder could not be renamed at its end."""
    if not folder.is_dir():
        return
    here = Path(os.path.realpath(os.curdir))
    if folder == here or folder in here.parents:
        raise FileError(
            f"{folder} is the current folder and cannot be replaced. Choose a folder inside of it."
        )
    if folder.is_mount():
        raise FileError(f"{folder} is a mount point and cannot be replaced. Choose a folder inside of it.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise file_error("write", folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def _check_names(fresh: Path, folder: Path, mine: Sequence[str]) -> None:
    """Raise a FileError where a file of the user's has the name of one of ours."""
    theirs = {entry.name for entry in folder.iterdir()} - {*mine} if folder.exists() else set()
    if both := sorted(theirs & {entry.name for entry in fresh.iterdir()}):
        raise FileError(
            f"{folder} holds a {both[0]} that is not ours and would be overwritten. Move it away, or choose "
            "another folder."
        )


def _flush(folder: Path) -> None:
    """Bring the files of a folder to the disk, with the usual rights: safetensors makes private files."""
    for place, _, names in os.walk(folder):
        rights = Path(place).stat().st_mode & 0o666
        for name in names:
            file = Path(place, name)
            if not file.is_symlink():
                file.chmod(file.stat().st_mode | rights)
                _sync(file, os.O_RDWR)
        _sync(Path(place))


def _sync(path: Path, mode: int = os.O_RDONLY) -> None:
    """Bring a file, or the names in a folder, to the disk: a power cut then finds them."""
    try:
        number = os.open(path, mode)
    except PermissionError:  # Windows opens no folders
        if path.is_dir():
            return
        raise
    try:
        os.fsync(number)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP)):
            raise  # some file systems cannot sync a folder
    finally:
        os.close(number)
