"""Exported causal models stream what PyTorch gives, without PyTorch."""

import importlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from causal_codecs import CODECS, make_codec
from conftest import PARITY
from hyperpyyaml import load_hyperpyyaml
from safetensors.torch import load_file
from torch.nn import functional as F

from speechbrain_focalcodec import FocalCodec, OnnxFocalCodec
from speechbrain_focalcodec.errors import (
    CheckpointError,
    ConfigError,
    StreamError,
)
from speechbrain_focalcodec.onnx import export as onnx_export
from speechbrain_focalcodec.onnx.graphs import StepGraph
from speechbrain_focalcodec.onnx.sessions import (
    OnnxStreamingEncoder,
    OnnxStreamingResynthesizer,
)

CAUSAL = ("causal_50hz", "causal_50hz_lookahead0")
# Tracing takes many seconds: one model here, the others when slow.
CASE = CAUSAL[0]  # what `causal_onnx` holds
MINI = PARITY.parents[1] / "hparams/model/focalcodec_mini_50hz_causal.yaml"
MARGIN = 1e-3


def build(name):
    """A recorded model, a small one with its window, or the mini one."""
    if name == "mini":
        with open(MINI) as stream:
            return load_hyperpyyaml(stream)["codec"].eval()
    if name in CAUSAL:
        return FocalCodec.from_pretrained(PARITY / name)
    name, window = name.split(":")
    return make_codec(name, int(window))


def assert_close(got, want):
    np.testing.assert_allclose(got, np.asarray(want), rtol=0, atol=1e-4)


def make_sig(seed, *shape):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 0.3, shape).astype(np.float32)


def sure_of(codec, sig):
    """Which tokens do not hang on rounding."""
    lats = codec.feats_to_lats(codec.sig_to_feats(sig))
    return (lats.abs().amin(-1) > MARGIN).numpy()


def check_recorded(exported, case):
    expected = load_file(PARITY / case / "expected.safetensors")
    for which in ("a",):
        sig, toks, rec_sig = (
            expected[f"{which}.{name}"] for name in ("sig", "toks", "rec_sig")
        )
        got, lengths = exported.encode(sig.numpy())
        assert np.array_equal(got, toks)
        assert lengths.tolist() == [toks.shape[1]]
        rec, lengths = exported.decode(toks.numpy())
        assert_close(rec, rec_sig)
        assert lengths.tolist() == [rec_sig.shape[1]]
        got = run(OnnxStreamingEncoder(exported), sig[0].numpy(), [999])
        assert np.array_equal(got, toks[0])


def run(session, x, cuts):
    """Push `x` in pieces that end at `cuts`, and flush."""
    parts = [session.push(part) for part in np.split(x, sorted(cuts))]
    return np.concatenate([*parts, session.flush()])


@pytest.fixture(scope="module")
def codec():
    return FocalCodec.from_pretrained(PARITY / CASE).requires_grad_(False)


@pytest.fixture(scope="module")
def exported(causal_onnx):
    return OnnxFocalCodec(causal_onnx, threads=1)


@pytest.fixture
def copied(causal_onnx, tmp_path):
    return shutil.copytree(causal_onnx, tmp_path / "copy")


