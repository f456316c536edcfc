"""Models from the hub: the real client against a server in its layout."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from time import monotonic

import pytest
import torch
from huggingface_hub import constants

from speechbrain_focalcodec import FocalCodec, hub
from speechbrain_focalcodec.errors import CheckpointError
from speechbrain_focalcodec.hub import RELEASES, Release

PARITY = Path(__file__).parent / "parity"
MODEL = PARITY / "offline_50hz"
OTHER = PARITY / "offline_25hz"
COMMIT, OLDER = "c" * 40, "a" * 40
NAME = "owner/model"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


class Hub:
    """Repositories by commit, as `resolve` URLs serve them.

    Small files come directly, weights by a redirection to a storage on
    another host.
    """

    def __init__(self):
        self.repositories = {NAME: {COMMIT: files_of(MODEL)}}
        self.branches = {"main": COMMIT}
        self.requests = []
        self.tokens = set()
        self.storage = ""
        self.on_get = lambda path: None
        self.cut_weights = False  # break off in the middle

    def respond(self, path):
        """Status, headers and body."""
        if match := re.fullmatch(r"/storage/(\w+)", path):
            return 200, {}, self.stored(match[1])
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        commits = self.repositories.get(match[1]) if match else None
        if commits is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        commit = self.branches.get(match[2], match[2])
        if commit not in commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        headers = {"X-Repo-Commit": commit}
        if match[3] not in commits[commit]:
            return 404, headers | {"X-Error-Code": "EntryNotFound"}, b""
        content = commits[commit][match[3]]
        if not match[3].endswith(".safetensors"):
            return 200, headers | {"ETag": f'"{sha256(content)[:40]}"'}, content
        headers |= {
            "Location": f"{self.storage}/storage/{sha256(content)}",
            "X-Linked-ETag": f'"{sha256(content)}"',
            "X-Linked-Size": str(len(content)),
        }
        return 302, headers, b""

    def stored(self, digest):
        for commits in self.repositories.values():
            for files in commits.values():
                for content in files.values():
                    if sha256(content) == digest:
                        return content
        raise KeyError(digest)

    @property
    def fetched(self):
        """The files that were asked for, by revision."""
        pattern = re.compile(r"/resolve/([^/]+)/(.+)")
        found = [pattern.search(path) for path in self.requests]
        return {(match[1], match[2]) for match in found if match}


def files_of(folder):
    names = ("config.json", "model.safetensors")
    return {name: (folder / name).read_bytes() for name in names}


@contextmanager
def serving(state):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self, body=True):
            state.requests.append(self.path)
            if "Authorization" in self.headers:
                state.tokens.add(self.headers["Authorization"])
            status, headers, content = state.respond(self.path)
            if body:
                state.on_get(self.path)
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Connection", "close")
            self.end_headers()
            if body:
                cut = state.cut_weights and self.path.startswith("/storage/")
                self.wfile.write(content[: len(content) // 2 if cut else None])

        def do_HEAD(self):
            self.do_GET(body=False)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    state.storage = f"http://localhost:{server.server_port}"
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def connect(monkeypatch, url):
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a client that does not wait before it retries.

    The server here answers however busy the machine is.
    """
    monkeypatch.setattr(hub, "PATIENCE", 60.0)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return tmp_path / "cache"


@pytest.fixture
def server(cache, monkeypatch):
    state = Hub()
    with serving(state) as url:
        connect(monkeypatch, url)
        yield state


@pytest.fixture
def no_server(cache, monkeypatch):
    with serving(Hub()) as url:
        pass
    connect(monkeypatch, url)  # nobody listens there any more


def load(*args, **kwargs):
    return FocalCodec.from_pretrained(*args, **kwargs)


def refused(*args, **kwargs):
    with pytest.raises(CheckpointError) as caught:
        load(*args, **kwargs)
    return str(caught.value)


def tokens(codec):
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        return codec.encode(0.1 * torch.randn(1, 8000, generator=generator))[0]


