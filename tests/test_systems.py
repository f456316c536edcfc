"""Codecs under evaluation: lengths, bits, alignment, and what is refused.

Tools that are not installed are stood in for by scripts; `-m slow` runs the
real ones.
"""

import math
import sys

import pytest
import torch
from system_checks import LENGTHS, check_lengths, demo, kbps

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.errors import CheckpointError, FocalCodecError
from speechbrain_focalcodec.inference import PretrainedFocalCodec
from speechbrain_focalcodec.metrics.stoi import stoi
from speechbrain_focalcodec.metrics.systems.base import System
from speechbrain_focalcodec.metrics.systems.codec2 import MODES, Codec2
from speechbrain_focalcodec.metrics.systems.focalcodec import FocalCodecSystem
from speechbrain_focalcodec.metrics.systems.opus import Opus
from speechbrain_focalcodec.metrics.systems.original import Original
from speechbrain_focalcodec.metrics.systems.registry import make_system
from speechbrain_focalcodec.metrics.systems.tools import run_tool

# Replacements of the tools. Codec2: each frame is the mean of its samples,
# with the mode's delay. Opus: unchanged samples, 60 bytes per packet, in Ogg
# pages as written by opusenc.
C2ENC = """
import sys, array
frame, size, delay = MODES[sys.argv[1]]
assert sys.argv[2:] == ["-", "-"]
pcm = array.array("h", sys.stdin.buffer.read())
for i in range(0, len(pcm) - frame + 1, frame):
    mean = round(sum(pcm[i : i + frame]) / frame)
    code = mean.to_bytes(2, "little", signed=True)
    sys.stdout.buffer.write(code + bytes(size - 2))
"""
C2DEC = """
import sys, array
frame, size, delay = MODES[sys.argv[1]]
data, pcm = sys.stdin.buffer.read(), [0] * delay
for i in range(0, len(data), size):
    pcm += [int.from_bytes(data[i : i + 2], "little", signed=True)] * frame
sys.stdout.buffer.write(array.array("h", pcm[: len(pcm) - delay]).tobytes())
"""
OPUSENC = """
import sys
if sys.argv[1] == "--version":
    sys.exit(print("opusenc of a test"))
assert sys.argv[1:] == (
    "--quiet --bitrate 6 --raw --raw-rate 16000 --raw-chan 1 - -".split()
)
def page(*packets):
    table = b"".join(bytes([255] * (n // 255) + [n % 255]) for n in packets)
    return b"OggS" + bytes(22) + bytes([len(table)]) + table
pcm = sys.stdin.buffer.read()
parts = [pcm[i : i + 60] for i in range(0, len(pcm), 60)]
out = page(19) + bytes(19) + page(600) + bytes(600)
for i in range(0, len(parts), 50):
    some = parts[i : i + 50]
    out += page(*map(len, some)) + b"".join(some)
sys.stdout.buffer.write(out)
"""
OPUSDEC = """
import sys
assert sys.argv[1:] == "--quiet --no-dither --rate 16000 - -".split()
data, place, pages = sys.stdin.buffer.read(), 0, []
while place < len(data):
    table = data[place + 27 : place + 27 + data[place + 26]]
    start = place + 27 + len(table)
    place = start + sum(table)
    pages.append(data[start:place])
sys.stdout.buffer.write(b"".join(pages[2:]))
"""


@pytest.fixture(scope="session")
def tools(tmp_path_factory):
    """Folder of the scripts that replace the tools."""
    folder = tmp_path_factory.mktemp("tools")
    modes = {
        name: (mode.frame, math.ceil(mode.bits / 8), mode.delay)
        for name, mode in MODES.items()
    }
    for name, code in {
        "c2enc": C2ENC,
        "c2dec": C2DEC,
        "opusenc": OPUSENC,
        "opusdec": OPUSDEC,
    }.items():
        path = folder / name
        path.write_text(f"#!{sys.executable} -IS\nMODES = {modes}{code}")
        path.chmod(0o755)
    return folder


@pytest.fixture
def fake_tools(tools, monkeypatch):
    monkeypatch.setenv("PATH", str(tools))