# Before anything is traced


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        *CAUSAL,
        "mini",
        *(f"{name}:12" for name in CODECS),
        "vocos:160",
        "down_scaled:160",
    ],
)
def test_steps_compute_what_the_codec_does(name):
    """Also of two streams of which one began later."""
    codec = build(name)
    frames = codec.chunk_length // codec.encoder.hop_length
    # Beyond the windows.
    chunks = 180 // frames if name.endswith("160") else 15
    sig = torch.from_numpy(make_sig(1, 2, chunks * codec.chunk_length - 700))
    want, _ = codec.encode(sig)
    rec, _ = codec.decode(want)
    for make, x, result in (
        (StepGraph.encoder, sig, want),
        (StepGraph.decoder, want, rec),
    ):
        step = make(codec)
        outputs = [[], []]
        kept = [torch.cat([v, v]) for v in step.start.values()]
        seen = torch.tensor([0, 0])
        late = 3 * step.chunk_length
        both = x[0], torch.cat([x[0, :late], x[1]])
        for first in range(0, len(both[1]), step.chunk_length):
            if first == late:
                seen[1] = 0  # what it carries is another's: not looked at
            parts = [y[first : first + step.chunk_length] for y in both]
            lengths = torch.tensor([max(len(y), 1) for y in parts])
            parts = [F.pad(y, (0, step.chunk_length - len(y))) for y in parts]
            y, counts, seen, *kept = step(
                torch.stack(parts), lengths, seen, kept
            )
            if first < x.shape[1]:
                outputs[0].append(y[0, : counts[0]])
            if first >= late:
                outputs[1].append(y[1, : counts[1]])
        for got, wanted in zip(outputs, result, strict=True):
            assert_close(torch.cat(got), wanted)


# What is exported


def test_recorded_case(exported):
    check_recorded(exported, CASE)


def test_facts_are_those_of_the_codec(codec, exported):
    for name in (
        *("name", "fingerprint", "sample_rate_input", "sample_rate_output"),
        *("token_rate", "hop_length", "output_hop_length", "codebook_size"),
        *("bitrate", "causal", "chunk_length", "latency"),
    ):
        assert getattr(exported, name) == getattr(codec, name), name
    for samples in (1, 319, 320, 321, 12345, 10**9):
        assert exported.num_tokens(samples) == codec.num_tokens(samples)


@torch.no_grad()
def test_batches_with_lengths(codec, exported):
    sig = make_sig(2, 18, 9000)  # more than are done at once
    lengths = np.array([9000, 1, 1280, 1281, 320, 8000] * 3)
    want, want_lengths = codec.encode(
        torch.from_numpy(sig), torch.from_numpy(lengths)
    )
    toks, tok_lengths = exported.encode(sig, lengths)
    assert np.array_equal(toks, want)
    assert np.array_equal(tok_lengths, want_lengths)
    rec, rec_lengths = exported.decode(toks, tok_lengths)
    assert_close(rec, codec.decode(want, want_lengths)[0])
    assert np.array_equal(rec_lengths, 480 * tok_lengths)
    wanted, _ = codec.resynthesize(
        torch.from_numpy(sig), torch.from_numpy(lengths)
    )
    assert_close(exported.resynthesize(sig, lengths)[0], wanted)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 1280, 1281, 30000])
def test_resynthesis_lasts_as_long_as_the_input(codec, exported, length):
    sig = make_sig(3, length)
    want = codec.resynthesize(torch.from_numpy(sig[None]))[0]
    session = OnnxStreamingResynthesizer(exported)
    assert_close(run(session, sig, [700, 5000, 5001]), want)
    assert session.ended and not len(session.flush())
    session.reset()
    assert_close(run(session, sig, []), want)


def test_a_stream_in_any_language(codec, causal_onnx):
    """What docs/onnx.md tells: outputs fed back, nothing else."""
    runtime = importlib.import_module("onnxruntime")
    facts = json.loads((causal_onnx / "onnx.json").read_text())["encoder"]
    session = runtime.InferenceSession(str(causal_onnx / "encoder_step.onnx"))
    feed = {"seen": np.zeros(1, np.int64)} | {
        f"state.{name}": np.zeros((1, *shape), np.float32)
        for name, shape in facts["state"].items()
    }
    sig = make_sig(4, 1, 20 * facts["chunk_length"])
    toks = []
    for chunk in np.split(sig, 20, axis=1):
        feed |= {"sig": chunk, "lengths": np.array([chunk.shape[1]])}
        names = [output.name for output in session.get_outputs()]
        given = dict(zip(names, session.run(None, feed), strict=True))
        toks.append(given["toks"])
        feed = {
            name: given[name.replace("state.", "state_out.", 1)]
            for name in feed
            if name.startswith("state.")
        } | {"seen": given["seen_out"]}
    want, _ = codec.encode(torch.from_numpy(sig))
    assert np.array_equal(np.concatenate(toks, axis=1), want)


