"""A TCP server: speech comes in, tokens or speech go out, chunk by chunk.

Clients send 16-bit PCM (little-endian, one channel, at the model's input rate)
in parts of any size. As soon as a chunk is complete they get its tokens (32-bit
unsigned, little-endian) or its waveform (16-bit PCM at the model's output
rate). A client that has shut down its sending side gets the rest, and the end.

    python docs/examples/token_server.py --answer pcm
    ffmpeg -v error -i in.wav -ar 16000 -ac 1 -f s16le - \
        | nc -N localhost 8765 > out.pcm

All clients share one model; each has a session of its own.
"""

import socket
import socketserver
import threading
from typing import Annotated, Literal

import numpy as np
import torch
import typer

from speechbrain_focalcodec import FocalCodec
from speechbrain_focalcodec.model_files import DEFAULT_CAUSAL_MODEL
from speechbrain_focalcodec.streaming import (
    Stream,
    StreamingEncoder,
    StreamingResynthesizer,
)

Answer = Literal["tokens", "pcm"]

SILENCE = 60.0  # seconds without a byte, after which a client is left


def from_pcm(data: bytes) -> torch.Tensor:
    """Turn 16-bit PCM into a waveform [T]."""
    samples = np.frombuffer(data, "<i2").astype("float32")
    return torch.from_numpy(samples / 32768)


def to_pcm(sig: torch.Tensor) -> bytes:
    """Turn a waveform [T] into 16-bit PCM."""
    samples = (32767 * sig.clamp(-1, 1)).round().cpu().numpy()
    return samples.astype("<i2").tobytes()


class TokenServer(socketserver.ThreadingTCPServer):
    """A thread for each client; the model works for one at a time.

    Arguments
    ---------
    address : (str, int)
        Host and port; port 0 takes a free one, see `server_address`.
    codec : FocalCodec
        A causal model.
    answer : str
        ``tokens`` or ``pcm``.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024  # clients that connect at once

    def __init__(
        self, address: tuple[str, int], codec: FocalCodec, answer: Answer
    ):
        self.codec, self.answer = codec, answer
        self.lock = threading.Lock()
        # The first chunk lays out the weights: now, not for a client.
        self.new_session().push(torch.zeros(2 * (codec.chunk_length or 0)))
        super().__init__(address, Client)

    def new_session(self) -> Stream:
        """Start a stream; an error names causal models if this is none."""
        if self.answer == "tokens":
            return StreamingEncoder(self.codec)
        return StreamingResynthesizer(self.codec)

    def to_bytes(self, out: torch.Tensor) -> bytes:
        """Turn what a session gives into what a client gets."""
        if self.answer == "tokens":
            return out.cpu().numpy().astype("<u4").tobytes()
        return to_pcm(out)


class Client(socketserver.BaseRequestHandler):
    """One connection."""

    server: TokenServer
    request: socket.socket

    def handle(self) -> None:
        """Answer until the client has sent all."""
        self.request.settimeout(SILENCE)
        session, half = self.server.new_session(), b""
        try:
            while data := self.request.recv(2**16):
                data = half + data
                # A sample may come in two parts.
                whole = len(data) // 2 * 2
                half = data[whole:]
                with self.server.lock:
                    out = session.push(from_pcm(data[:whole]))
                self.request.sendall(self.server.to_bytes(out))
            with self.server.lock:
                out = session.flush()
            self.request.sendall(self.server.to_bytes(out))
        except (ConnectionError, TimeoutError) as error:
            print(f"{self.client_address}: left ({error})", flush=True)


def serve(
    model: Annotated[
        str, typer.Option(help="A causal model.")
    ] = DEFAULT_CAUSAL_MODEL,
    answer: Annotated[str, typer.Option(help="tokens or pcm.")] = "tokens",
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: a free one.")] = 8765,
) -> None:
    """Serve until Ctrl-C."""
    if answer not in ("tokens", "pcm"):
        raise typer.BadParameter("must be tokens or pcm", param_hint="--answer")
    codec = FocalCodec.from_pretrained(model)
    with TokenServer((host, port), codec, answer) as server:
        print(f"listening at {server.server_address}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended", flush=True)


if __name__ == "__main__":
    typer.run(serve)
