"""Files and folders on disk: old or new, nobody's but ours, whoever else writes there."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors import SafetensorError

from qlib.errors import FileError, ModelError, QlibError, QuantError
from qlib.models.disk import lock
from qlib.models.disk.disk_errors import disk_errors
from qlib.models.disk.folders import atomic_folder, mend
from qlib.models.disk.hashes import digest_of, sealed
from qlib.models.disk.lock import BusyError, locked, prefix_of, take
from qlib.models.disk.read_folder import current
from qlib.models.disk.replace_folder import install, old_places
from qlib.models.disk.work_place import sweep
from qlib.models.files import atomic_file, read_json, write_json

NAMES = ("content", "mark")


def ours(folder: Path) -> Sequence[str]:
    if not (folder / "mark").is_file():
        raise QuantError(f"{folder} is not ours")
    return NAMES


def put(folder: Path, content: str) -> None:
    with atomic_folder(folder, ours) as fresh:
        (fresh / "content").write_text(content)
        (fresh / "mark").touch()


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- folders


def test_what_we_did_not_write_survives(tmp_path: Path) -> None:
    put(tmp_path / "a", "1")
    (tmp_path / "a" / "thesis.txt").write_text("precious")
    (tmp_path / "a" / "plots").mkdir()
    (tmp_path / "a" / "plots" / "1.png").touch()
    (tmp_path / "a" / "link").symlink_to("nowhere")
    put(tmp_path / "a", "2")
    assert listing(tmp_path) == ["a"]
    assert listing(tmp_path / "a") == ["content", "link", "mark", "plots", "thesis.txt"]
    assert (tmp_path / "a" / "content").read_text() == "2"
    assert (tmp_path / "a" / "thesis.txt").read_text() == "precious"
    assert (tmp_path / "a" / "plots" / "1.png").exists()


def test_a_foreign_folder_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("precious")
    with pytest.raises(QuantError, match="is not ours"), atomic_folder(tmp_path / "a", ours):
        raise AssertionError("not reached")
    assert listing(tmp_path) == ["a"]
    assert (tmp_path / "a" / "thesis.txt").read_text() == "precious"


def test_a_file_of_the_users_with_the_name_of_one_of_ours(tmp_path: Path) -> None:
    put(tmp_path / "a", "1")
    (tmp_path / "a" / "extra").write_text("precious")
    message = r"a holds a extra that is not ours.*Move it away"
    with pytest.raises(FileError, match=message), atomic_folder(tmp_path / "a", ours) as fresh:
        for name in (*NAMES, "extra"):
            (fresh / name).touch()
    assert (tmp_path / "a" / "content").read_text() == "1"
    assert (tmp_path / "a" / "extra").read_text() == "precious"


def test_links_stay_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for link, target in (("link", tmp_path / "real" / "a"), ("again", "link")):
        (tmp_path / link).symlink_to(target)
    for content in ("1", "2", "3"):  # the first one finds a link to nothing
        put(tmp_path / "again", content)
        assert (tmp_path / "real" / "a" / "content").read_text() == content
    assert (tmp_path / "link").is_symlink() and (tmp_path / "again").is_symlink()
    assert listing(tmp_path) == ["again", "link", "real"]
    assert listing(tmp_path / "real") == ["a"]


@pytest.mark.parametrize("name", ["n" * 250, "n" * 255, "ü" * 120, "a\nb", "\udcff", "🎈", " ", "[x]*?"])
def test_any_name(tmp_path: Path, name: str) -> None:
    for content in ("1", "2"):
        put(tmp_path / name, content)
    assert (tmp_path / name / "content").read_text() == "2"
    write_json(tmp_path / name / name, {"a": 1})
    assert read_json(tmp_path / name / name) == {"a": 1}
    assert listing(tmp_path) == [name]


def test_the_usual_rights(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        with atomic_folder(tmp_path / "a", ours) as fresh:
            (fresh / "mark").touch(0o600)
        write_json(tmp_path / "b", {})
    finally:
        os.umask(old)
    found = [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "a/mark", "b")]
    assert found == [0o755, 0o644, 0o644]


def test_the_current_folder_is_not_pulled_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a", "1")
    (tmp_path / "a" / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a" / "b")
    with pytest.raises(
        FileError, match=r"is the current folder and cannot be replaced. Choose a folder inside"
    ):
        put(tmp_path / "a", "2")


def test_a_rename_that_fails_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a", "1")
    rename = os.rename

    def fail(source: Path, target: Path) -> None:
        if Path(source).name == "new":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(FileError, match=r"Cannot write .*a: the disk refused"):
        put(tmp_path / "a", "2")
    assert listing(tmp_path) == ["a"]
    assert (tmp_path / "a" / "content").read_text() == "1"


def test_files_reach_the_disk_before_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut behind a rename must not find a name with nothing behind it."""
    done: list[str] = []
    sync, rename, replace = os.fsync, os.rename, os.replace

    def synced(number: int) -> None:
        done.append(Path(f"/dev/fd/{number}").readlink().name)
        sync(number)

    def renamed(source: Path, target: Path) -> None:
        done.append(f"{Path(source).name} -> {Path(target).name}")
        (rename if Path(source).is_dir() else replace)(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(os, "replace", renamed)
    put(tmp_path / "a", "1")
    at = done.index("new -> a")
    assert {"content", "mark", "new"} <= {*done[:at]} and tmp_path.name in done[at:]
    done.clear()
    write_json(tmp_path / "b", {})
    at = done.index("b -> b")
    assert "b" in done[:at] and tmp_path.name in done[at:]


# --- killed between the two renames


@pytest.mark.parametrize("name", ["a", "n" * 252])
def test_a_killed_swap_is_read_and_put_back(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    put(folder, "1")
    (folder / "thesis.txt").write_text("precious")
    old = next(old_places(folder))
    folder.rename(old)
    assert current(folder, "mark") == old
    mend(folder, ours)
    assert listing(tmp_path) == [name]
    folder.rename(old)
    put(folder, "2")
    assert current(folder, "mark") == folder
    assert listing(tmp_path) == [name]
    assert (folder / "content").read_text() == "2"
    assert (folder / "thesis.txt").read_text() == "precious"


def test_a_killed_clean_up_is_finished(tmp_path: Path) -> None:
    put(tmp_path / "a", "1")
    (tmp_path / "a").rename(tmp_path / ".a.old")
    (tmp_path / ".a.old" / "thesis.txt").write_text("precious")
    install(made(tmp_path / "x"), tmp_path / "a", ours)
    put(tmp_path / "a", "2")
    assert listing(tmp_path) == ["a"]
    assert (tmp_path / "a" / "thesis.txt").read_text() == "precious"


def made(folder: Path) -> Path:
    folder.mkdir()
    for name in NAMES:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_called_old_and_is_not_ours_stays(tmp_path: Path, kind: str) -> None:
    old = tmp_path / ".a.old"
    if kind == "folder":
        old.mkdir()
        (old / "thesis.txt").touch()
    elif kind == "file":
        old.touch()
    else:
        old.symlink_to("nowhere")
    for content in ("1", "2", "3"):
        put(tmp_path / "a", content)
    assert listing(tmp_path) == [".a.old", "a"]
    assert (tmp_path / "a" / "content").read_text() == "3"
    assert kind != "folder" or listing(old) == ["thesis.txt"]


def test_left_overs_of_killed_writers_go(tmp_path: Path) -> None:
    target = tmp_path / "a"
    (tmp_path / f"{prefix_of(target)}-abcd1234").mkdir()
    (tmp_path / f"{prefix_of(tmp_path / 'b')}-abcd1234").mkdir()
    (tmp_path / f"{prefix_of(tmp_path / 'c')}.lock").touch()
    put(target, "1")
    assert len(listing(tmp_path)) == 3, "another name's may be in use"
    with locked(tmp_path / "b"):
        sweep(tmp_path)
        assert len(listing(tmp_path)) == 3, "in use"
    sweep(tmp_path)
    assert listing(tmp_path) == ["a"]


# --- locks


def test_the_second_waits_or_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "qlib")
    order = []

    def second() -> None:
        with locked(tmp_path / "a", holder="a friend"):
            order.append("second")

    with locked(tmp_path / "a"):
        again = locked(tmp_path / "a", wait=False, holder="a friend")
        with pytest.raises(BusyError, match="in use by a friend"), again:
            pass
        with locked(tmp_path / "b", wait=False):
            pass
        thread = threading.Thread(target=second)
        thread.start()
        while "waiting for a friend" not in caplog.text:
            time.sleep(0.01)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    assert listing(tmp_path) == []


def test_only_one_holds_it(tmp_path: Path) -> None:
    """Many take turns, each removing the file that is the lock."""
    inside, most = [0], [0]

    def often() -> None:
        for _ in range(30):
            with locked(tmp_path / "a"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.0002)
                inside[0] -= 1

    threads = [threading.Thread(target=often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1]
    assert listing(tmp_path) == []


def test_a_lock_that_its_holder_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "x.lock"

    def late(file: object) -> bool:  # its holder goes, and another one comes, after we opened it
        place.rename(tmp_path / "gone")
        place.touch()
        return True

    monkeypatch.setattr(lock, "_try_lock", late)
    assert take(place) is None


HOLDER = """
import sys
from pathlib import Path
from qlib.models.disk.lock import locked
with locked(Path(sys.argv[1])):
    sys.stdout.write("held\\n"); sys.stdout.flush(); sys.stdin.read()
"""


@pytest.mark.slow
def test_a_lock_dies_with_its_holder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "a")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BusyError), locked(tmp_path / "a", wait=False):
            pass
        process.kill()
        process.wait()
        with locked(tmp_path / "a", wait=False):
            pass
    assert listing(tmp_path) == []


