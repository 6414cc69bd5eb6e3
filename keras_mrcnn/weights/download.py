"""Files from the internet: fetched once, resumed, checked before they get their name; or put by hand."""

import contextlib
import fcntl
import hashlib
import http.client
import os
import pathlib
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass

import click

CHUNK = 1 << 18  # bytes
TIMEOUT = 30  # seconds without an answer
ALGORITHMS = {"sha256": "SHA-256", "md5": "MD5"}


@dataclass(frozen=True)
class _File:
    """What is wanted, and where it belongs."""

    url: str
    path: pathlib.Path
    checksum: str
    size: int

    def by_hand(self):
        """What to do without this machine's help."""
        return (
            f"Or get {self.url}\n  by another way ({self.describe()}) and put it at\n  {self.path}\n"
            "where it is checked and used."
        )

    def describe(self):
        """File name, size and checksum, in words."""
        size = f"about {self.size / 1e6:.0f} MB" if self.size else "size not published"
        algorithm, _, digits = self.checksum.partition(":")
        check = f"{ALGORITHMS[algorithm]} begins with {digits}" if digits else "no checksum published"
        return f"file name {self.path.name}, {size}, {check}"

    def check(self, path, advice):
        """Raise a ValueError when the content of `path` has another checksum than the published one."""
        algorithm, _, digits = self.checksum.partition(":")
        if not digits:
            return
        with open(path, "rb") as content:
            digest = hashlib.file_digest(content, lambda: hashlib.new(algorithm, usedforsecurity=False))
        if not digest.hexdigest().startswith(digits):
            raise ValueError(
                f"{path} is not the published file: its {ALGORITHMS[algorithm]} begins with {digits}. "
                f"Received: {digest.hexdigest()} ({path.stat().st_size} bytes). {advice}"
            )


def cache_folder(cache=None):
    """Where downloads are kept: `cache`, else `$KERAS_MRCNN_CACHE`, else `~/.cache/keras_mrcnn`."""
    chosen = cache or os.environ.get("KERAS_MRCNN_CACHE") or "~/.cache/keras_mrcnn"
    return pathlib.Path(chosen).expanduser().absolute()


def fetch(url, file_name, checksum="", size=0, cache=None, progress=True):
    """The local path of a file of the internet, downloaded unless it is in the cache.

    A file in the cache is used, whoever put it there, when its checksum is right. A download goes to
    `file_name` + ".part" first; one that broke off is resumed where the server can and a checksum proves
    the whole. Several processes that want the same file wait for the first.

    Args:
        url: http or https address.
        file_name: str, path below the cache folder.
        checksum: "sha256:" or "md5:" and the published digits, all of them or the first; "" for none.
        size: int, bytes, about; for messages, and for the progress bar where the server names none. 0 when it
            is not known.
        cache: folder, or None for `cache_folder()`.
        progress: bool, show a bar on the standard error.

    Returns:
        A `pathlib.Path`.

    Raises:
        ConnectionError: no network, a refusal, an answer that broke off or is a web page; with what to put
            where by hand.
        ValueError: the content has another checksum; or `checksum` or `file_name` is malformed.
    """
    algorithm, _, digits = checksum.partition(":")
    if checksum and not (algorithm in ALGORITHMS and digits):
        raise ValueError(
            f'`checksum` is "sha256:" or "md5:" and hexadecimal digits, or empty. Received: {checksum!r}'
        )
    relative = pathlib.PurePosixPath(file_name)
    if relative.is_absolute() or ".." in relative.parts or not relative.name:
        raise ValueError(f"`file_name` is a path below the cache folder. Received: {file_name!r}")
    wanted = _File(url, cache_folder(cache) / relative, checksum, size)
    if wanted.path.exists():
        return _in_the_cache(wanted)
    wanted.path.parent.mkdir(parents=True, exist_ok=True)
    with _own_part(wanted.path) as part:
        if part is None:
            return _in_the_cache(wanted)
        _download(wanted, part, progress)
        part.flush()
        name = pathlib.Path(part.name)
        try:
            wanted.check(name, f"The download was removed; run again.\n{wanted.by_hand()}")
        except ValueError:
            name.unlink()
            raise
        os.replace(name, wanted.path)
    return wanted.path


