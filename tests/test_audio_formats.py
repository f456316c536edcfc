"""Audio files as other programs leave them: tags, pipes, cuts, lies."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechbrain_focalcodec.audio import read_audio
from speechbrain_focalcodec.audio.slices import read_slice
from speechbrain_focalcodec.errors import AudioError

CASES = Path(__file__).parent / "audio_cases"

# Odd, so that formats that pad have something to pad.
LENGTH = 16001
UNKNOWN = (0, 0xFFFFFFFF, 0x7FFFF000)


def noise(num_samples=LENGTH, channels=1):
    rng = np.random.default_rng(0)
    return 0.1 * rng.standard_normal((num_samples, channels))


def encode(kind, subtype=None, sig=None, sample_rate=16000, **options):
    """The bytes of a file."""
    stream = io.BytesIO()
    sig = noise() if sig is None else sig
    soundfile.write(
        stream, sig, sample_rate, format=kind, subtype=subtype, **options
    )
    return stream.getvalue()


def replaced(data, position, new):
    return data[:position] + new + data[position + len(new) :]


@pytest.fixture
def length(tmp_path):
    """Gives the length of a file's audio, from its bytes."""

    def read(data, name="a.wav"):
        path = tmp_path / name
        path.write_bytes(data)
        return len(read_audio(path)[0])

    return read


# MP3


def syncsafe(number):
    return bytes(number >> shift & 0x7F for shift in (21, 14, 7, 0))


def ape_tag(has_header):
    items = b"\xff\xfb\x90\x64" * 10
    size = struct.pack("<III", 2000, len(items) + 32, 1)
    head = b"APETAGEX" + size + struct.pack("<IQ", 0xA0000000, 0)
    flags = 0x80000000 if has_header else 0
    foot = b"APETAGEX" + size + struct.pack("<IQ", flags, 0)
    return (head if has_header else b"") + items + foot


def lyrics_tag():
    tag = b"LYRICSBEGININD0000210LYR00008\xff\xfb\x90\x64text"
    return tag + b"%06d" % len(tag) + b"LYRICS200"


# Their content looks like frames.
ID3V1 = b"TAG" + b"\xff\xfb\x90\x64" * 31 + b"x"
ID3V2 = b"ID3\x03\0\0" + syncsafe(300) + b"\xff\xfb\x90" * 100
FOOTED = b"ID3\x04\0\x10" + syncsafe(300) + b"\xff\xfb\x90" * 100
FOOTED += b"3DI\x04\0\x10" + syncsafe(300)

BEFORE = {
    "none": b"",
    "id3v2": ID3V2,
    "footer": FOOTED,
    "two": FOOTED + ID3V2,
    "apev2": ape_tag(True),
    "padded": ID3V2 + bytes(1000),
}
AFTER = {
    "none": b"",
    "id3v1": ID3V1,
    "apev1": ape_tag(False),
    "apev2": ape_tag(True),
    "both": ape_tag(True) + ID3V1,
    "lyrics1": b"LYRICSBEGIN\xff\xfb\x90\x64LYRICSEND" + ID3V1,
    "lyrics2": lyrics_tag() + ID3V1,
    "all": ape_tag(False) + lyrics_tag() + ID3V1,
    "id3v2": FOOTED,
    "zeros": bytes(77),
    "zeros before": bytes(30) + ID3V1,
    "zeros after": ID3V1 + bytes(20),
}


def encode_mp3(sample_rate=16000, channels=1, mode="VARIABLE"):
    """Loud and then quiet: the first frame says little of the others."""
    sig = noise(20000, channels) * np.repeat([1.0, 1e-4], 10000)[:, None]
    return encode(
        *("MP3", None, sig, sample_rate),
        bitrate_mode=mode,
        compression_level=0.5,
    )


