"""What is read from a mounted directory, and when."""

from __future__ import annotations

import os

import pytest

from omendb.config_directory import FILE_BYTES_MAX, ConfigDirectory
from tests.configmap import ConfigMapMount


def settled(directory: ConfigDirectory):
    """Look as often as it takes for a change to come to rest."""
    directory.read_when_changed()
    return directory.read_when_changed()


def test_missing_directory_has_no_keys_and_may_appear_later(tmp_path) -> None:
    directory = ConfigDirectory(tmp_path / "config")

    assert directory.read() == {}
    ConfigMapMount(tmp_path / "config", {"max_error": "50"})
    assert settled(directory) == {"max_error": "50"}


def test_names_that_begin_with_dots_and_directories_are_no_keys(tmp_path) -> None:
    ConfigMapMount(tmp_path, {"max_error": "50\n"})
    (tmp_path / ".max_error.swp").write_text("b0VIM")
    (tmp_path / "lost+found").mkdir()

    assert ConfigDirectory(tmp_path).read() == {"max_error": "50\n"}


def test_link_without_a_target_is_no_key(tmp_path) -> None:
    (tmp_path / "max_error").symlink_to("..data/max_error")

    assert ConfigDirectory(tmp_path).read() == {}


def test_swap_of_the_data_link_is_a_change(tmp_path) -> None:
    mount = ConfigMapMount(tmp_path, {"max_error": "50", "batch_size": "1"})
    directory = ConfigDirectory(tmp_path)
    directory.read()
    directory.read_when_changed()

    mount.write({"max_error": "60", "prefetch_size": "1"})

    assert settled(directory) == {"max_error": "60", "prefetch_size": "1"}
    assert settled(directory) is None


def test_same_size_and_time_of_another_file_is_a_change(tmp_path) -> None:
    mount = ConfigMapMount(tmp_path, {"max_error": "50"})
    target = (tmp_path / "max_error").resolve()
    os.utime(target, ns=(1, 1))
    directory = ConfigDirectory(tmp_path)
    directory.read()
    directory.read_when_changed()

    mount.write({"max_error": "60"})
    os.utime((tmp_path / "max_error").resolve(), ns=(1, 1))

    assert settled(directory) == {"max_error": "60"}


def test_plain_file_changed_in_place_and_removed(tmp_path) -> None:
    file = tmp_path / "max_error"
    file.write_text("50")
    directory = ConfigDirectory(tmp_path)
    directory.read()

    file.write_text("1000")
    assert settled(directory) == {"max_error": "1000"}
    file.unlink()
    assert settled(directory) == {}


def test_what_changes_between_two_looks_is_not_read_yet(tmp_path) -> None:
    file = tmp_path / "max_error"
    file.write_text("64")
    directory = ConfigDirectory(tmp_path)
    directory.read()
    settled(directory)

    # A slow writer: truncated, then digit by digit.
    for text in ("", "1", "10", "100"):
        file.write_text(text)
        assert directory.read_when_changed() is None

    assert directory.read_when_changed() == {"max_error": "100"}
    assert directory.read_when_changed() is None


def test_what_changes_while_it_is_read_is_read_again(tmp_path, monkeypatch) -> None:
    mount = ConfigMapMount(tmp_path, {"max_error": "1", "batch_size": "1"})
    directory = ConfigDirectory(tmp_path)
    directory.read()
    settled(directory)
    mount.write({"max_error": "22", "batch_size": "22"})
    read = directory._text

    def read_and_change(key: str):
        text = read(key)
        monkeypatch.setattr(directory, "_text", read)
        mount.write({"max_error": "333", "batch_size": "333"})
        return text

    monkeypatch.setattr(directory, "_text", read_and_change)

    assert settled(directory) is None
    assert directory.read_when_changed() == {"max_error": "333", "batch_size": "333"}


def test_what_is_no_text_is_an_error_of_that_key(tmp_path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "large").write_bytes(b"1" * (FILE_BYTES_MAX + 1))
    (tmp_path / "max_error").write_text("50")
    os.mkfifo(tmp_path / "pipe")

    texts = ConfigDirectory(tmp_path).read()

    assert texts.pop("max_error") == "50"
    assert texts.keys() == {"binary", "large", "pipe"}
    assert all(isinstance(error, ValueError) for error in texts.values())


def test_directory_that_cannot_be_read_is_an_error_until_it_can(tmp_path) -> None:
    path = tmp_path / "config"
    path.mkdir()
    (path / "max_error").write_text("50")
    directory = ConfigDirectory(path)
    directory.read()
    settled(directory)
    path.rename(tmp_path / "aside")
    path.write_text("a file in its place")

    for _ in range(3):
        with pytest.raises(OSError, match="Not a directory"):
            directory.read_when_changed()
    path.unlink()
    (tmp_path / "aside").rename(path)

    assert settled(directory) == {"max_error": "50"}
