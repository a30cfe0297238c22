"""Files and directories that appear whole or not at all.

Content goes to a temporary name in the same directory (hence the same file system), is forced to disk, and is renamed
into place. A reader, a crash or a full disk never meets half a file; what an error leaves behind is what was there.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def temporary_sibling(path: str | os.PathLike[str]) -> Path:
    """A name beside `path` that no file has: hidden, random, ending in `.tmp`. Nothing is created."""
    path = Path(path)
    return path.with_name(f".{path.name[:50]}.{secrets.token_hex(8)}.tmp")


def fsync(path: str | os.PathLike[str]) -> None:
    """Force a file, or a directory's list of names, to disk. Directories cannot be synchronised on Windows: no-op."""
    if os.name == "nt" and Path(path).is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(temporary: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Put a finished temporary file in the place of `path`: data first, then the name.

    Permissions are those of the file that was there, or those that the umask gives a new one. The library that wrote
    the temporary file may have made it private, as safetensors does.
    """
    path = Path(path)
    os.chmod(temporary, stat.S_IMODE(path.stat().st_mode) if path.exists() else _mode_of_a_new_file(path))
    fsync(temporary)
    os.replace(temporary, path)
    fsync(path.parent)


def _mode_of_a_new_file(path: Path) -> int:
    """Found by making one: the umask cannot be read without changing it for every thread."""
    probe = temporary_sibling(path)
    probe.touch(exist_ok=False)
    try:
        return stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink()


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path for the caller to write; put it in the place of `path` when the block ends well.

        with atomic_file("out.npy") as temporary:
            temporary.write_bytes(data)

    On an error the temporary file is removed and `path` is as it was. Raises FileNotFoundError without a directory to
    write in, and IsADirectoryError where `path` is a directory.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"cannot write the file {path}: a directory has this name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no directory {path.parent}")
    temporary = temporary_sibling(path)
    try:
        yield temporary
        replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise


def atomic_write(path: str | os.PathLike[str], data: bytes | bytearray | memoryview) -> None:
    """Write `data` as the whole content of `path`."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def atomic_directory(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """Yield a new temporary directory for the caller to fill; give it the name `path` when the block ends well.

    Raises FileExistsError, before anything is done, where `path` is a file or a directory that is not empty; with
    `force` the old directory is replaced. On an error, nothing is left and `path` is as it was; a process that is
    killed leaves a hidden directory beside `path` that ends in `.tmp`.
    """
    path = Path(os.path.abspath(path))
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file; give the name of a directory")
    if path.is_dir() and any(path.iterdir()) and not force:
        raise FileExistsError(f"{path} exists and is not empty; give another name, or force its replacement")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(path)
    temporary.mkdir()
    try:
        yield temporary
        for inside in (*temporary.rglob("*"), temporary):
            fsync(inside)
        _replace_directory(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _replace_directory(temporary: Path, path: Path) -> None:
    """Rename a directory onto another. No system call swaps full directories, so the old one steps aside first."""
    old = temporary_sibling(path) if path.is_dir() else None
    if old is not None:
        path.rename(old)
    try:
        temporary.rename(path)
    except BaseException:
        if old is not None:
            old.rename(path)
        raise
    fsync(path.parent)
    if old is not None:
        shutil.rmtree(old)
