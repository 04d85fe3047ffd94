"""A download ends with the very bytes of the file, whatever the server does and whenever it is killed."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from filelock import FileLock

from lab5 import download as module
from lab5.cli import main
from lab5.download import DownloadError, download

FILE = random.Random(1).randbytes(500_000)
OTHER = random.Random(2).randbytes(500_000)
NEVER = 1 << 40


class Server(ThreadingHTTPServer):
    """Serves one file, with the faults that a test asks for; records what it was asked."""

    content, tag = FILE, '"one"'
    breaks_after = NEVER                        # bytes of an answer's body after which the line breaks
    heeds_ranges = heeds_if_range = announces_size = True
    announced = 0                               # bytes that it says it has beyond those it has
    block, pause = 1 << 16, 0.0                 # seconds between blocks
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses, self.asked = [], []      # answers to give instead of the file; Range headers, "" where none
        self.url = f"http://127.0.0.1:{self.server_port}/file.tar"

    def next_answer(self) -> None:
        """What a test may override to change the server between requests."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        server.asked.append(self.headers.get("Range", ""))
        server.next_answer()
        if server.statuses:
            self.send_response(server.statuses.pop(0))
            return self.end_headers()
        start = int(re.sub("[^0-9]", "", server.asked[-1]) or 0) if server.heeds_ranges else 0
        if server.heeds_if_range and self.headers.get("If-Range", server.tag) != server.tag:
            start = 0
        size = len(server.content)
        if start >= size > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size + server.announced}")
        if server.tag:
            self.send_header("ETag", server.tag)
        if server.announces_size:
            self.send_header("Content-Length", str(size + server.announced - start))
        self.end_headers()
        body = server.content[start:][:server.breaks_after]
        for i in range(0, len(body), server.block):
            self.wfile.write(body[i:i + server.block])
            time.sleep(server.pause)

    def log_message(self, *_) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:                         # the client was killed
            pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


def fetch(server, path, **options) -> str:
    return download(server.url, path, **{"tries": 3, "pause": 0.001, **options})


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def begin(server, path, have: int = 200_000) -> None:
    """Leave a part of `have` bytes, as a download does that gives up."""
    server.breaks_after = have
    server.next_answer = lambda: server.statuses.append(503) if len(server.asked) > 1 else None
    with pytest.raises(DownloadError, match=f"{have:,} bytes are kept"):
        fetch(server, path)
    server.breaks_after, server.statuses, server.asked = NEVER, [], []
    del server.next_answer


def test_a_file_arrives_whole_and_only_once(server, tmp_path):
    path = tmp_path / "folder" / "file.tar"
    assert "no checksum is known" in fetch(server, path)
    assert path.read_bytes() == FILE and not path.with_name("file.tar.part").exists()
    assert "was there already" in fetch(server, path)
    assert "sha256 is right" in fetch(server, path, sha256=sha256(FILE).upper())
    assert server.asked == [""]


def test_a_folder_gets_the_file_under_its_own_name(server, tmp_path):
    fetch(server, tmp_path, sha256=sha256(FILE))
    assert (tmp_path / "file.tar").read_bytes() == FILE


def test_an_empty_file_is_a_file(server, tmp_path):
    server.content = b""
    fetch(server, tmp_path)
    assert (tmp_path / "file.tar").read_bytes() == b""


def test_a_line_that_breaks_more_often_than_there_are_tries_loses_nothing(server, tmp_path):
    server.breaks_after = 40_000
    fetch(server, tmp_path, tries=2, sha256=sha256(FILE))
    assert (tmp_path / "file.tar").read_bytes() == FILE
    assert server.asked == ["", *(f"bytes={start}-" for start in range(40_000, 500_000, 40_000))]


def test_tries_without_progress_are_counted(server, tmp_path):
    begin(server, tmp_path)
    server.statuses = [503] * 9
    with pytest.raises(DownloadError, match=r"503 Service Unavailable.*last 3 requests.*200,000 bytes are kept"):
        fetch(server, tmp_path)
    assert server.asked == ["bytes=200000-"] * 3
    server.statuses = [503, 500]
    fetch(server, tmp_path)
    assert (tmp_path / "file.tar").read_bytes() == FILE


def test_a_server_that_ignores_ranges_sends_all_of_it_again(server, tmp_path):
    begin(server, tmp_path)
    server.heeds_ranges = False
    fetch(server, tmp_path)
    assert (tmp_path / "file.tar").read_bytes() == FILE