# Requests


def test_a_repository_has_the_same_tokens_as_the_local_folder(server):
    codec, local = load(NAME), load(MODEL)
    assert codec.name == NAME
    assert codec.fingerprint == local.fingerprint
    assert torch.equal(tokens(codec), tokens(local))


def test_nothing_but_the_two_files_is_requested(server):
    files = server.repositories[NAME][COMMIT]
    for name in ("pytorch_model.bin", "hyperparams.yaml", "codec.py"):
        files[name] = b"not wanted"
    load(NAME)
    assert {name for _, name in server.fetched} == {
        "config.json",
        "model.safetensors",
    }
    paths = {path for path in server.requests if "/resolve/" not in path}
    assert paths == {f"/storage/{sha256(files['model.safetensors'])}"}


def test_the_main_branch_is_the_default(server):
    load(NAME)
    assert ("main", "config.json") in server.fetched


def test_both_files_are_of_one_commit_when_the_branch_moves(server):
    server.repositories[NAME][OLDER] = files_of(OTHER)
    server.branches["main"] = OLDER

    def move(path):
        server.branches["main"] = COMMIT

    server.on_get = move  # after the first file
    assert load(NAME).fingerprint == load(OTHER).fingerprint
    assert load(NAME).fingerprint == load(MODEL).fingerprint


@pytest.mark.parametrize("revision", [OLDER, "v1"])
def test_a_given_revision_is_requested(server, revision):
    server.repositories[NAME][OLDER] = files_of(OTHER)
    server.branches["v1"] = OLDER
    assert load(NAME, revision=revision).fingerprint == load(OTHER).fingerprint
    assert {rev for rev, _ in server.fetched} <= {revision, OLDER}


# Releases


def test_the_six_releases_are_known():
    assert sorted(RELEASES) == [
        "lucadellalib/focalcodec_12_5hz",
        "lucadellalib/focalcodec_25hz",
        "lucadellalib/focalcodec_50hz",
        "lucadellalib/focalcodec_50hz_2k_causal",
        "lucadellalib/focalcodec_50hz_4k_causal",
        "lucadellalib/focalcodec_50hz_65k_causal",
    ]
    for name, release in RELEASES.items():
        assert hub.is_repository(name)
        if not name.endswith("_causal"):
            assert re.fullmatch("[0-9a-f]{40}", release.revision)
            assert re.fullmatch("[0-9a-f]{64}", release.sha256)


def release(monkeypatch, revision, digest):
    monkeypatch.setitem(RELEASES, NAME, Release(revision, digest))


def test_the_pinned_revision_of_a_release_is_requested(server, monkeypatch):
    server.repositories[NAME][OLDER] = files_of(OTHER)
    digest = sha256(files_of(OTHER)["model.safetensors"])
    release(monkeypatch, OLDER, digest)
    assert load(NAME).fingerprint == load(OTHER).fingerprint
    assert {revision for revision, _ in server.fetched} == {OLDER}


def test_the_weights_of_a_release_are_checked_each_time(server, monkeypatch):
    release(monkeypatch, COMMIT, "0" * 64)
    message = refused(NAME)
    digest = sha256(files_of(MODEL)["model.safetensors"])
    assert f"SHA-256 is {digest}, the release has {'0' * 64}" in message
    assert refused(NAME) == message  # also from the cache
    # the file that the message names is the one to delete
    os.remove(re.search("delete (.*) and fetch", message)[1])
    before = len(server.requests)
    assert refused(NAME) == message
    assert len(server.requests) > before  # it was fetched again


def test_damage_of_the_cache_is_found_and_can_be_repaired(server, monkeypatch):
    digest = sha256(files_of(MODEL)["model.safetensors"])
    release(monkeypatch, COMMIT, digest)
    folder = hub.fetch(NAME)
    path = (folder / "model.safetensors").resolve()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    message = refused(NAME)
    assert f"the release has {digest}; delete {path} and" in message
    path.unlink()
    assert load(NAME).fingerprint == load(MODEL).fingerprint