@pytest.fixture
def no_tools(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture(scope="session")
def codec():
    return FocalCodec.from_pretrained("focalcodec_mini_50hz")


def test_original():
    outputs = check_lengths(Original())
    assert [output.bits for output in outputs] == [16 * n for n in LENGTHS]
    sig = torch.rand(100)
    assert torch.equal(Original(8000).resynthesize([sig])[0].sig, sig)


# Codec2 and Opus


def test_codec2_keeps_lengths_and_counts_its_frames(fake_tools):
    # 4000 and the delay of 170 take 14 frames of 320.
    bits = [output.bits for output in check_lengths(Codec2("1300"))]
    assert bits == [52, 104, 104, 14 * 52]


@pytest.mark.parametrize("mode", ["2400", "700C"])
def test_codec2_is_aligned_at_its_bitrate(fake_tools, mode):
    system = make_system(f"codec2:{mode}")
    frame = MODES[mode].frame
    steps = torch.randint(-9, 9, (50,)).repeat_interleave(frame) / 2**5
    [output] = system.resynthesize([steps])
    assert torch.equal(output.sig, steps)
    nominal = float(mode.strip("C")) / 1000
    assert kbps(system, output) == pytest.approx(nominal, rel=0.03)


def test_codec2_with_its_delay(fake_tools):
    system = make_system("codec2:700C:raw")
    assert system.name == "codec2:700C:raw"
    frame, delay = MODES["700C"].frame, MODES["700C"].delay
    steps = torch.randint(-9, 9, (20,)).repeat_interleave(frame) / 2**5
    [output] = system.resynthesize([steps])
    assert torch.equal(output.sig[delay:], steps[:-delay])
    assert not output.sig[:delay].any() and output.bits == 20 * 28
    assert system.fingerprint != make_system("codec2:700C").fingerprint


def test_opus_keeps_signals_and_counts_packets(fake_tools):
    system = make_system("opus:6")
    outputs = check_lengths(system)
    # Heads, tags and segment tables are not counted.
    assert [output.bits for output in outputs] == [16 * n for n in LENGTHS]
    sig = demo(16000)
    [output] = system.resynthesize([sig])
    assert (output.sig - sig).abs().max() <= 2**-15
    assert output.bits == 16 * len(sig)
    assert system.name == "opus:6"
    assert system.fingerprint == "opusenc of a test, 6"


def test_opus_with_invalid_output(fake_tools):
    with pytest.raises(FocalCodecError, match="no Ogg file"):
        Opus(6).bits(b"RIFF" + bytes(100))


@pytest.mark.parametrize(
    ("spec", "package"), [("codec2:1300", "codec2"), ("opus:6", "opus-tools")]
)
def test_missing_tools(no_tools, spec, package):
    with pytest.raises(FocalCodecError, match=f"apt-get install {package} "):
        make_system(spec)


def test_failing_tools(tmp_path):
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho one >&2; echo the reason >&2; exit 3\n")
    tool.chmod(0o755)
    with pytest.raises(FocalCodecError, match="status 3: the reason$"):
        run_tool([str(tool), "-"])
    with pytest.raises(FocalCodecError, match="gone"):
        run_tool([str(tmp_path / "gone")])


# Needs Debian's codec2 and opus-tools.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "nominal", "least"),
    [
        *(("codec2:3200", 3.2, 0.78), ("codec2:1300", 1.3, 0.7)),
        *(("codec2:700C", 0.7, 0.66), ("opus:6", 6, 0.88)),
    ],
)
def test_real_tools(spec, nominal, least):
    system = make_system(spec)
    check_lengths(system)
    rate = system.sample_rate_output
    sig = demo(rate)
    [output] = system.resynthesize([sig])
    assert kbps(system, output) == pytest.approx(nominal, rel=0.03)
    late, early, aligned = (
        stoi(sig, output.sig.roll(round(shift * rate)), rate)
        for shift in (0.015, -0.015, 0)
    )
    assert aligned > max(late, early, least)


# FocalCodec


def test_focalcodec_is_the_same_in_a_batch_and_alone(codec):
    system = FocalCodecSystem(codec)
    outputs = check_lengths(system)
    for output in outputs:
        assert output.bits == 13 * len(output.toks)
        assert 0 <= output.toks.min() and output.seconds > 0
    sigs = [demo(16000)[:n] for n in (9000, 16000)]
    for sig, output in zip(sigs, system.resynthesize(sigs), strict=True):
        with torch.no_grad():
            expected = codec.resynthesize(sig[None])[0]
        torch.testing.assert_close(output.sig, expected, atol=1e-4, rtol=0)
        assert torch.equal(output.toks, system.encode(sig))
        decoded = system.decode(output.toks)[: len(sig)]
        torch.testing.assert_close(output.sig, decoded, atol=1e-4, rtol=0)
    assert kbps(system, output) == pytest.approx(0.65)
    assert system.codebook_size == 8192
    assert system.resynthesize([]) == []


def test_focalcodec_of_other_rates():
    folder = "tests/parity/causal_50hz"
    system = make_system(folder)
    sizes = [1, 500, 1700]
    outputs = system.resynthesize([torch.randn(n) for n in sizes])
    codec = system.codec
    assert [len(output.sig) for output in outputs] == [
        codec.output_num_samples(n) for n in sizes
    ]
    bits = math.log2(system.codebook_size)
    assert [output.bits for output in outputs] == [
        bits * codec.num_tokens(n) for n in sizes
    ]