@pytest.mark.parametrize("heeds_if_range", [True, False])
def test_a_file_that_changed_meanwhile_is_fetched_anew(server, tmp_path, heeds_if_range):
    begin(server, tmp_path)
    server.content, server.tag, server.heeds_if_range = OTHER, '"two"', heeds_if_range
    fetch(server, tmp_path)
    assert (tmp_path / "file.tar").read_bytes() == OTHER
    assert server.asked[0] == "bytes=200000-"


@pytest.mark.parametrize("tag", ["", 'W/"weak"'])
def test_where_nothing_names_the_version_the_rest_is_not_glued_to_the_part(server, tmp_path, tag):
    server.tag = tag
    begin(server, tmp_path)
    server.content = OTHER
    fetch(server, tmp_path)
    assert server.asked == [""] and (tmp_path / "file.tar").read_bytes() == OTHER


def test_a_part_without_a_readable_note_is_fetched_anew(server, tmp_path):
    begin(server, tmp_path)
    (tmp_path / "file.tar.source.json").write_text('{"url": "ht')
    fetch(server, tmp_path)
    assert server.asked == [""] and (tmp_path / "file.tar").read_bytes() == FILE


def test_a_size_that_is_not_announced(server, tmp_path):
    server.announces_size = False
    assert "did not announce its size" in fetch(server, tmp_path)
    assert (tmp_path / "file.tar").read_bytes() == FILE
    assert "was there already" in fetch(server, tmp_path)


def test_a_size_that_is_announced_too_large(server, tmp_path):
    """The server's own word, that nothing follows the last byte, ends it."""
    server.announced = 1000
    fetch(server, tmp_path)
    assert server.asked == ["", "bytes=500000-"] and (tmp_path / "file.tar").read_bytes() == FILE


def test_a_size_that_is_announced_too_small_is_caught_by_the_checksum(server, tmp_path):
    server.announced = -1000
    with pytest.raises(DownloadError) as error:
        fetch(server, tmp_path, sha256=sha256(FILE))
    assert sha256(FILE) in str(error.value) and sha256(FILE[:-1000]) in str(error.value)
    assert (tmp_path / "file.tar.wrong").read_bytes() == FILE[:-1000] and not (tmp_path / "file.tar").exists()
    server.announced = 0
    fetch(server, tmp_path, sha256=sha256(FILE))
    assert (tmp_path / "file.tar").read_bytes() == FILE


def test_a_whole_part_is_accepted_without_a_request(server, tmp_path):
    """Where a kill came between the last byte and the name."""
    fetch(server, tmp_path)
    os.replace(tmp_path / "file.tar", tmp_path / "file.tar.part")
    fetch(server, tmp_path)
    assert server.asked == [""] and (tmp_path / "file.tar").read_bytes() == FILE


def test_a_part_that_is_longer_than_the_file_is_fetched_anew(server, tmp_path):
    begin(server, tmp_path)
    with open(tmp_path / "file.tar.part", "ab") as file:
        file.write(FILE)
    fetch(server, tmp_path)
    assert (tmp_path / "file.tar").read_bytes() == FILE


@pytest.mark.parametrize("status, requests", [(404, 1), (403, 1), (500, 3), (429, 3)])
def test_a_refusal_names_url_and_status_and_loses_nothing(server, tmp_path, capsys, monkeypatch, status, requests):
    begin(server, tmp_path)
    server.statuses = [status] * 9
    monkeypatch.setattr(module.download, "__defaults__", (server.url, None, "", 3, 0.001))
    assert main(["download", server.url, "--to", str(tmp_path)]) == 1
    printed = capsys.readouterr().err
    assert server.url in printed and str(status) in printed and "Traceback" not in printed
    assert len(server.asked) == requests
    assert (tmp_path / "file.tar.part").read_bytes() == FILE[:200_000]


def test_a_host_that_does_not_answer_is_named(server, tmp_path):
    server.server_close()
    with pytest.raises(DownloadError, match=rf"{server.url}.*refused.*0 bytes are kept.*same command"):
        fetch(server, tmp_path)


@pytest.mark.parametrize("url", ["file.tar", "ftp://127.0.0.1/a", "http://", "http://127.0.0.1", "http://a:b:c/d"])
def test_what_is_no_address_of_a_file_is_refused(url, tmp_path):
    with pytest.raises(DownloadError, match="URL|expected http"):
        download(url, tmp_path)