def _in_the_cache(wanted):
    wanted.check(wanted.path, f"Delete it and run again.\n{wanted.by_hand()}")
    return wanted.path


@contextlib.contextmanager
def _own_part(path):
    """The open, locked `.part` of `path`, at its end; None when another process has finished `path`."""
    name = path.with_name(path.name + ".part")
    while True:
        part = open(name, "ab")
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            click.echo(f"Waiting for another process that downloads {path.name}.", err=True)
            fcntl.flock(part, fcntl.LOCK_EX)
        # While this one waited, the other may have renamed or removed the file that is locked now.
        current = name.exists() and os.path.samestat(os.fstat(part.fileno()), name.stat())
        if path.exists() or current:
            break
        part.close()
    with part:
        if path.exists():
            if current:
                name.unlink()
            yield None
        else:
            yield part


def _download(wanted, part, progress):
    """Fill `part` with the content of the URL, from where it ends."""
    if not wanted.checksum:
        part.truncate(0)
    start = os.fstat(part.fileno()).st_size
    response = _open(wanted, start)
    if response is None:  # the range does not exist: what is there does not belong to this file
        part.truncate(0)
        response = _open(wanted, 0)
    with response:
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise ConnectionError(
                f"{wanted.url} was asked for the bytes from {start} on. Received: Content-Range "
                f"{response.headers.get('Content-Range')!r}. Delete {part.name} and run again.\n"
                f"{wanted.by_hand()}"
            )
        if not resumed:
            part.truncate(0)
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        with _bar(wanted, total, progress) as advance:
            advance(start)
            done = _copy(wanted, response, part, start, advance)
    if total is not None and done != total:
        raise ConnectionError(_broke_off(wanted, done, total, "the connection was closed"))


def _open(wanted, start):
    """The server's answer; None when it has nothing from byte `start` on."""
    headers = {"User-Agent": "keras_mrcnn", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        return urllib.request.urlopen(urllib.request.Request(wanted.url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:
            return None
        meaning = {
            401: "it wants a login",
            403: "it refuses access (perhaps a proxy between, or a file that is not public)",
            404: "there is no such file (any more)",
        }.get(error.code, "no file came")
        raise ConnectionError(
            f"{wanted.url} answered {error.code} {error.reason}: {meaning}.\n{wanted.by_hand()}"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise ConnectionError(
            f"{wanted.path.name} is not in the cache and cannot be downloaded ({reason}). Run again with a "
            f"network.\n{wanted.by_hand()}"
        ) from error


def _copy(wanted, response, part, done, advance):
    """Append the answer to `part`; bytes that it has then."""
    while True:
        try:
            chunk = response.read(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(_broke_off(wanted, done, None, error)) from error
        if not chunk:
            return done
        page = chunk[:512].lstrip().lower().startswith((b"<!doctype html", b"<html"))
        if done == 0 and (page or response.headers.get_content_type() == "text/html"):
            raise ConnectionError(
                f"{wanted.url} answered with a web page instead of the file: a login, a proxy or an error "
                f"page. It begins: {chunk[:80]!r}\n{wanted.by_hand()}"
            )
        part.write(chunk)
        done += len(chunk)
        advance(len(chunk))


def _broke_off(wanted, done, total, reason):
    of = f" of {total}" if total else ""
    resume = "goes on from there" if wanted.checksum else "starts over"
    return (
        f"The download of {wanted.path.name} broke off after {done}{of} bytes ({reason}). Running again "
        f"{resume}.\n{wanted.by_hand()}"
    )


@contextlib.contextmanager
def _bar(wanted, total, progress):
    length = total or wanted.size
    if not progress or not length:
        yield lambda count: None
    else:
        with click.progressbar(length=length, label=wanted.path.name, file=sys.stderr) as bar:
            yield bar.update
