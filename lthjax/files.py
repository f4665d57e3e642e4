"""Atomic writing to disk, also on file systems that lack locks, renames or syncs.

Only this module writes files and moves folders. It imports only the standard library.
"""

import contextlib
import errno
import glob
import hashlib
import itertools
import json
import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from lthjax.errors import UserError

_log = logging.getLogger(__name__)
# Errors of file systems that do not support a call: Lustre, FUSE, CIFS, Google Drive.
UNKNOWN = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK, errno.EBADF}
# The names of incomplete files and folders begin with it.
PART = ".tmp-"
_numbers = itertools.count()
_said: set[str] = set()


def unwritable(path: str | Path, error: Exception, advice: str = "") -> UserError:
    """The error for a path that cannot be written: the path, the reason, and what to do.

    Args:
        path: the path that was being written.
        error: the exception; of several lines only the first is reported.
        advice: what to do; by default it depends on the reason.
    """
    number = getattr(error, "errno", None)
    full = number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    why = getattr(error, "strerror", None) or (str(error).strip() or type(error).__name__).splitlines()[0]
    if full:
        why = os.strerror(errno.EDQUOT if number == errno.EDQUOT else errno.ENOSPC)
    if not advice:
        advice = "free some space" if full else "it must be on a disk that is there and that you may write to"
        advice += ", and run the same command again, which goes on from here"
    return UserError(f"{path}: it cannot be written ({why}); {advice}.")


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file atomically, with the permissions that the umask gives.

    Args:
        path: the file; its folder must exist. An existing file is replaced.
        content: the whole content.

    Raises:
        OSError: it cannot be written; an existing file is left unchanged.
    """
    part = _part(path.parent, path.name)
    try:
        _clear_dead(path)
        part.write_bytes(content)
        sync(part)
        move(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextlib.contextmanager
def whole_folder(target: Path, last: str, within: Path, label: str = "") -> Iterator[Path]:
    """A new folder to fill; it becomes `target` if the block succeeds and is removed otherwise.

    Args:
        target: the final path; must not exist.
        last: the file in it that marks it as complete; where folders cannot be renamed it is copied last.
        within: the folder in which it is filled, on the same file system.
        label: begins its name there, for `label_of`.
    """
    part = _part(within, "", label)
    part.mkdir()
    try:
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                sync(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        move(part, target, last)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    sync(target.parent)


def clear(folder: Path, meant: Callable[[Path], bool] = lambda _: True) -> None:
    """Removes incomplete files and folders that killed processes have left directly in a folder.

    Args:
        folder: the folder.
        meant: which to remove; the caller must hold the lock under which these are written.
    """
    for left in filter(meant, folder.glob(f"{PART}*")):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def label_of(part: Path) -> str:
    """The label of an incomplete folder of `whole_folder`; "" if it has none."""
    label, dot, _ = part.name.removeprefix(PART).partition(",")
    return label if dot else ""


def _clear_dead(path: Path) -> None:
    """Removes incomplete versions of a file, left by dead processes of this machine."""
    ours = f"{PART}{socket.gethostname()}-"
    for left in path.parent.glob(f"{glob.escape(ours)}*-{glob.escape(path.name)}"):
        number = left.name.removeprefix(ours).partition("-")[0]
        if number.isdigit() and int(number) != os.getpid() and not runs(int(number)):
            left.unlink(missing_ok=True)


def runs(process: int) -> bool:
    """Whether a process is running; True where the system cannot say."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def move(source: Path, target: Path, last: str = "") -> None:
    """Renames a file or folder; copies it where the file system cannot rename.

    Args:
        source: the old path; gone afterwards.
        target: the new path; an existing file is replaced.
        last: for a folder, the file to copy last.

    Raises:
        OSError: it cannot be written; or a folder exists at the target.
    """
    try:
        os.replace(source, target)
        return
    except OSError as error:
        if error.errno not in UNKNOWN:
            raise
        warn(target.parent, "files cannot be renamed there and are copied; a kill may leave a part.")
    if source.is_file():
        shutil.copyfile(source, target)
        source.unlink()
        return
    target.mkdir()
    files = sorted((p for p in source.rglob("*") if p.is_file()), key=lambda p: p == source / last)
    for file in files:
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
        sync(copy)
    shutil.rmtree(source)


def listed(folder: Path, mark: str) -> list[str] | None:
    """The names of the files that `replace_folder` wrote, the mark last; None where the mark is not sound."""
    names = _marked(folder, mark)
    # A name that leads out of the folder was not written by `replace_folder`.
    inside = isinstance(names, (dict, list)) and all(
        isinstance(name, str) and name and PurePosixPath(name).parts[0] != "/" and ".." not in name.split("/")
        for name in names
    )
    return [*names, mark] if inside else None


