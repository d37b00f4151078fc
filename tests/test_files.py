"""Atomic writing: the old file or the new one, and nothing beside it."""

import errno

import pytest

from dflash.files import write_atomically


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "status.json"
    write_atomically(path, "old")
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failing", ["os.fsync", "os.replace"])
def test_a_write_that_fails_names_the_file_keeps_the_old_one_and_leaves_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "status.json"
    write_atomically(path, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", *([] if failing == "os.fsync" else [".staging"]))

    monkeypatch.setattr(failing, full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(path, "new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
