"""Downloads from a server in this process that breaks off, ignores ranges or sends something else."""

import contextlib
import hashlib
import http.server
import os
import pathlib
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from keras_mrcnn.weights import download

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
CONTENT = np.random.default_rng(0).bytes(1_000_000)
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()[:8]
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()[:6]


class Server(http.server.ThreadingHTTPServer):
    """Sends CONTENT; `requests` are the Range headers that came (None without)."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = []
        self.content = CONTENT
        self.ranges = True
        self.break_after = None  # bytes of the next answer
        self.status = None
        self.content_type = "application/octet-stream"
        self.announce = True  # send Content-Length
        self.shift = 0  # of the range that is sent, against the one asked for
        self.wait = 0.0  # seconds before the body

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/models/weights.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    """One answer, as the server's attributes say."""

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.requests.append(asked)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and server.ranges else 0
        if server.status or start >= len(server.content):
            return self.send_error(server.status or 416)
        start += server.shift
        body = server.content[start:]
        self.send_response(206 if asked and server.ranges else 200)
        if asked and server.ranges:
            self.send_header(
                "Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}"
            )
        self.send_header("Content-Type", server.content_type)
        if server.announce:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        time.sleep(server.wait)
        broken, server.break_after = server.break_after, None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(body if broken is None else body[:broken])

    def log_message(self, *arguments):
        """Nothing on the standard error."""


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def get(server, tmp_path):
    """`fetch` of the server's file into the empty folder `tmp_path`."""

    def fetch(checksum=SHA256, size=1_000_000, **options):
        options = {"cache": tmp_path, "progress": False, **options}
        return download.fetch(server.url, "source/weights.pth", checksum, size, **options)

    return fetch


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("checksum", [SHA256, MD5, ""])
def test_downloads_once(server, get, tmp_path, checksum):
    path = get(checksum)
    assert path == tmp_path / "source" / "weights.pth"
    assert path.read_bytes() == CONTENT
    assert get(checksum) == path
    assert server.requests == [None]
    assert files(tmp_path) == ["source/weights.pth"]


def test_progress_names_the_file_on_the_standard_error(get, capsys):
    get(progress=True)
    shown = capsys.readouterr()
    assert "weights.pth" in shown.err
    assert shown.out == ""


def test_without_announced_length(server, get):
    server.announce = False
    assert get(size=0, progress=True).read_bytes() == CONTENT


def test_a_file_smaller_than_any_buffer(server, get):
    server.content = b"small"
    assert get("sha256:" + hashlib.sha256(b"small").hexdigest(), 5).read_bytes() == b"small"