def test_another_revision_of_a_release_is_not_compared(server, monkeypatch):
    server.repositories[NAME][OLDER] = files_of(OTHER)
    release(monkeypatch, COMMIT, sha256(files_of(MODEL)["model.safetensors"]))
    other = load(NAME, revision=OLDER)
    assert other.fingerprint == load(OTHER).fingerprint


# Without a connection


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_the_cache_serves_when_offline(server, monkeypatch, revision):
    expected = load(NAME, revision=revision).fingerprint
    before = len(server.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load(NAME, revision=revision).fingerprint == expected
    assert len(server.requests) == before


def test_the_cache_serves_when_the_hub_is_down(cache, monkeypatch):
    with serving(Hub()) as url:
        connect(monkeypatch, url)
        expected = load(NAME).fingerprint
    assert load(NAME).fingerprint == expected


def test_a_pinned_release_is_loaded_without_asking_again(server, monkeypatch):
    release(monkeypatch, COMMIT, sha256(files_of(MODEL)["model.safetensors"]))
    load(NAME)
    before = len(server.requests)
    load(NAME)
    assert len(server.requests) == before


def unreachable(message):
    """The reason, when the rest of the message is right."""
    match = re.fullmatch(
        rf"{NAME} \(revision main\): config.json: the hub cannot be reached "
        r"\((.+)\) and the local cache has no copy; connect once, or give a "
        "local folder",
        message,
    )
    return match[1]


def test_offline_without_a_copy_is_a_clear_error(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "offline mode is enabled" in unreachable(refused(NAME))
    assert server.requests == []


def test_a_refused_connection_is_a_clear_error(no_server):
    assert "Connection refused" in unreachable(refused(NAME))


def test_a_hub_that_fails_is_a_clear_error(server):
    server.respond = lambda path: (500, {}, b"")
    assert "500" in unreachable(refused(NAME))


def test_another_server_than_a_hub_is_a_clear_error(server):
    server.respond = lambda path: (200, {}, b"<html>log in</html>")
    assert "X-Repo-Commit" in unreachable(refused(NAME))


def test_a_broken_download_is_an_error_and_leaves_no_file(server, cache):
    server.cut_weights = True
    message = refused(NAME)
    assert message.startswith(f"{NAME} (revision main): model.safetensors: ")
    assert "download failed" in message
    server.cut_weights = False
    assert load(NAME).fingerprint == load(MODEL).fingerprint


@pytest.mark.parametrize("cached", [False, True])
def test_a_hub_that_does_not_answer_times_out(server, monkeypatch, cached):
    if cached:
        load(NAME)
    answer = Event()
    respond = server.respond
    server.respond = lambda path: answer.wait(60) and respond(path)
    monkeypatch.setattr(hub, "PATIENCE", 0.5)
    start = monotonic()
    if cached:
        assert load(NAME).fingerprint == load(MODEL).fingerprint
    else:
        assert unreachable(refused(NAME)) == "no answer in 0.5 seconds"
    assert monotonic() - start < 10
    answer.set()


def test_a_release_without_a_network_fails_in_time(tmp_path):
    """As a user has it: the waits of the client are real."""
    program = (
        "import sys, time\n"
        "from speechbrain_focalcodec import FocalCodec\n"
        "import huggingface_hub\n"
        "start = time.monotonic()\n"
        "try:\n"
        "    FocalCodec.from_pretrained('lucadellalib/focalcodec_25hz')\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, time.monotonic() - start)\n"
    )
    with serving(Hub()) as url:
        pass  # nobody listens there any more
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ
        | {
            "HF_ENDPOINT": url,
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "0",
        },
        cwd=PARITY.parents[1],
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    )
    name, seconds = done.stdout.split()
    assert name == "CheckpointError" and float(seconds) < 10


# Options of the client


def test_the_cache_can_be_elsewhere(server, cache, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    expected = load(NAME, cache_dir=elsewhere).fingerprint
    assert not cache.exists()
    before = len(server.requests)
    codec = load(NAME, cache_dir=elsewhere, local_files_only=True)
    assert codec.fingerprint == expected
    with pytest.raises(CheckpointError, match="local_files_only is set"):
        load(NAME, local_files_only=True)
    assert len(server.requests) == before


def test_a_token_is_sent(server):
    load(NAME, token="hf_secret")
    assert server.tokens == {"Bearer hf_secret"}


# A configuration of a repository


def test_a_configuration_of_a_repository_has_weights_of_its_name(server):
    files = server.repositories[NAME][COMMIT]
    for name, content in files_of(OTHER).items():
        suffix = Path(name).suffix
        files[f"config_x{suffix}"] = content
    codec = load(f"{NAME}/config_x.json")
    assert codec.name == f"{NAME}/config_x.json"
    assert codec.fingerprint == load(OTHER).fingerprint
    assert {name for _, name in server.fetched} == {
        "config_x.json",
        "config_x.safetensors",
    }
    config = f"{NAME}/config.json"
    assert load(config).fingerprint == load(MODEL).fingerprint


def test_pickled_weights_of_a_repository_are_not_fetched(server):
    files = server.repositories[NAME][COMMIT]
    files["model.pt"] = files.pop("model.safetensors")
    message = refused(NAME)
    assert message.startswith(f"{NAME} (revision main): model.safetensors: ")
    assert "python -c" in message and "'model.pt'" in message
    assert not any("/storage/" in path for path in server.requests)


# Missing repositories, revisions and files


def test_an_unknown_repository_is_named(server):
    message = refused("owner/nothing")
    assert message.startswith("owner/nothing (revision main): config.json")
    assert "no such repository, or it is private" in message


@pytest.mark.parametrize("revision", ["v9", "0" * 40, "../../etc", "a b"])
def test_an_unknown_revision_is_named(server, revision):
    message = refused(NAME, revision=revision)
    assert message.startswith(f"{NAME} (revision {revision}): config.json")
    assert "no such revision" in message


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(server, name):
    files = server.repositories[NAME][COMMIT]
    files["pytorch_model.bin"] = b"a pickle"
    del files[name]
    message = refused(NAME)
    assert message.startswith(f"{NAME} (revision main): {name}: not in the")
    assert "pytorch_model.bin" not in {name for _, name in server.fetched}


@pytest.mark.parametrize("name", ["a..b/c", "a--b/c", "a/b.git", "a/b-"])
def test_a_name_that_the_hub_does_not_allow_is_refused(server, name):
    assert refused(name).startswith(f"{name} (revision main): config.json")
    assert server.fetched == set()


# As a user sets it


def test_the_environment_chooses_endpoint_and_cache(tmp_path):
    program = (
        "import sys\n"
        "from speechbrain_focalcodec import FocalCodec\n"
        "print(FocalCodec.from_pretrained(sys.argv[1]).fingerprint)\n"
    )
    with serving(Hub()) as url:
        done = subprocess.run(
            [sys.executable, "-c", program, NAME],
            env=os.environ
            | {
                "HF_ENDPOINT": url,
                "HF_HOME": str(tmp_path),
                "HF_HUB_OFFLINE": "0",
            },
            cwd=PARITY.parents[1],
            stdout=subprocess.PIPE,
            text=True,
            timeout=300,
            check=True,
        )
    assert done.stdout.strip() == load(MODEL).fingerprint
    cached = list(tmp_path.glob("hub/models--owner--model/snapshots/*/*"))
    assert len(cached) == 2


def test_a_local_folder_comes_before_the_hub(server, tmp_path, monkeypatch):
    shutil.copytree(OTHER, tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    assert load(NAME).fingerprint == load(OTHER).fingerprint
    assert server.requests == []
