"""Sessions behave alike on torch and on onnxruntime."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from causal_codecs import make_codec
from hypothesis import given, settings
from hypothesis import strategies as st

from speechbrain_focalcodec import OnnxFocalCodec
from speechbrain_focalcodec.errors import AudioError, StreamError, TokenError
from speechbrain_focalcodec.onnx.sessions import (
    OnnxStreamingDecoder,
    OnnxStreamingEncoder,
    OnnxStreamingResynthesizer,
)
from speechbrain_focalcodec.streaming import (
    StreamingDecoder,
    StreamingEncoder,
    StreamingResynthesizer,
)

KINDS = ("encode", "decode", "resynthesize")


@dataclass
class Backend:
    """A model, its sessions, and the arrays that they take."""

    codec: Any
    classes: tuple[type, type, type]
    array: Callable[[np.ndarray], Any]
    files: Any

    def session(self, kind: str) -> Any:
        return self.classes[KINDS.index(kind)](self.codec)

    def push(self, session: Any, x: np.ndarray) -> np.ndarray:
        """Push a copy, and overwrite it as a caller's buffer may be."""
        buffer = x.copy()
        y = session.push(self.array(buffer))
        buffer[:] = 0
        assert isinstance(y, type(self.array(x)))
        return np.array(y)

    def run(self, session: Any, x: np.ndarray, cuts: list[int]) -> np.ndarray:
        """Push `x` in pieces that end at `cuts`, and flush."""
        parts = [self.push(session, part) for part in np.split(x, sorted(cuts))]
        return np.concatenate([*parts, np.array(session.flush())])

    def one_pass(self, kind: str, x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            y = getattr(self.codec, kind)(self.array(x[None]))
        return np.array((y if kind == "resynthesize" else y[0])[0])


@pytest.fixture(scope="module", params=["torch", "onnx"])
def backend(request) -> Backend:
    if request.param == "torch":
        return Backend(
            make_codec("wavenext"),
            (StreamingEncoder, StreamingDecoder, StreamingResynthesizer),
            torch.from_numpy,
            safetensors.torch,
        )
    return Backend(
        OnnxFocalCodec(request.getfixturevalue("causal_onnx"), threads=1),
        (
            OnnxStreamingEncoder,
            OnnxStreamingDecoder,
            OnnxStreamingResynthesizer,
        ),
        lambda x: x,
        safetensors.numpy,
    )


each_kind = pytest.mark.parametrize("kind", KINDS)


def make_input(kind: str, seed: int, length: int) -> np.ndarray:
    """Samples, or the tokens of as many samples."""
    rng = np.random.default_rng(seed)
    if kind == "decode":
        return rng.integers(0, 64, -(-length // 320))
    return rng.normal(0, 0.3, length).astype(np.float32)


def assert_close(got: np.ndarray, want: np.ndarray) -> None:
    """Torch sums batches of other sizes in another order."""
    assert got.dtype == want.dtype
    atol = 0 if want.dtype == np.int64 else 1e-4
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)


def assert_unchanged(session: Any, before: dict[str, Any]) -> None:
    after = session.state_dict()
    assert after.keys() == before.keys()
    for name, x in before.items():
        assert np.array_equal(np.asarray(after[name]), np.asarray(x))


@each_kind
@settings(max_examples=50)
@given(
    st.integers(1, 20000),
    st.lists(st.integers(0, 20000), max_size=12),
    st.integers(0, 9),
)
def test_any_cutting_equals_one_pass(backend, kind, length, cuts, seed):
    x = make_input(kind, seed, length)
    cuts = [cut % (len(x) + 1) for cut in cuts]
    got = backend.run(backend.session(kind), x, cuts)
    assert_close(got, backend.one_pass(kind, x))


@each_kind
def test_an_empty_push_changes_nothing(backend, kind):
    session = backend.session(kind)
    x = make_input(kind, 1, 3000)
    for part in np.split(x, [0, 0, len(x) // 2, len(x) // 2]):
        before = session.state_dict()
        got = backend.push(session, part)
        assert got.dtype == (np.int64 if kind == "encode" else np.float32)
        if not len(part):
            assert not len(got)
            assert_unchanged(session, before)
    session.reset()
    assert not len(session.flush())


@each_kind
@pytest.mark.parametrize("cut", [0, 500, 9000])
def test_a_stream_continues_in_another_session(backend, kind, cut, tmp_path):
    x = make_input(kind, 3, 20000)
    cut = cut // 320 if kind == "decode" else cut
    want = backend.run(backend.session(kind), x, [cut])
    first, second = backend.session(kind), backend.session(kind)
    backend.push(second, x[:999])  # is replaced
    part = backend.push(first, x[:cut])
    path = tmp_path / "state.safetensors"
    backend.files.save_file(first.state_dict(), path)
    backend.push(first, x[cut:])
    second.load_state_dict(backend.files.load_file(path))
    rest = backend.run(second, x[cut:], [])
    assert_close(np.concatenate([part, rest]), want)


@each_kind
def test_a_state_that_does_not_fit_changes_nothing(backend, kind):
    x = make_input(kind, 4, 20000)
    session = backend.session(kind)
    backend.push(session, x[: len(x) // 2])
    before = session.state_dict()
    arrays = {name: np.array(x) for name, x in before.items()}
    context = next(name for name in arrays if name.endswith(".context"))
    pending = [name for name in arrays if name.endswith("pending")]
    ended = [name for name in arrays if name.endswith("ended")][-1]
    state = [name for name in arrays if "state." in name]
    key = next((name for name in state if name.endswith(".key")), context)
    bad_value = [64] if arrays[pending[-1]].dtype == np.int64 else [np.nan]
    bad: list[dict[str, Any]] = [
        {},
        {k: v for k, v in arrays.items() if k != context},
        *({k: v for k, v in arrays.items() if k != name} for name in pending),
        {k.replace("state.", ""): v for k, v in arrays.items()},
        *(
            {**arrays, name: np.zeros(1, np.float32)}
            for name in ("more", "state.more", state[0].replace("state.", ""))
        ),
        {**arrays, context: arrays[context][:, 1:]},
        {**arrays, context: arrays[context].astype(np.float64)},
        {**arrays, context: arrays[context].repeat(2, 0)},
        {**arrays, key: arrays[key][:, :, 1:]},
        {**arrays, ended: np.array([False, False])},
        {
            **arrays,
            pending[-1]: np.array(bad_value, arrays[pending[-1]].dtype),
        },
        *(
            {**arrays, name: np.zeros(5000, arrays[name].dtype)}
            for name in pending
        ),
        *(
            {**arrays, name: arrays[name] - 1000}
            for name in arrays
            if name.endswith("seen")
        ),
    ]
    if kind == "resynthesize":
        bad += [
            {**arrays, "counts": np.array(counts)}
            for counts in ([-1, 0], [10, 10**6], [10, -1], [10], [1.0, 1.0])
        ]
    for tensors in bad:
        tensors = {k: backend.array(v.copy()) for k, v in tensors.items()}
        with pytest.raises(StreamError, match="^state: "):
            session.load_state_dict(tensors)
        assert_unchanged(session, before)


@each_kind
def test_a_state_of_the_other_back_end_is_refused(backend, kind):
    session = backend.session(kind)
    before = session.state_dict()
    other = {
        name: np.array(x) if torch.is_tensor(x) else torch.from_numpy(x)
        for name, x in before.items()
    }
    with pytest.raises(StreamError, match="^state: "):
        session.load_state_dict(other)
    assert_unchanged(session, before)


@each_kind
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_state_with_nan_is_refused(backend, kind, value):
    x = make_input(kind, 3, 9000)
    session = backend.session(kind)
    backend.push(session, x[: len(x) // 2])
    before = session.state_dict()
    arrays = {name: np.array(x) for name, x in before.items()}
    floats = [k for k, v in arrays.items() if v.dtype.kind == "f" and v.size]
    assert floats
    for name in floats:
        bad = {k: v.copy() for k, v in arrays.items()}
        bad[name].flat[-1] = value
        with pytest.raises(StreamError, match="NaN"):
            session.load_state_dict(
                {k: backend.array(v) for k, v in bad.items()}
            )
    assert_unchanged(session, before)


def fail_at(direction: Any, call: int) -> None:
    """Let one call of a direction fail, as where memory is short."""
    run, calls = direction.run, iter(range(1000))

    def failing(*args):
        if next(calls) == call:
            raise MemoryError("injected")
        return run(*args)

    direction.run = failing


def assert_ended_by_failure(backend: Backend, session: Any, x: Any) -> None:
    for action in (
        lambda: session.push(backend.array(x)),
        session.flush,
        session.state_dict,
    ):
        with pytest.raises(StreamError, match=r"failure.*reset"):
            action()


@each_kind
@pytest.mark.parametrize("call", [0, 2])
def test_a_failure_ends_the_stream(backend, kind, call):
    """Also in the encoder or the decoder of a resynthesis."""
    x = make_input(kind, 1, 20000)
    want = backend.run(backend.session(kind), x, [])
    for i in range(len(backend.session(kind).ways)):
        session = backend.session(kind)
        fail_at(session.ways[i].direction, call)
        cuts = range(session.chunk_length, len(x), session.chunk_length)
        pieces = iter(np.split(x, cuts))
        with pytest.raises(MemoryError):
            for piece in pieces:
                backend.push(session, piece)
        assert_ended_by_failure(backend, session, next(pieces))
        session.reset()
        assert_close(backend.run(session, x, [50]), want)


@each_kind
def test_a_failure_in_the_last_chunk_ends_the_stream(backend, kind):
    x = make_input(kind, 1, 300)
    for i in range(len(backend.session(kind).ways)):
        session = backend.session(kind)
        backend.push(session, x)
        fail_at(session.ways[i].direction, 0)
        with pytest.raises(MemoryError):
            session.flush()
        assert_ended_by_failure(backend, session, x)


@each_kind
def test_a_saved_state_replaces_a_failed_one(backend, kind):
    x = make_input(kind, 2, 9000)
    half = len(x) // 2
    session = backend.session(kind)
    backend.push(session, x[:half])
    state = session.state_dict()
    want = backend.run(session, x[half:], [])
    session = backend.session(kind)
    fail_at(session.ways[-1].direction, 0)
    with pytest.raises(MemoryError):
        backend.push(session, x)
    session.load_state_dict(state)
    assert_close(backend.run(session, x[half:], [500 // 320]), want)


@each_kind
@pytest.mark.parametrize("ended", [False, True])
def test_sessions_pickle(backend, kind, ended):
    x = make_input(kind, 3, 9000)
    half = len(x) // 2
    session = backend.session(kind)
    backend.push(session, x[:half])
    if ended:
        session.flush()
    loaded = pickle.loads(pickle.dumps(session))
    if ended:
        with pytest.raises(StreamError, match="ended by flush"):
            backend.push(loaded, x)
    else:
        want = backend.run(session, x[half:], [])
        assert_close(backend.run(loaded, x[half:], [7]), want)


@each_kind
def test_reset_starts_a_new_stream(backend, kind):
    x = make_input(kind, 6, 9000)
    session = backend.session(kind)
    want = backend.run(session, x, [])
    with pytest.raises(StreamError, match="ended by flush.*reset"):
        backend.push(session, x)
    assert session.ended and not len(session.flush())
    session.reset()
    assert_close(backend.run(session, x, [20]), want)


SIG, TOKS = np.zeros(4, np.float32), np.zeros(4, np.int64)


@pytest.mark.parametrize(
    ("kind", "x", "error", "message"),
    [
        ("encode", SIG + np.nan, AudioError, "sig: has NaN or infinite"),
        ("encode", SIG - np.inf, AudioError, "sig: has NaN or infinite"),
        ("encode", SIG[None], ValueError, r"sig: must be \[T\].* \[1, 4\]"),
        ("encode", SIG.astype("i2"), ValueError, "sig: must be floats.*int16"),
        ("encode", TOKS[:0], ValueError, "sig: must be floats"),
        ("encode", SIG.astype("c8"), ValueError, "sig: must be floats"),
        ("decode", TOKS[None], ValueError, r"toks: must be \[N\].* \[1, 4\]"),
        ("decode", TOKS + 64, TokenError, r"toks must lie in 0\.\.63 for"),
        ("decode", TOKS - 1, TokenError, r"in 0\.\.63 for .* got -1\.\.-1"),
        ("decode", SIG, TokenError, "toks must be integers, got .*float32"),
        ("decode", TOKS > 0, TokenError, "toks must be integers, got .*bool"),
    ],
)
def test_bad_input_is_refused(backend, kind, x, error, message):
    session = backend.session(kind)
    before = session.state_dict()
    with pytest.raises(error, match=message) as raised:
        session.push(backend.array(x))
    assert raised.type is error
    assert_unchanged(session, before)


@pytest.mark.parametrize("dtype", ["f2", "f8"])
def test_samples_of_any_float_type(backend, dtype):
    x = make_input("encode", 1, 3000).astype(dtype)
    want = backend.one_pass("encode", x.astype(np.float32))
    assert_close(backend.run(backend.session("encode"), x, [7]), want)


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4"])
def test_tokens_of_any_integer_type(backend, dtype):
    toks = make_input("decode", 1, 3000)
    want = backend.one_pass("decode", toks)
    got = backend.run(backend.session("decode"), toks.astype(dtype), [7])
    assert_close(got, want)