# --- errors


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"the disk is full \(No space.*Make room"),
        (SafetensorError("Error while serializing: I/O error: (os error 28)"), "the disk is full.*Make room"),
        (PermissionError(errno.EACCES, "Permission denied"), r"no right .*\(Permission denied\).*its rights"),
        (OSError(errno.EROFS, "Read-only file system"), "the disk can only be read.*another disk"),
        (OSError(errno.ENAMETOOLONG, "File name too long"), "the name is too long.*shorter"),
        (OSError(errno.EIO, "Input/output error"), r"the disk refused \(Input/output error\)"),
    ],
)
def test_errors_of_the_disk_name_path_reason_and_remedy(error: Exception, message: str) -> None:
    match = f"^Cannot write out/x: {message}"
    with pytest.raises(FileError, match=match) as found, disk_errors("write", Path("out/x")):
        raise error
    assert isinstance(found.value, OSError) and isinstance(found.value, QlibError)
    assert found.value.errno == getattr(error, "errno", 28)


def test_real_errors(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=r"file/a: a part of the path is a file.*Choose another folder"):
        put(tmp_path / "file" / "a", "1")
    with pytest.raises(FileError, match=r"the name is too long .*Choose a shorter one"):
        put(tmp_path / ("n" * 300), "1")
    with pytest.raises(FileError, match=r"Cannot write .*nowhere/x: the disk refused .*No such file"):
        write_json(tmp_path / "nowhere" / "x", {})
    with pytest.raises(FileError, match=r"Cannot read .*: it is a folder"):
        read_json(tmp_path)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_no_rights(tmp_path: Path) -> None:
    put(tmp_path / "a", "1")
    for place in (tmp_path, tmp_path / "a"):
        place.chmod(0o500)
        try:
            with pytest.raises(FileError, match=r"no right to do that there.*Choose a folder of your own"):
                put(tmp_path / "a", "2")
        finally:
            place.chmod(0o700)
    assert (tmp_path / "a" / "content").read_text() == "1"


def test_after_an_error_a_file_is_the_old_one(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"a": 1})
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "a") as fresh:
        fresh.write_text("half")
        raise ZeroDivisionError
    assert read_json(tmp_path / "a") == {"a": 1}
    assert listing(tmp_path) == ["a"]


# --- JSON


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "not valid JSON"), (b"\xff", "not valid JSON"), (b"[1]", "a list, not a JSON object"),
     (b"[" * 100_000, "not valid JSON"), (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON")],
    ids=["cut", "latin", "list", "deep", "long"],
)  # fmt: skip
def test_json_that_is_none_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ModelError, match=rf"a\.json.*{message}"):
        read_json(tmp_path / "a.json")


def test_a_seal_knows_content_and_not_layout() -> None:
    content = sealed({"b": [1, 2.5, None], "a": {"x": "ü"}, "t": (1, 2)})
    assert content["t"] == [1, 2]
    again = json.loads(json.dumps(content, indent=3, sort_keys=True))
    assert again["digest"] == digest_of(again)
    for change in ({"b": [1, 2.5, 0]}, {"c": 1}, {"b": [1.0, 2.5, None]}):
        assert digest_of(again | change) != again["digest"]
