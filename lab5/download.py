"""A large file over a line that breaks: fetched once, resumed where it stopped, checked before it counts.

`PATH.part` holds the first bytes of the file and `PATH.source.json` says what they are the first bytes of: the URL, the
server's mark of this version (ETag or date) and the size. Bytes are only ever appended to a part whose version the
server confirms, so a kill at any moment costs nothing, and two versions are never glued together.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import httpx
from filelock import FileLock, Timeout
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential
from tqdm.auto import tqdm

from lab5.files import write_text

BAIR_URL = "http://rail.eecs.berkeley.edu/datasets/bair_robot_pushing_dataset_v0.tar"
KNOWN = {  # size and SHA-256, as TensorFlow Datasets lists them (url_checksums/bair_robot_pushing_small.txt)
    BAIR_URL: (32_274_964_480, "c6f8d164ab2be07174ef597e3e070d7466f3142caddc467b6af119b9458cd9cd"),
}
BLOCK = 1 << 20                                                 # bytes that are hashed at a time
PASSING = (408, 425, 429)                                       # refusals that mean "later", as do all from 500 on


class DownloadError(RuntimeError):
    """A file that could not be fetched, or is not what was asked for; says why, what is kept and what to do."""


class _Interrupted(Exception):
    """The server did not send what it was asked for, but may do so when it is asked again."""


def download(url: str = BAIR_URL, to: Path | None = None, sha256: str = "", tries: int = 8, pause: float = 1) -> str:
    """Fetch a file, or what is still missing of it; returns a line that says what is there and how it was checked.

    `to` is a file, or a folder that gets one with the URL's name. Gives up after `tries` requests in a row that brought
    nothing new, with `pause` seconds after the first, then twice as many each time, up to a minute. Raises
    DownloadError where the file cannot be had, written or believed; what was fetched is kept.
    """
    path = _target(url, to)
    if sha256 and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise DownloadError(f"{sha256}: not a SHA-256 checksum, which has 64 hex digits")
    size, known = KNOWN.get(url, (None, ""))
    sha256 = sha256.lower() or known
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=0):
            part = _Part(url, path, size)
            if path.exists():
                return _already_there(part, path, sha256)
            part.fetch(tries, pause)
            return _accept(part, path, sha256)
    except Timeout:
        raise DownloadError(f"{path}: another process is downloading it; wait for that one or stop it") from None
    except OSError as error:
        raise DownloadError(f"{path}: could not be written ({error.strerror or error}); what was fetched is kept. Make "
                            "room or choose another place with --to, then the same command goes on") from error


def _target(url: str, to: Path | None) -> Path:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise DownloadError(f"{url}: not a URL ({error})") from error
    name = Path(parsed.path).name
    path = Path(to or ".").expanduser()
    path = path / name if path.is_dir() else path
    if parsed.scheme not in ("http", "https") or not parsed.host or path.is_dir():
        raise DownloadError(f"{url}: expected http:// or https://, a host and the path of a file; "
                            "where the path names none, --to does")
    return path


class _Part:
    """The part of a file that is there already, and the way to the rest of it."""

    def __init__(self, url: str, path: Path, size: int | None) -> None:
        self.url, self.expected_size = url, size
        self.path, self.note = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.source.json")
        self.furthest, self.announced = self.have, True
        try:
            self.source = json.loads(self.note.read_text())
        except (FileNotFoundError, ValueError):                 # nothing is known of the part: it is begun anew
            self.source = {}
        if self.have and self.source.get("url", url) != url:
            raise DownloadError(f"{self.path}: holds the beginning of {self.source['url']}; go on with that URL, "
                                "delete the part, or choose another place with --to")

    @property
    def have(self) -> int:
        """Bytes that are there."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def whole(self) -> bool:
        return self.path.exists() and self.have == self.source.get("size")

    def fetch(self, tries: int, pause: float) -> None:
        """Request what is missing until the part is whole."""
        with tqdm(desc=self.path.stem, unit="B", unit_scale=True) as bar:
            def wait_and_see(state) -> None:
                bar.set_postfix_str(f"{state.outcome.exception()}; asking again")

            again = Retrying(retry=retry_if_exception_type((httpx.TransportError, _Interrupted)), reraise=True,
                             stop=stop_after_attempt(tries), wait=wait_exponential(multiplier=pause, max=60),
                             after=self._forgive, before_sleep=wait_and_see)
            try:
                if not self.whole:
                    again(self._request, bar)
            except (httpx.HTTPError, _Interrupted) as error:
                raise DownloadError(
                    f"{self.url}: {error or type(error).__name__}. The last {tries} requests brought nothing new; "
                    f"{self.have:,} bytes are kept in {self.path}. Check the URL and the network; the same command "
                    "goes on from there") from error

    def _forgive(self, state) -> None:
        """A try that got further than all before it is no failure: a long file may break off any number of times."""
        if self.have > self.furthest:
            self.furthest, state.attempt_number = self.have, 0

    def _request(self, bar: tqdm) -> None:
        """One request for what is missing; raises _Interrupted where another one may bring more."""
        have = self.have if self.source.get("version") else 0   # without its version, the rest may be of another file
        headers = {"Accept-Encoding": "identity"}               # ranges and sizes are those of the file itself
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": self.source["version"]}
        with httpx.stream("GET", self.url, headers=headers, follow_redirects=True, timeout=60) as response:
            _refuse_failure(response, self.url)
            start, size = _extent(response)
            if response.status_code == 200:                     # all of it: the first time, or as it is another version
                self._describe({"url": self.url, "version": _version(response), "size": size}, anew=True)
                self._append(response, bar)
            elif not (have and start == have and self._is_of_same_version(response, size)):
                self.path.unlink(missing_ok=True)
                raise _Interrupted("the file has changed on the server; it is fetched anew")
            else:
                self._describe(self.source | {"size": size or self.source["size"]})
                if response.status_code == 206:                 # else 416: nothing is missing, whatever was announced
                    self._append(response, bar)
        if self.source["size"] is None:                         # where the answer ended is all there is to go by
            self.announced = False
            self._describe(self.source | {"size": self.have})
        if not self.whole:
            raise _Interrupted(f"the server sent {self.have:,} of {self.source['size']:,} bytes")

    def _is_of_same_version(self, response: httpx.Response, size: int | None) -> bool:
        """If-Range has asked for this; not every server heeds it."""
        same_size = response.status_code == 416 or None in (size, self.source["size"]) or size == self.source["size"]
        return same_size and _version(response) in ("", self.source["version"])

    def _describe(self, source: dict, anew: bool = False) -> None:
        """Note what the part is the beginning of, before it gets any of it."""
        if self.expected_size and source["size"] not in (None, self.expected_size):
            raise DownloadError(f"{self.url}: the server has a file of {source['size']:,} bytes, expected "
                                f"{self.expected_size:,}; this is not the data set. Open the URL in a browser, or name "
                                "another one that has it")
        if anew:
            self.path.write_bytes(b"")                          # first: no note may meet another version's part
        write_text(self.note, json.dumps(source))
        self.source = source

    def _append(self, response: httpx.Response, bar: tqdm) -> None:
        have, size = self.have, self.source["size"]
        free = shutil.disk_usage(self.path.parent).free
        if size and size - have > free:
            raise DownloadError(f"{self.path}: {size - have:,} bytes are missing, but {self.path.parent} has room for "
                                f"{free:,}; make room or choose another place with --to")
        bar.reset(size)
        bar.n = bar.initial = have
        with open(self.path, "ab") as file:
            for block in response.iter_raw():
                file.write(block)
                bar.update(len(block))


