"""Downloads, against a server of the test's own on the loopback; nothing here leaves the machine."""

import gzip
import hashlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minigan as mg
from minigan import files
from minigan.data import fetch, read, sets
from minigan.errors import ConfigError, DataError

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (300, 28, 28), np.uint8)


def idx(array: np.ndarray) -> bytes:
    shape = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return gzip.compress(bytes((0, 0, 8, array.ndim)) + shape + array.tobytes())


CONTENTS = {
    "train-images-idx3-ubyte.gz": idx(PIXELS),
    "train-labels-idx1-ubyte.gz": idx(np.arange(300, dtype=np.uint8) % 10),
}
IMAGES = CONTENTS["train-images-idx3-ubyte.gz"]


class Handler(BaseHTTPRequestHandler):
    """Serves the files, damaged as the first part of the address says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        how, _, name = self.path.strip("/").partition("/")
        content, code, headers = CONTENTS.get(name, b""), 200, {}
        declared: int | None = len(content)
        if how == "missing":
            code = 404
        elif how == "wrong":
            content = content[:-1] + bytes([content[-1] ^ 1])
        elif how == "longer":
            content += b"\0"
            declared += 1  # type: ignore[operator]
        elif how == "endless":
            content, declared = content * 2, None
        elif how == "short":
            content, declared = content[:-1], None
        elif how == "cut":
            content = content[:1000]
        elif how == "page":
            content = b"<html>Please log in</html>"
            declared = len(content)
        elif how in ("redirect", "file", "ftp", "loop"):
            place = {
                "redirect": f"/good/{name}",
                "file": "file:///etc/passwd",
                "ftp": "ftp://127.0.0.1:9/x",
                "loop": self.path,
            }
            code, content, headers = 302, b"", {"Location": place[how]}
            declared = 0
        elif how == "hanging":
            time.sleep(1.0)
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        if declared is not None:
            self.send_header("Content-Length", str(declared))
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            if how == "dripping":
                for i in range(40):
                    self.wfile.write(content[i : i + 1])
                    time.sleep(0.02)
            else:
                self.wfile.write(content)
        except OSError:
            pass  # the client has gone, as it should
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server of two small files, which "mnist" then consists of; `.url` is its address."""
    known = {name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in CONTENTS.items()}
    monkeypatch.setitem(sets.SETS, "mnist", sets.SETS["mnist"]._replace(files=known))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    running: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.asked, running.url = [], f"http://127.0.0.1:{running.server_port}"
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_files_are_downloaded_checked_and_kept(server: Any, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    folder = tmp_path / "new" / "mnist"
    given = fetch("mnist", folder, [f"{server.url}/good/"], lambda *step: seen.append(step))
    assert given == str(folder) and left_in(folder) == set(CONTENTS)
    assert all((folder / name).read_bytes() == content for name, content in CONTENTS.items())
    for name, content in CONTENTS.items():
        steps = [done for file, done, size in seen if file == name and size == len(content)]
        assert steps[0] == 0 and steps[-1] == len(content) and steps == sorted(steps)
    assert (read("mnist", data_dir=folder).samples[..., 0] == PIXELS).all()
    asked = len(server.asked)
    seen.clear()
    assert fetch("mnist", folder, [f"{server.url}/missing"], lambda *step: seen.append(step)) == given
    assert len(server.asked) == asked
    assert seen == [(name, len(content), len(content)) for name, content in CONTENTS.items()]


def test_a_damaged_file_is_replaced(server: Any, tmp_path: Path) -> None:
    for damaged in (IMAGES[:-1], IMAGES[:-1] + b"\0", b""):
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(damaged)
        fetch("mnist", tmp_path, [f"{server.url}/good"])
        assert (tmp_path / "train-images-idx3-ubyte.gz").read_bytes() == IMAGES
    assert left_in(tmp_path) == set(CONTENTS)


BAD = {
    "missing": "HTTP Error 404: Not Found",
    "wrong": "has the SHA-256 [0-9a-f]{64}, expected [0-9a-f]{64}",
    "longer": f"offers {len(IMAGES) + 1} bytes, expected {len(IMAGES)}",
    "endless": f"sends more than {len(IMAGES)} bytes",
    "short": f"ends after {len(IMAGES) - 1} of {len(IMAGES)} bytes",
    "cut": f"ends after 1000 of {len(IMAGES)} bytes",
    "page": "offers 26 bytes",
    "file": "not allowed",
    "ftp": "ftp",
    "loop": "redirect",
    "hanging": "timed out",
    "dripping": "fewer than 10000 bytes a second",
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("how", BAD)
def test_a_bad_mirror_is_passed_over_and_named(
    how: str, server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "dripping":
        monkeypatch.setitem(fetch.__globals__, "SLOWEST", 10_000)
    timeout = {"hanging": 0.2, "dripping": 0.3}.get(how, 10)
    with pytest.raises(DataError, match=BAD[how]) as caught:
        fetch("mnist", tmp_path, [f"{server.url}/{how}"], timeout=timeout)
    message = str(caught.value)
    assert f"{server.url}/{how}/train-images-idx3-ubyte.gz: " in message and "\n" not in message
    assert message.startswith(f"{tmp_path}/train-images-idx3-ubyte.gz: cannot be downloaded")
    assert left_in(tmp_path) == set()
    fetch("mnist", tmp_path, [f"{server.url}/{how}", f"{server.url}/good"], timeout=timeout)
    assert left_in(tmp_path) == set(CONTENTS)


def test_redirects_are_followed(server: Any, tmp_path: Path) -> None:
    fetch("mnist", tmp_path, [f"{server.url}/redirect"])
    assert left_in(tmp_path) == set(CONTENTS)


def test_every_mirror_says_why(server: Any, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "train-images-idx3-ubyte.gz").write_bytes(IMAGES)
    mirrors = [f"{server.url}/missing", f"{server.url}/wrong", "http://127.0.0.1:1", "http://[", "http://a b"]
    mirrors += [(tmp_path / "here").as_uri(), "ftp://127.0.0.1:1", "127.0.0.1", ""]
    with pytest.raises(DataError) as caught:
        fetch("mnist", tmp_path / "there", mirrors, timeout=5)
    reasons = str(caught.value).split("; ")
    wanted = ("404", "SHA-256", "refused", "", "", "no http", "no http", "no http", "no http")
    assert len(reasons) == len(mirrors)
    assert all(want in reason for want, reason in zip(wanted, reasons, strict=True)), reasons
    with pytest.raises(DataError, match="no mirrors"):
        fetch("mnist", tmp_path / "there", [])


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("at", [0, len(IMAGES)])
def test_an_interruption_leaves_nothing_behind(
    at: int, error: type[BaseException], server: Any, tmp_path: Path
) -> None:
    def stop(_: str, done: int, size: int) -> None:
        if done == at:
            raise error

    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"older")
    with pytest.raises(error):
        fetch("mnist", tmp_path, [f"{server.url}/good"], stop)
    assert left_in(tmp_path) == {"train-images-idx3-ubyte.gz"}
    assert (tmp_path / "train-images-idx3-ubyte.gz").read_bytes() == b"older"


def test_a_full_disk(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(DataError, match="No space left on device"):
        fetch("mnist", tmp_path, [f"{server.url}/good"])
    assert left_in(tmp_path) == set()


def test_a_folder_that_cannot_be_made(server: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="file/inner: Not a directory"):
        fetch("mnist", tmp_path / "file" / "inner", [f"{server.url}/good"])
    assert server.asked == []


def test_the_folder_by_default_is_where_read_looks(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MINIGAN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert fetch("mnist", mirrors=[f"{server.url}/good"]) == str(
        tmp_path / "cache" / "minigan" / "data" / "mnist"
    )
    assert (read("mnist").samples[..., 0] == PIXELS).all()
    monkeypatch.setenv("MINIGAN_DATA", str(tmp_path / "own"))
    assert (
        fetch("mnist", mirrors=[f"{server.url}/good"])
        == str(tmp_path / "own" / "mnist")
        == mg.data.find("mnist")
    )


@pytest.mark.parametrize("name", ["digits", "ring", "mnsit", ""])
def test_names_without_files(name: str) -> None:
    with pytest.raises(ConfigError, match="nothing to download; data sets to download: mnist, fashion"):
        fetch(name)


def test_the_mirrors_are_addresses() -> None:
    mirrors = [mirror for known in sets.SETS.values() for mirror in known.mirrors]
    assert len(mirrors) == 4 and all(mirror.startswith(("http://", "https://")) for mirror in mirrors)
