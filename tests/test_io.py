"""bert_fast.io: whole files and directories, or none."""

import os
import stat

import pytest

from bert_fast import io


def leftovers(directory):
    return sorted(path.name for path in directory.iterdir())


def test_atomic_write_replaces_the_whole_content(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"a longer old content")
    io.atomic_write(file, b"new")
    assert file.read_bytes() == b"new"
    assert leftovers(tmp_path) == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
def test_atomic_write_obeys_the_umask(tmp_path):
    """A private temporary file, renamed, would lock other users out; safetensors makes such files."""
    old = os.umask(0o022)
    try:
        with io.atomic_file(tmp_path / "file") as temporary:
            temporary.write_bytes(b"x")
            temporary.chmod(0o600)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644
    assert leftovers(tmp_path) == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
def test_atomic_write_keeps_the_permissions_of_what_it_replaces(tmp_path):
    """What its owner made private stays so."""
    (tmp_path / "file").touch(mode=0o600)
    io.atomic_write(tmp_path / "file", b"x")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_atomic_file_keeps_the_old_content_on_error(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), io.atomic_file(file) as temporary:
        temporary.write_bytes(b"half of the n")
        raise KeyboardInterrupt
    assert file.read_bytes() == b"old"
    assert leftovers(tmp_path) == ["file"]


def test_atomic_file_says_what_is_in_the_way(tmp_path):
    with pytest.raises(FileNotFoundError, match="no directory"):
        io.atomic_write(tmp_path / "absent" / "file", b"")
    with pytest.raises(IsADirectoryError, match="a directory has this name"):
        io.atomic_write(tmp_path, b"")


def test_atomic_file_survives_very_long_names(tmp_path):
    name = "\u00fc" * 120
    io.atomic_write(tmp_path / name, b"x")
    assert leftovers(tmp_path) == [name]


@pytest.mark.parametrize("exists", [False, True])
def test_atomic_directory_appears_whole(tmp_path, exists):
    target = tmp_path / "target"
    if exists:
        target.mkdir()
    with io.atomic_directory(target) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "file").write_bytes(b"x")
        assert not (target / "sub").exists()
    assert (target / "sub" / "file").read_bytes() == b"x"
    assert leftovers(tmp_path) == ["target"]


def test_atomic_directory_is_absent_after_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), io.atomic_directory(tmp_path / "target") as temporary:
        (temporary / "file").write_bytes(b"x")
        raise RuntimeError("stop")
    assert leftovers(tmp_path) == []


def test_atomic_directory_refuses_a_full_directory_unless_forced(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="not empty"), io.atomic_directory(target):
        pytest.fail("the block must not run")
    assert leftovers(target) == ["old"]
    with io.atomic_directory(target, force=True) as temporary:
        (temporary / "new").write_bytes(b"x")
    assert leftovers(target) == ["new"]
    assert leftovers(tmp_path) == ["target"]


def test_atomic_directory_forced_keeps_the_old_one_on_error(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").write_bytes(b"precious")
    with pytest.raises(RuntimeError), io.atomic_directory(target, force=True):
        raise RuntimeError("stop")
    assert leftovers(target) == ["old"]
    assert leftovers(tmp_path) == ["target"]


def test_atomic_directory_refuses_a_file(tmp_path):
    (tmp_path / "target").write_bytes(b"x")
    with pytest.raises(FileExistsError, match="is a file"), io.atomic_directory(tmp_path / "target", force=True):
        pytest.fail("the block must not run")