def test_who_comes_right_after_the_end_leaves_no_part(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(CONTENT)
    with download._own_part(path) as part:
        assert part is None
    assert files(tmp_path) == ["weights.pth"]


def break_off(server, get, after):
    server.break_after = after
    with pytest.raises(ConnectionError, match=f"broke off after {after} of 1000000 bytes"):
        get()


def test_goes_on_where_it_broke_off(server, get, tmp_path):
    break_off(server, get, 300_000)
    assert (tmp_path / "source" / "weights.pth.part").read_bytes() == CONTENT[:300_000]
    assert not (tmp_path / "source" / "weights.pth").exists()
    assert get().read_bytes() == CONTENT
    assert server.requests == [None, "bytes=300000-"]
    assert files(tmp_path) == ["source/weights.pth"]


def test_breaks_off_twice(server, get):
    break_off(server, get, 300_000)
    server.break_after = 100_000
    with pytest.raises(ConnectionError, match="broke off after 400000 of 1000000 bytes"):
        get()
    assert get().read_bytes() == CONTENT
    assert server.requests == [None, "bytes=300000-", "bytes=400000-"]


def test_starts_over_where_the_server_knows_no_ranges(server, get):
    break_off(server, get, 300_000)
    server.ranges = False
    assert get().read_bytes() == CONTENT
    assert server.requests == [None, "bytes=300000-"]


def test_starts_over_without_a_checksum(server, get):
    server.break_after = 300_000
    with pytest.raises(ConnectionError, match="Running again starts over"):
        get("")
    assert get("").read_bytes() == CONTENT
    assert server.requests == [None, None]


def test_starts_over_when_the_part_is_longer_than_the_file(server, get, tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "weights.pth.part").write_bytes(CONTENT + b"more")
    assert get().read_bytes() == CONTENT
    assert server.requests == ["bytes=1000004-", None]


def test_another_range_than_asked_for_is_refused(server, get, tmp_path):
    break_off(server, get, 300_000)
    server.shift = 1
    with pytest.raises(ConnectionError, match="Content-Range 'bytes 300001-"):
        get()
    assert (tmp_path / "source" / "weights.pth.part").stat().st_size == 300_000


@pytest.mark.parametrize("checksum", [SHA256, MD5])
def test_wrong_bytes_never_get_the_name(server, get, tmp_path, checksum):
    server.content = CONTENT[:-1] + b"?"
    digest = hashlib.new(checksum.split(":")[0], server.content).hexdigest()
    with pytest.raises(ValueError) as error:
        get(checksum)
    assert f"begins with {checksum.split(':')[1]}. Received: {digest}" in str(error.value)
    assert files(tmp_path) == []
    server.content = CONTENT
    assert get(checksum).read_bytes() == CONTENT


def test_a_part_of_another_file_is_noticed_and_removed(get, tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "weights.pth.part").write_bytes(bytes(300_000))
    with pytest.raises(ValueError, match="not the published file"):
        get()
    assert files(tmp_path) == []
    assert get().read_bytes() == CONTENT


def test_a_file_put_there_by_hand_is_used(server, get, tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "weights.pth").write_bytes(CONTENT)
    assert get().read_bytes() == CONTENT
    assert server.requests == []


def test_a_wrong_file_put_there_by_hand_is_left_and_named(server, get, tmp_path):
    path = tmp_path / "source" / "weights.pth"
    path.parent.mkdir()
    path.write_bytes(b"<html>")
    with pytest.raises(ValueError, match="Delete it and run again") as error:
        get()
    assert str(path) in str(error.value)
    assert "(6 bytes)" in str(error.value)
    assert path.read_bytes() == b"<html>"
    assert server.requests == []


def test_offline_says_what_to_put_where(server, get, tmp_path):
    url = server.url
    server.shutdown()
    server.socket.close()
    with pytest.raises(ConnectionError) as error:
        get(size=177_797_824)
    for part in (
        "cannot be downloaded",
        url,
        "file name weights.pth",
        "about 178 MB",
        f"SHA-256 begins with {SHA256[7:]}",
        f"put it at\n  {tmp_path}/source/weights.pth\n",
    ):
        assert part in str(error.value)


def test_what_is_not_published_is_said(server, get):
    server.status = 500
    with pytest.raises(ConnectionError, match="size not published, no checksum published"):
        get("", 0)


@pytest.mark.parametrize(
    "status, words",
    [(404, "there is no such file"), (403, "refuses access"), (401, "wants a login"), (500, "no file came")],
)
def test_refusals(server, get, tmp_path, status, words):
    server.status = status
    with pytest.raises(ConnectionError, match=f"answered {status} .*{words}") as error:
        get()
    assert str(tmp_path / "source" / "weights.pth") in str(error.value)
    assert not (tmp_path / "source" / "weights.pth").exists()


@pytest.mark.parametrize(
    "content, content_type",
    [
        (b"\n<!DOCTYPE html><title>Log in</title>", "application/octet-stream"),
        (b"<HTML>", "application/octet-stream"),
        (b"please log in", "text/html; charset=utf-8"),
    ],
)
@pytest.mark.parametrize("checksum", [SHA256, ""])
def test_a_web_page_is_not_the_file(server, get, tmp_path, checksum, content, content_type):
    server.content, server.content_type = content, content_type
    with pytest.raises(ConnectionError, match="a web page instead of the file"):
        get(checksum)
    server.content, server.content_type = CONTENT, "application/octet-stream"
    assert get(checksum).read_bytes() == CONTENT


def test_two_processes_download_once(server, tmp_path):
    server.wait = 0.5
    script = (
        "import sys; from keras_mrcnn.weights import download; "
        "print(download.fetch(*sys.argv[1:4], cache=sys.argv[4], progress=False))"
    )
    command = [sys.executable, "-c", script, server.url, "weights.pth", SHA256, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in running:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert out.strip() == str(tmp_path / "weights.pth")
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT
    assert files(tmp_path) == ["weights.pth"]
    assert server.requests == [None]


def test_who_waited_takes_over_when_the_first_fails(server, get, tmp_path):
    """The first gets wrong bytes and removes its part while the second waits for the lock on it."""
    server.content, server.wait = b"wrong", 0.3
    failed = []

    def first():
        try:
            get()
        except ValueError as error:
            failed.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    while not server.requests:
        time.sleep(0.01)
    second = threading.Thread(target=get)
    second.start()
    time.sleep(0.1)  # it waits now; what the first was sent has been chosen before
    server.content = CONTENT
    thread.join()
    second.join()
    assert len(failed) == 1
    assert (tmp_path / "source" / "weights.pth").read_bytes() == CONTENT
    assert files(tmp_path) == ["source/weights.pth"]


@pytest.mark.parametrize("checksum", ["bf2d0c1e", "sha1:abc", "sha256:"])
def test_malformed_checksum(get, checksum):
    with pytest.raises(ValueError, match=f"Received: '{checksum}'"):
        get(checksum)


@pytest.mark.parametrize("name", ["", "/etc/weights.pth", "hf/../../weights.pth"])
def test_file_names_stay_in_the_cache(server, tmp_path, name):
    with pytest.raises(ValueError, match="below the cache folder"):
        download.fetch(server.url, name, cache=tmp_path)


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("KERAS_MRCNN_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert download.cache_folder() == tmp_path / ".cache" / "keras_mrcnn"
    monkeypatch.setenv("KERAS_MRCNN_CACHE", "~/elsewhere")
    assert download.cache_folder() == tmp_path / "elsewhere"
    assert download.cache_folder("/given") == pathlib.Path("/given")