def first_frame(data):
    """Where the frame of the encoder's header ends."""
    return data.index(data[:2], 100)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("VARIABLE_0.5_2s_loudstart_noxing.mp3", 33408),
        ("VARIABLE_0.0_2s_quietstart_noxing.mp3", 33408),
        ("mp3_ape.mp3", 32000),
        ("ogg_no_eos.ogg", 32000),
    ],
)
def test_complete_files_of_other_programs_are_read(name, wanted):
    sig, _ = read_audio(CASES / name)
    assert len(sig) == wanted
    last = read_slice(str(CASES / name), wanted - 2000, wanted)
    assert len(last) == 2000


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("after", AFTER)
def test_tags_are_skipped_by_their_sizes(length, before, after):
    data = encode_mp3()
    bare = data[first_frame(data) :]
    assert length(BEFORE[before] + data + AFTER[after], "a.mp3") == 20000
    got = length(BEFORE[before] + bare + AFTER[after], "a.mp3")
    assert got == length(bare, "a.mp3") > 20000


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
@pytest.mark.parametrize(
    ("sample_rate", "channels"),
    [(8000, 1), (16000, 2), (24000, 1), (32000, 1), (44100, 2), (48000, 1)],
)
def test_mp3_without_a_header_is_read_whole(
    tmp_path, sample_rate, channels, mode
):
    data = encode_mp3(sample_rate, channels, mode)
    (tmp_path / "whole.mp3").write_bytes(data)
    whole, _ = read_audio(tmp_path / "whole.mp3")
    (tmp_path / "bare.mp3").write_bytes(data[first_frame(data) :])
    bare, _ = read_audio(tmp_path / "bare.mp3")
    assert len(whole) == 20000
    assert len(bare) % (1152 if sample_rate >= 32000 else 576) == 0
    # The header would give the padding of the encoder.
    assert (bare[1105:][:20000] - whole).abs().max() < 1e-4


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 10, 1000])
@pytest.mark.parametrize("after", ["none", "id3v1", "apev1"])
def test_mp3_cut_within_a_frame_is_refused(length, cut, after):
    data = encode_mp3()
    for whole in (data, data[first_frame(data) :]):
        # A cut between frames is none that can be noticed.
        cuts = [cut, cut + 1] if cut == 1000 else [cut]
        refused = 0
        for number in cuts:
            try:
                length(whole[:-number] + AFTER[after], "a.mp3")
            except AudioError as error:
                assert "is cut short" in str(error)
                refused += 1
        assert refused


