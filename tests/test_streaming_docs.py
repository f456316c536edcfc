"""What the page on live audio shows is run."""

import contextlib
import importlib.util
import re
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from speechbrain_focalcodec import FocalCodec
from speechbrain_focalcodec.errors import StreamError

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "tests" / "parity" / "causal_50hz"


def load_example():
    path = ROOT / "docs" / "examples" / "token_server.py"
    spec = importlib.util.spec_from_file_location("token_server", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = load_example()


@pytest.fixture(scope="module")
def codec():
    return FocalCodec.from_pretrained(MODEL)


@pytest.fixture
def serve(codec):
    """Start servers that end with the test."""
    servers = []

    def start(answer):
        server = example.TokenServer(("127.0.0.1", 0), codec, answer)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        return server.server_address

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def talk(address, pcm, size):
    """Send PCM in parts of `size` bytes while all answers are read."""
    answers = []
    with socket.create_connection(address, timeout=100) as client:

        def read():
            while data := client.recv(4096):
                answers.append(data)

        reader = threading.Thread(target=read)
        reader.start()
        for start in range(0, len(pcm), size):
            client.sendall(pcm[start : start + size])
        client.shutdown(socket.SHUT_WR)
        reader.join(100)
        assert not reader.is_alive()
    return b"".join(answers)


def speech(seed, length):
    generator = torch.Generator().manual_seed(seed)
    pcm = example.to_pcm(0.1 * torch.randn(length, generator=generator))
    return pcm, example.from_pcm(pcm)


def test_clients_get_the_tokens_of_their_speech(codec, serve):
    """Two at once, in parts that cut samples in two."""
    address = serve("tokens")
    inputs = [speech(0, 16001), speech(1, 9000)]
    answers = {}

    def client(i):
        answers[i] = talk(address, inputs[i][0], 333 + 1000 * i)

    clients = [threading.Thread(target=client, args=(i,)) for i in range(2)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    for i, (_, sig) in enumerate(inputs):
        with torch.no_grad():
            want, _ = codec.encode(sig[None])
        got = np.frombuffer(answers[i], "<u4")
        assert got.tolist() == want[0].tolist()


def test_clients_get_speech_that_lasts_as_long(codec, serve):
    pcm, sig = speech(2, 8000)
    got = example.from_pcm(talk(serve("pcm"), pcm, 1280))
    with torch.no_grad():
        want = codec.resynthesize(sig[None])[0].clamp(-1, 1)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-4)


def test_fifty_clients_connect_at_once(codec):
    """Before the server takes the first of them."""
    pcm, sig = speech(4, 3000)
    with (
        contextlib.ExitStack() as stack,
        example.TokenServer(("127.0.0.1", 0), codec, "tokens") as server,
    ):
        clients = [
            stack.enter_context(
                socket.create_connection(server.server_address, timeout=30)
            )
            for _ in range(50)
        ]
        for client in clients:
            client.sendall(pcm)
            client.shutdown(socket.SHUT_WR)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            for client in clients:
                with client.makefile("rb") as answer:
                    assert len(answer.read()) == 4 * codec.num_tokens(len(sig))
        finally:
            server.shutdown()
            thread.join()


def test_a_client_that_leaves_disturbs_nobody(codec, serve, capfd):
    address = serve("tokens")
    pcm, sig = speech(3, 4000)
    client = socket.create_connection(address)
    # Is broken off, not ended.
    linger = b"\1\0\0\0\0\0\0\0"
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    client.sendall(pcm[:999])
    client.close()
    assert len(talk(address, pcm, 999)) == 4 * codec.num_tokens(len(sig))
    assert "Traceback" not in capfd.readouterr().err


def test_a_server_of_an_offline_model_does_not_start():
    codec = FocalCodec.from_pretrained("focalcodec_mini_50hz")
    with pytest.raises(StreamError, match="causal"):
        example.TokenServer(("127.0.0.1", 0), codec, "tokens")


def test_python_of_the_page_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "streaming.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 3
    # A model that is there wherever the tests run.
    code = "\n".join(blocks).replace("focalcodec_mini_50hz_causal", str(MODEL))
    names = {}
    exec(compile(code, "docs/streaming.md", "exec"), names)
    assert names["report"].chunks == 39
    assert len(names["rec"]) == 75000


def test_commands_of_the_page_exist():
    from typer.main import get_command

    from speechbrain_focalcodec.cli import app

    page = (ROOT / "docs" / "streaming.md").read_text()
    commands = re.findall(r"^    focalcodec ([^>\n]*)", page, re.MULTILINE)
    assert len(commands) >= 5
    for line in commands:
        name, *args = line.split()
        command = get_command(app).commands[name]
        # Parses, or raises.
        command.make_context(name, args, resilient_parsing=False)