def foreign(folder: Path, mark: str) -> str | None:
    """The first name in a folder that `replace_folder` did not write there; None where it wrote all."""
    ours = listed(folder, mark) or []
    parents = {parent.as_posix() for name in ours for parent in PurePosixPath(name).parents}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or name not in (parents if path.is_dir() else ours):
            return name
    return None


def edited(folder: Path, mark: str) -> str | None:
    """The first file in a folder that is no longer as `replace_folder` wrote it; None where all there are.

    Marks of earlier versions have no checksums: of them nothing is known.
    """
    digests = _marked(folder, mark)
    if not isinstance(digests, dict):
        return None
    there = ((name, digest) for name, digest in sorted(digests.items()) if (folder / name).is_file())
    return next((name for name, digest in there if sha256(folder / name) != digest), None)


def _marked(folder: Path, mark: str) -> Any:
    """What a mark says of the files beside it: checksums by name, or in those of earlier versions names."""
    try:
        return json.loads((folder / mark).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def replace_folder(target: Path, contents: Mapping[str, Path | bytes], mark: str) -> None:
    """Writes a folder beside the target, and then puts it in the target's place.

    A kill leaves the old folder or the new one; `recover_folder` removes the rest before the next call.

    Args:
        target: the folder; one that is there is replaced, and must be from an earlier call.
        contents: path in the folder -> its bytes, or the file to copy.
        mark: name of the file in it that lists all others, with their checksums.

    Raises:
        OSError: it cannot be written; a folder that was there still is.
    """
    new, old = _beside(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    new.mkdir()
    try:
        digests = {
            name: hashlib.sha256(of).hexdigest() if isinstance(of, bytes) else sha256(of)
            for name, of in sorted(contents.items())
        }
        # The mark comes first, so that the next call may remove what a killed one leaves.
        write_whole(new / mark, (json.dumps({"files": digests}, indent=1) + "\n").encode())
        for name, content in contents.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                (new / name).write_bytes(content)
            else:
                shutil.copyfile(content, new / name)
        if target.exists():
            os.replace(target, old)
        try:
            os.replace(new, target)
        except BaseException:
            if old.exists():
                os.replace(old, target)
            raise
    finally:
        _remove_listed(new, mark)
    _remove_listed(old, mark)


def recover_folder(target: Path, mark: str) -> None:
    """Puts the old folder back where a killed `replace_folder` has left no new one, and removes the rest.

    Raises:
        UserError: a folder that was left holds something that `replace_folder` did not write.
        OSError: it cannot be moved or removed.
    """
    new, old = _beside(target)
    if old.exists() and not target.exists():
        os.replace(old, target)
    for left in (new, old):
        if (name := foreign(left, mark)) is not None:
            raise UserError(f"{left}: a call that was stopped left it, with {name} in it; delete it.")
        _remove_listed(left, mark)


def _beside(target: Path) -> tuple[Path, Path]:
    """Where the new folder is made, and where the old one waits while the new one takes its place."""
    return target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")


def _remove_listed(folder: Path, mark: str) -> None:
    """Removes the files that a folder's mark lists, and the folder, which must hold nothing else."""
    if not folder.exists():
        return
    names = [name for name in listed(folder, mark) or [] if name != mark]
    for name in names:
        (folder / name).unlink(missing_ok=True)
    parents = {parent for name in names for parent in PurePosixPath(name).parents} - {PurePosixPath(".")}
    for parent in sorted(parents, key=lambda path: -len(path.parts)):
        if (folder / parent).is_dir():
            (folder / parent).rmdir()
    # The mark goes last, so that a call that is killed before can be mended.
    (folder / mark).unlink(missing_ok=True)
    folder.rmdir()


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on disk; does nothing where this is not supported.

    Raises:
        OSError: the disk reports a fault.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():  # Windows cannot open folders
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNKNOWN:
            raise
        warn(path.parent, "files cannot be synced there; a power failure may lose the last ones.")
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    check_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(path: Path) -> None:
    """Raises an OSError where there is something else, such as a named pipe, for which a reader waits."""
    if not path.is_file() and path.exists():
        raise OSError(errno.EINVAL, "it is not a file", str(path))


def _part(folder: Path, name: str, label: str = "") -> Path:
    """A name for an incomplete file, unique to this process and call."""
    whose = f"{socket.gethostname()}-{os.getpid()}-{next(_numbers)}"
    return folder / f"{PART}{label and label + ','}{whose}{name and '-'}{name}"


def warn(where: str | Path, text: str) -> None:
    """Warns about a file system; once per process, not for every file."""
    if text not in _said:
        _said.add(text)
        _log.warning("%s: %s", where, text)