@pytest.mark.parametrize("counts_itself", [False, True])
def test_vbri_headers_are_read(length, counts_itself):
    data = encode_mp3()
    bare = data[first_frame(data) :]
    wanted = length(bare, "a.mp3")
    header = bytearray(first_frame(data))
    header[:4] = data[:4]
    header[36:40] = b"VBRI"
    header[50:54] = struct.pack(">I", wanted // 576 + counts_itself)
    assert length(bytes(header) + bare, "a.mp3") == wanted
    with pytest.raises(AudioError, match="cut short"):
        length(bytes(header) + bare[: len(bare) // 2], "a.mp3")


def test_mp3_of_free_format_is_read(length):
    data = encode_mp3(mode="CONSTANT")
    bare = bytearray(data[first_frame(data) :])
    wanted = length(bytes(bare), "a.mp3")
    size = len(bare) // (wanted // 576)
    assert len(bare) % size == 0
    for start in range(0, len(bare), size):
        bare[start + 2] &= 0x0F
    assert length(bytes(bare), "a.mp3") == wanted
    with pytest.raises(AudioError, match="cut short"):
        length(bytes(bare[:-5]), "a.mp3")


def test_mp3_files_in_one_are_read_to_the_end(length):
    data = encode_mp3()
    bare = length(data[first_frame(data) :], "a.mp3")
    for between in (b"", ID3V1, ID3V2):
        assert length(data + between + data, "a.mp3") == 2 * bare


def test_damage_within_an_mp3_is_refused(length):
    bare = (CASES / "VARIABLE_0.5_2s_loudstart_noxing.mp3").read_bytes()
    middle = bare.index(bare[:2], len(bare) // 2)
    with pytest.raises(AudioError, match="damaged at byte"):
        length(bare[:middle] + b"junk" * 10 + bare[middle:], "a.mp3")


# Sizes that programs write when they do not know them


@pytest.mark.parametrize("total", UNKNOWN)
@pytest.mark.parametrize("size", UNKNOWN)
@pytest.mark.parametrize("kind", ["WAV", "RIFX", "AIFF"])
def test_unknown_sizes_of_32_bits_mean_to_the_end(length, kind, total, size):
    big = kind != "WAV"
    if kind == "AIFF":
        data = encode("AIFF", "PCM_16")
    else:
        data = encode("WAV", "PCM_16", endian="BIG" if big else "LITTLE")
    order = ">I" if big else "<I"
    at = data.index(b"SSND" if kind == "AIFF" else b"data") + 4
    known = data[4:8]
    data = replaced(data, at, struct.pack(order, size))
    assert length(data) == LENGTH
    assert length(replaced(data, 4, struct.pack(order, total))) == LENGTH
    # SoX adds this to its placeholder for the size.
    more = struct.pack(order, (total + 36) % 2**32)
    assert length(replaced(data, 4, more)) == LENGTH
    assert data[4:8] == known


@pytest.mark.parametrize("size", [0, 2**64 - 1, 2**63 - 1])
def test_unknown_sizes_of_64_bits_mean_to_the_end(length, size):
    number = struct.pack("<Q", size)
    data = encode("RF64", "PCM_16")
    at = data.index(b"ds64") + 8
    assert length(replaced(data, at, 2 * number)) == LENGTH
    data = encode("W64", "PCM_16")
    at = data.index(b"data") + 16
    assert length(replaced(data, at, number)) == LENGTH
    assert length(replaced(replaced(data, at, number), 16, number)) == LENGTH
    data = encode("CAF", "PCM_16")
    at = data.rindex(b"data") + 4
    assert length(replaced(data, at, struct.pack(">q", -1))) == LENGTH


def test_a_silent_file_of_unknown_size_is_read(length):
    data = encode("WAV", "PCM_16", 0 * noise(1000))
    data = replaced(data, data.index(b"data") + 4, bytes(4))
    assert length(data) == 1000
    # But one that has no audio stays without.
    for after in (b"", b"LIST\4\0\0\0abcd"):
        with pytest.raises(AudioError, match="holds no audio"):
            size = struct.pack("<I", 36 + len(after))
            length(replaced(data[:44] + after, 4, size))


@pytest.mark.parametrize("size", UNKNOWN)
def test_unknown_sizes_of_au_and_sphere_mean_to_the_end(length, size):
    data = encode("AU", "PCM_16")
    assert length(replaced(data, 8, struct.pack(">I", size))) == LENGTH
    data = encode("NIST", "PCM_16")
    count = b"sample_count -i 16001"
    assert length(data.replace(count, b"sample_count -i 0    ")) == LENGTH


def flac_claiming(data, count):
    fields = int.from_bytes(data[18:26], "big") >> 36 << 36 | count
    return replaced(data, 18, fields.to_bytes(8, "big"))


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
@pytest.mark.parametrize("after", ["none", "id3v1", "zeros"])
def test_flac_of_unknown_length_is_read(tmp_path, length, subtype, after):
    data = flac_claiming(encode("FLAC", subtype), 0) + AFTER[after]
    assert length(data, "a.flac") == LENGTH
    assert length(ID3V2 + data, "a.flac") == LENGTH
    assert len(read_slice(str(tmp_path / "a.flac"), 16000, LENGTH)) == 1
    with pytest.raises(AudioError, match="cut short"):
        length(data[:-200], "a.flac")


@pytest.mark.parametrize("count", [1, 8000, LENGTH - 1, LENGTH + 1, 2**36 - 1])
def test_flac_that_counts_other_samples_is_refused(length, count):
    with pytest.raises(AudioError, match="should have|its header counts"):
        length(flac_claiming(encode("FLAC"), count), "a.flac")


# Files that are too short or too long


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        *[("WAV", it) for it in ("PCM_16", "FLOAT", "IMA_ADPCM")],
        *[("CAF", it) for it in ("PCM_16", "ALAC_16", "FLOAT")],
        *[("AIFF", it) for it in ("PCM_16", "FLOAT", "PCM_24")],
        *[("AU", it) for it in ("PCM_16", "ULAW")],
        *[(it, "PCM_16") for it in ("W64", "RF64", "NIST", "FLAC", "WAVEX")],
        *[("OGG", it) for it in ("VORBIS", "OPUS")],
    ],
)
@pytest.mark.parametrize("cut", [2, 3, 4, 5, 50, 3000])
def test_files_cut_short_are_refused(length, kind, subtype, cut):
    data = encode(kind, subtype)
    assert length(data) >= LENGTH
    with pytest.raises(AudioError, match=r"a\.wav: "):
        length(data[:-cut])


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("CAF", "ALAC_16"), ("W64", "PCM_16"), ("RF64", "PCM_16")],
)
def test_a_missing_last_byte_is_refused(length, kind, subtype):
    data = encode(kind, subtype, noise(LENGTH - 1))
    assert length(data) == LENGTH - 1
    with pytest.raises(AudioError, match="cut short"):
        length(data[:-1])