def _refuse_failure(response: httpx.Response, url: str) -> None:
    status = f"the server answered {response.status_code} {response.reason_phrase}".rstrip()
    if response.status_code >= 500 or response.status_code in PASSING:
        raise _Interrupted(status)
    if response.status_code not in (200, 206, 416):
        raise DownloadError(f"{url}: {status}; what was fetched before is kept. Open the URL in a browser, or "
                            "name another one that has the file")


def _extent(response: httpx.Response) -> tuple[int | None, int | None]:
    """Where the bytes of an answer begin in the file (416: at its end), and the file's size; None: it does not say."""
    if response.status_code == 200:
        length = response.headers.get("Content-Length")
        return 0, None if length is None else int(length)
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(?:(\d+)|\*)", response.headers.get("Content-Range", ""))
    start, size = (number and int(number) for number in found.groups()) if found else (None, None)
    return size if response.status_code == 416 else start, size


def _version(response: httpx.Response) -> str:
    """What names this version of the file in If-Range: its ETag, unless that is a weak one, else its date."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _already_there(part: _Part, path: Path, sha256: str) -> str:
    size = path.stat().st_size
    known = part.source.get("size") if part.source.get("url") == part.url else None
    found, expected = (_sha256(path), sha256) if sha256 else (size, known)
    if found != expected:
        what = "sha256" if sha256 else "size"
        raise DownloadError(f"{path}: is there already, and not what {part.url} gives ({what} {found}, expected "
                            f"{expected or 'unknown'}); it was not touched. Move it away or choose another place "
                            "with --to")
    return f"{path}: was there already, {size:,} bytes, the {'sha256' if sha256 else 'size'} is right"


def _accept(part: _Part, path: Path, sha256: str) -> str:
    """Put a whole part in the file's place, if it is what was asked for."""
    found = _sha256(part.path) if sha256 else ""
    if found != sha256:
        aside = path.with_name(f"{path.name}.wrong")
        os.replace(part.path, aside)
        raise DownloadError(f"{part.url}: what arrived has sha256 {found}, expected {sha256}; it was set aside as "
                            f"{aside}. The same command fetches it anew; if the checksum was mistyped, rename the file")
    with open(part.path, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part.path, path)
    size = "its size was checked" if part.announced else "the server did not announce its size"
    return f"{path}: {part.source['size']:,} bytes, " + (
        "size and sha256 are right" if sha256 else f"no checksum is known for this URL (--sha256 names one), {size}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file, tqdm(desc=f"checking {path.name}", total=path.stat().st_size, unit="B",
                                        unit_scale=True, delay=1) as bar:
        while block := file.read(BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()