def test_focalcodec_without_its_quantizer(codec):
    system = make_system("feats:focalcodec_mini_50hz")
    [output] = system.resynthesize([sig := demo(16000)[:16000]])
    with torch.no_grad():
        expected = codec.feats_to_sig(codec.sig_to_feats(sig[None]))[0]
    torch.testing.assert_close(output.sig, expected[: len(sig)])
    assert (output.bits, output.toks, system.codebook_size) == (None,) * 3
    assert system.name == "feats:focalcodec_mini_50hz"
    assert system.fingerprint != FocalCodecSystem(codec).fingerprint
    assert not system.converts
    with pytest.raises(ValueError, match="does not convert"):
        system.prepare_reference([sig])
    with pytest.raises(ValueError, match="does not convert"):
        system.convert(sig, None)


def test_focalcodec_converts(codec):
    system = FocalCodecSystem(codec, k=2)
    sig, voice = demo(16000)[:9000], demo(16000).flip(0)
    reference = system.prepare_reference([voice[:30000], voice[30000:]])
    output = system.convert(sig, reference)
    with torch.no_grad():
        expected = codec.convert_voice(sig[None], reference, k=2)[0]
    torch.testing.assert_close(output.sig, expected)
    assert torch.equal(output.toks, system.encode(sig))
    assert output.bits == 13 * len(output.toks)
    assert system.converts


def test_pretrained_focalcodec_keeps_its_options(codec):
    model = PretrainedFocalCodec.from_pretrained(
        "focalcodec_mini_50hz", run_opts={"device": "cpu"}, precision="bf16"
    )
    model.window, model.context = 1.0, 0.2
    system, plain = FocalCodecSystem(model), FocalCodecSystem(codec)
    assert system.name == plain.name
    assert system.fingerprint != plain.fingerprint
    [output] = system.resynthesize([torch.randn(24000)])
    assert output.sig.dtype == torch.float32
    assert len(output.sig) == 24000


def test_focalcodec_in_training_is_refused(codec):
    with pytest.raises(ValueError, match="eval"):
        FocalCodecSystem(FocalCodec.from_config(codec.config))


# Specs


def test_labels(fake_tools):
    system = make_system("the lowest=codec2:450")
    assert (system.name, system.mode) == ("the lowest", "450")
    # A path before the sign is not a label.
    with pytest.raises(ValueError, match="no codec of this name"):
        make_system("./a=original")


@pytest.mark.parametrize(
    "spec",
    [
        "",
        " ",
        "opus",
        "opus:",
        "opus:low",
        "codec3:1",
        "dac:",
        "codec2:1300:rare",
        "codec2:1300:",
        "feats:",
        "a:b:c",
    ],
)
def test_unknown_specs_name_the_forms(spec):
    with pytest.raises(ValueError, match="no codec of this name") as caught:
        make_system(spec)
    assert "codec2:MODE" in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("codec2:1301", "no mode '1301'"),
        ("opus:4", "6 to 256"),
        ("opus:nan", "6 to 256"),
        ("tests/parity", "config.json"),
    ],
)
def test_invalid_specs(spec, message):
    with pytest.raises(ValueError, match=message):
        make_system(spec)


def test_folders_called_like_a_codec(tmp_path, monkeypatch, codec):
    monkeypatch.chdir(tmp_path)
    codec.save_pretrained("original")
    codec.save_pretrained("a=b")
    with pytest.raises(ValueError, match="./original for the folder"):
        make_system("original")
    assert isinstance(make_system("./original"), FocalCodecSystem)
    assert make_system("a=b").name == "a=b"


def test_hub_revision(monkeypatch):
    asked = []

    def load(source, revision, device):
        asked.append((source, revision, device))
        raise CheckpointError("no hub here")

    monkeypatch.setattr(FocalCodec, "from_pretrained", load)
    for spec in ("me/mine@1234abc", "me/mine"):
        with pytest.raises(CheckpointError, match="no hub here"):
            make_system(spec, "cpu")
    assert asked == [("me/mine", "1234abc", "cpu"), ("me/mine", None, "cpu")]


ADAPTERS = """
from speechbrain_focalcodec.metrics.systems.original import Original

class Mine(Original):
    name = "mine"

def on(device):
    system = Mine()
    system.name = f"on {device}"
    return system

wrong = dict
"""


def test_adapters_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "their_codecs.py").write_text(ADAPTERS)
    (tmp_path / "their_broken.py").write_text("import nosuchlibrary")
    monkeypatch.syspath_prepend(tmp_path)
    mine = make_system("their_codecs:Mine")
    assert isinstance(mine, System) and mine.name == "mine"
    assert make_system("their_codecs:on", "cpu").name == "on cpu"
    for spec, message in [
        ("their_codecs:Other", "has no class or function Other"),
        ("their_codecs:wrong", "must make a .*System, not dict"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_system(spec)
    with pytest.raises(ImportError, match="no module nowhere.at.*PYTHONPATH"):
        make_system("nowhere.at:All")
    with pytest.raises(ModuleNotFoundError, match="nosuchlibrary"):
        make_system("their_broken:Mine")