def test_errors_of_onnxruntime_end_the_stream(exported):
    session = OnnxStreamingEncoder(exported)
    session.state = session.state[:-1] + session.state[:1]
    with pytest.raises(CheckpointError, match="onnxruntime cannot run"):
        session.push(make_sig(1, 1280))
    with pytest.raises(StreamError, match="failure"):
        session.flush()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "offline"}, "an offline model has no chunks"),
        ({"chunk_length": None}, "a causal model has chunks"),
        ({"chunk_length": 640}, "a causal model has chunks"),
        ({"decoder": None}, "a causal model has chunks"),
        ({"causal": False}, "a causal model has chunks"),
        ({"encoder": {"chunk_length": 1280}}, "encoder.state"),
        ({"files": {"encoder.onnx": "0" * 64}}, "files must name decoder_step"),
    ],
)
def test_loading_refuses_facts(changes, message, copied):
    path = copied / "onnx.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ConfigError, match=f"onnx.json: .*{message}"):
        OnnxFocalCodec(copied)


def test_graphs_of_another_model_are_found_out(copied):
    path = copied / "onnx.json"
    facts = json.loads(path.read_text())
    facts["encoder"]["state"].popitem()
    path.write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="encoder_step.onnx.*onnx.json"):
        OnnxFocalCodec(copied)


def test_streams_without_torch(causal_onnx):
    code = f"""
import sys
import numpy as np
from speechbrain_focalcodec import OnnxFocalCodec
from speechbrain_focalcodec.onnx.sessions import OnnxStreamingResynthesizer
codec = OnnxFocalCodec({str(causal_onnx)!r}, threads=1)
session = OnnxStreamingResynthesizer(codec)
assert len(session.push(np.zeros(1280, np.float32))) == 1920
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("option", ["onnx", "onnx+int8"])
def test_benchmark_of_chunks(option, codec, causal_onnx, monkeypatch):
    # As for a script that is run: the benchmarks import each other.
    sys.path.append(str(PARITY.parents[1] / "benchmarks"))
    streaming = importlib.import_module("streaming")

    def export(codec, out, int8):
        assert int8 == (option == "onnx+int8")
        shutil.copytree(causal_onnx, out, dirs_exist_ok=True)

    monkeypatch.setattr(onnx_export, "export_onnx", export)
    monkeypatch.setitem(streaming.CAUSAL_MODELS, "tiny", lambda: codec)
    settings = streaming.Settings([1], chunks=3, warm=1, streams=0)
    before = torch.get_num_threads()
    try:
        results = streaming.measure(["tiny"], [option], settings)
    finally:
        torch.set_num_threads(before)
    assert [result.option for result in results] == ["float32", option]
    assert len(results[1].seconds) == 3


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(
    "name", [CAUSAL[1], "mini", "down_scaled:160", "all_options:12"]
)
def test_other_models(name, int8, tmp_path):
    codec = build(name)
    onnx_export.export_onnx(codec, tmp_path, int8)
    exported = OnnxFocalCodec(tmp_path, threads=1)
    if name in CAUSAL and not int8:
        check_recorded(exported, name)
    sig = make_sig(5, 1, 100 * 1280 - 700)
    toks, _ = exported.encode(sig)
    streamed = run(OnnxStreamingEncoder(exported), sig[0], [777, 50000])
    assert np.array_equal(streamed, toks[0])
    want, _ = codec.encode(torch.from_numpy(sig))
    rec, _ = codec.decode(want)
    got, _ = exported.decode(want.numpy())
    if int8:
        error = np.square(got - rec.numpy()).mean()
        assert error < 0.1 * rec.square().mean()
        return
    sure = sure_of(codec, torch.from_numpy(sig))
    assert sure.mean() > 0.9
    assert np.array_equal(toks[sure], want.numpy()[sure])
    assert_close(got, rec)