def test_sizes_of_half_the_samples_are_refused(length):
    data = encode("WAV", "PCM_16")
    at = data.index(b"data") + 4
    for size in (2, LENGTH - 1):
        wrong = replaced(data, at, struct.pack("<I", size))
        with pytest.raises(AudioError, match="goes on for"):
            length(wrong)
        with pytest.raises(AudioError, match="goes on for"):
            length(replaced(wrong, 4, struct.pack("<I", size + 36)))
    data = encode("RF64", "PCM_16")
    at = data.index(b"ds64") + 16
    with pytest.raises(AudioError, match="cut short"):
        length(replaced(data, at, struct.pack("<Q", 2**40)))
    data = encode("NIST", "PCM_16")
    with pytest.raises(AudioError, match="goes on for"):
        length(data.replace(b"-i 16001", b"-i 8001 "))


@pytest.mark.parametrize(
    "chunks",
    [
        b"LIST\4\0\0\0abcd",
        b"LIST\5\0\0\0abcde\0id3 \2\0\0\0ab",
        b"LIST\5\0\0\0abcdeid3 \2\0\0\0ab",
        b"LIST\5\0\0\0abcde",
        ID3V1,
        bytes(500),
    ],
)
@pytest.mark.parametrize("has_padding", [False, True])
def test_chunks_after_the_audio_are_no_audio(length, chunks, has_padding):
    data = encode("WAV", "PCM_U8")
    assert len(data) == 44 + LENGTH + 1
    data = (data if has_padding else data[:-1]) + chunks
    assert length(data) == LENGTH
    assert length(replaced(data, 4, struct.pack("<I", len(data) - 8))) == LENGTH


def test_two_files_in_one_are_refused(length):
    for kind in ("WAV", "AIFF", "AU", "OGG"):
        with pytest.raises(AudioError, match="goes on for|another stream"):
            length(2 * encode(kind))


def test_an_ogg_file_cut_between_pages_causes_a_warning(
    length, caplog, tmp_path
):
    data = encode("OGG", "VORBIS")
    assert length(data, "a.ogg") == LENGTH and not caplog.records
    assert length(data[: data.rindex(b"OggS")], "a.ogg") < LENGTH
    assert "may be cut short" in caplog.text
    with pytest.raises(AudioError, match="may be cut short"):
        read_audio(tmp_path / "a.ogg", strict=True)


# Doubtful signals

TONE = 0.3 * np.sin(np.arange(8000) / 10)


@pytest.mark.parametrize(
    ("sig", "words"),
    [
        (np.stack([TONE, -TONE], 1), "2 channels cancel"),
        (np.stack([TONE, -0.8 * TONE], 1), "--channel 0"),
        (np.stack([TONE, 0 * TONE], 1), None),
        (np.stack([TONE] + 20 * [0 * TONE], 1), None),
        (32767 * TONE, "far outside"),
        (3 * TONE, None),
        (1e-4 * TONE, "nearly silent"),
        (0 * TONE, "nearly silent"),
        (0.1 * TONE, None),
    ],
)
def test_strange_signals_cause_a_warning(tmp_path, caplog, sig, words):
    path = tmp_path / "a.wav"
    soundfile.write(path, sig, 16000, subtype="FLOAT")
    read_audio(path)
    if words is None:
        assert not caplog.records
        assert len(read_audio(path, strict=True)[0]) == 8000
        return
    (record,) = caplog.records
    assert words in record.getMessage() and "a.wav" in record.getMessage()
    with pytest.raises(AudioError, match="a.wav: .*" + words):
        read_audio(path, strict=True)


def test_one_channel_is_read(tmp_path, caplog):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.stack([TONE, -TONE], 1), 16000)
    left, _ = read_audio(path, channel=0)
    right, _ = read_audio(path, channel=1)
    assert left.std() > 0.1 and (left + right).abs().max() < 1e-4
    assert not caplog.records
    part = read_slice(str(path), 100, 200, channel=1)
    assert np.array_equal(part, right[100:200].numpy())
    with pytest.raises(AudioError, match=r"no channel 2.*0\.\.1"):
        read_audio(path, channel=2)