def test_what_is_no_checksum_is_refused(server, tmp_path):
    with pytest.raises(DownloadError, match="64 hex digits"):
        fetch(server, tmp_path, sha256="abc")


def test_a_page_in_the_place_of_the_data_set_costs_nothing(server, tmp_path, monkeypatch):
    """Its size is known beforehand: a portal's page is not taken for it, and the part stays."""
    monkeypatch.setitem(module.KNOWN, server.url, (len(FILE), sha256(FILE)))
    begin(server, tmp_path)
    server.content, server.tag = b"<html>please log in</html>", ""
    with pytest.raises(DownloadError, match=r"26 bytes, expected 500,000"):
        fetch(server, tmp_path)
    assert (tmp_path / "file.tar.part").read_bytes() == FILE[:200_000]
    server.content, server.tag = FILE, '"one"'
    assert "size and sha256 are right" in fetch(server, tmp_path)
    assert server.asked[-1] == "bytes=200000-"


def test_another_file_in_its_place_is_not_overwritten(server, tmp_path):
    path = tmp_path / "file.tar"
    path.write_bytes(b"mine")
    for checksum in ("", sha256(FILE)):
        with pytest.raises(DownloadError, match="is there already.*expected.*not touched"):
            fetch(server, path, sha256=checksum)
    assert path.read_bytes() == b"mine" and server.asked == []


def test_a_part_of_another_address_is_not_mixed_with_this_one(server, tmp_path):
    begin(server, tmp_path)
    with pytest.raises(DownloadError, match=f"holds the beginning of {server.url}"):
        download(server.url.replace("file", "mirror/file"), tmp_path)
    assert (tmp_path / "file.tar.part").read_bytes() == FILE[:200_000]


def test_a_disk_too_small_is_noticed_before_it_is_full(server, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 1000))
    with pytest.raises(DownloadError, match=r"500,000 bytes are missing.*room for 1,000"):
        fetch(server, tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's device that is always full")
def test_a_disk_that_fills_up_ends_it_with_the_way_out(server, tmp_path, monkeypatch):
    begin(server, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(module, "open", lambda path, mode: open("/dev/full", mode), raising=False)
        with pytest.raises(DownloadError, match=r"No space left.*is kept.*same command goes on"):
            fetch(server, tmp_path)
    fetch(server, tmp_path)
    assert server.asked[-1] == "bytes=200000-" and (tmp_path / "file.tar").read_bytes() == FILE


def test_of_two_downloads_to_one_place_the_second_is_refused(server, tmp_path):
    with FileLock(tmp_path / ".file.tar.lock"), pytest.raises(DownloadError, match="another process"):
        fetch(server, tmp_path)


def hear_ctrl_c() -> None:
    """Undo what a shell does to its jobs in the background, where these tests may run: it has them ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_command_asks_only_for_the_rest_afterwards(server, tmp_path, stop):
    command = [sys.executable, "-m", "lab5.cli", "download", server.url, "--to", str(tmp_path),
               "--sha256", sha256(FILE)]
    server.block, server.pause = 10_000, 0.05
    part = tmp_path / "file.tar.part"
    killed = []
    for enough in (50_000, 200_000):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   preexec_fn=hear_ctrl_c)
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size > enough):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(stop)
        _, printed = process.communicate(timeout=30)
        assert process.returncode == (130 if stop == signal.SIGINT else -stop) and "Traceback" not in printed
        killed.append(part.stat().st_size)
        assert part.read_bytes() == FILE[:killed[-1]] and not (tmp_path / "file.tar").exists()
        assert json.loads((tmp_path / "file.tar.source.json").read_text())["size"] == len(FILE)
    server.pause = 0
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0 and "size and sha256 are right" in finished.stdout
    assert (tmp_path / "file.tar").read_bytes() == FILE
    assert server.asked == ["", *(f"bytes={have}-" for have in killed)]


def test_the_command_asks_berkeley_for_bair_unless_told_otherwise(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(module, "download", lambda *arguments: asked.append(arguments) or "done")
    assert main(["download"]) == 0 and capsys.readouterr().out == "done\n"
    assert asked == [(module.BAIR_URL, None, "")] and module.BAIR_URL in module.KNOWN
