"""Embeddings of voices and the choice of references."""

import numpy as np
import pytest
import soundfile
import torch
from make_tokens import make_tokens
from safetensors.torch import save_file

from speechbrain_focalcodec.data.manifest import write_manifest
from speechbrain_focalcodec.downstream import speakers
from speechbrain_focalcodec.downstream.speakers import (
    SpeakerEmbeddings,
    Utterance,
    VoiceEmbedder,
    manifest_utterances,
    token_utterances,
)
from speechbrain_focalcodec.errors import DataError


class Embed:
    """Returns the first three samples and counts calls."""

    name = "first"

    def __init__(self):
        self.asked = []

    def __call__(self, sig):
        self.asked.append(float(sig[0]))
        return sig[:3] if sig[0] else None


def utterances(*ids, speaker="Ann"):
    for number, utt_id in enumerate(ids, start=1):
        sig = torch.full((9,), float(number))
        yield Utterance(utt_id, speaker, lambda sig=sig: sig)


def test_references_are_others_of_the_speaker():
    ids = [f"{speaker}{i}" for speaker in "ab" for i in range(5)]
    voices = SpeakerEmbeddings(ids, [x[0] for x in ids], torch.eye(10))
    for utt_id in ids:
        chosen = {voices.reference(utt_id, epoch) for epoch in range(60)}
        assert chosen == {x for x in ids if x[0] == utt_id[0]} - {utt_id}
    same = SpeakerEmbeddings(ids, [x[0] for x in ids], torch.eye(10))
    assert voices(ids, 3).equal(same(ids, 3))
    other = SpeakerEmbeddings(ids, [x[0] for x in ids], torch.eye(10), seed=1)
    assert not voices(ids, 3).equal(other(ids, 3))


def test_a_single_utterance_is_its_own_reference():
    vectors = torch.tensor([[1.0], [2.0], [0.0], [4.0], [5.0]])
    people = ["x", "y", "y", None, None]
    voices = SpeakerEmbeddings(list("abcde"), people, vectors)
    # c is silence: it is not used as a reference, but has one.
    for epoch in range(9):
        found = voices(list("abcde"), epoch)[:, 0].tolist()
        assert found == [1, 2, 2, 4, 5]


def test_embeddings_are_computed_once(tmp_path):
    path = tmp_path / "save" / "voices.safetensors"
    embed = Embed()
    voices = SpeakerEmbeddings.compute(utterances("a", "b"), embed, path)
    assert embed.asked == [1, 2]
    assert voices.dim == 3 and len(voices) == 2
    again = SpeakerEmbeddings.compute(utterances("a", "b", "c"), embed, path)
    assert embed.asked == [1, 2, 3]
    assert again.vectors[:, 0].tolist() == [1, 2, 3]
    fewer = SpeakerEmbeddings.compute(utterances("b"), embed, path)
    assert fewer.vectors[:, 0].tolist() == [2]
    SpeakerEmbeddings.compute(utterances("a", "b", "c"), embed, path)
    assert len(embed.asked) == 3


def test_an_interruption_loses_little(tmp_path, monkeypatch):
    monkeypatch.setattr(speakers, "SAVE_INTERVAL", -1.0)
    path, embed = tmp_path / "voices.safetensors", Embed()

    def interrupted():
        yield Utterance("silent", "Ann", lambda: torch.zeros(9))
        yield from utterances("a", "b")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SpeakerEmbeddings.compute(interrupted(), embed, path)
    SpeakerEmbeddings.compute(utterances("a", "b", "c"), embed, path)
    assert embed.asked == [0, 1, 2, 3]


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "voices.safetensors"
    SpeakerEmbeddings.compute(utterances("a"), Embed(), path)
    with pytest.raises(DataError, match="no embeddings of voices by other"):
        SpeakerEmbeddings.compute(utterances("a"), lambda sig: sig[:3], path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        SpeakerEmbeddings.compute(utterances("a"), Embed(), path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(DataError, match="no embeddings of voices by first"):
        SpeakerEmbeddings.compute(utterances("a"), Embed(), path)


def test_silence_and_duplicate_ids_are_refused():
    def silent():
        yield Utterance("a", "Ann", lambda: torch.zeros(9))

    with pytest.raises(DataError, match="none of 1 utterances"):
        SpeakerEmbeddings.compute(silent(), Embed())
    with pytest.raises(DataError, match="several utterances .* a"):
        SpeakerEmbeddings.compute(utterances("a", "b", "a"), Embed())
    voices = SpeakerEmbeddings.compute(utterances("a"), Embed())
    with pytest.raises(DataError, match="no embedding of z's voice"):
        voices(["z"])


def test_utterances_of_a_manifest(tmp_path):
    entries = {}
    for utt_id, person in (("a", "Ann"), ("b", None)):
        soundfile.write(tmp_path / f"{utt_id}.wav", np.ones(800) / 4, 8000)
        entries[utt_id] = {
            "wav": f"{{data_root}}/{utt_id}.wav",
            "num_samples": 800,
            "sample_rate": 8000,
            "spk_id": person,
        }
    write_manifest(tmp_path / "train.json", entries)
    found = list(manifest_utterances(tmp_path / "train.json", tmp_path))
    assert [x[:2] for x in found] == [("a", "Ann"), ("b", None)]
    assert {x.read().shape for x in found} == {(1600,)}


class Codec:
    """Decodes a token to 240 samples of its number, at 24 kHz."""

    fingerprint = "cd" * 32
    sample_rate_output = 24000

    def parameters(self):
        yield torch.zeros(1)

    def decode(self, toks):
        sig = toks.float().repeat_interleave(240, dim=1) / 8192
        return sig, torch.tensor([sig.shape[1]])


def test_utterances_of_tokens(tmp_path):
    folder = make_tokens(tmp_path / "tokens", fingerprint=Codec.fingerprint)
    found = list(token_utterances(folder, Codec()))
    assert len(found) == 29
    assert found[0].id == "utt-0000" and found[0].speaker == "speaker0"
    lengths = speakers.TokenDataset(folder).lengths
    for i in (0, 28):
        assert found[i].read().shape == (160 * lengths[i],)
    Codec.fingerprint, right = "ef" * 32, Codec.fingerprint
    with pytest.raises(DataError, match="not by the model"):
        next(token_utterances(folder, Codec()))
    Codec.fingerprint = right


def test_voices_by_resemblyzer():
    embed = VoiceEmbedder()
    time = torch.arange(24000) / 16000
    # Modulated harmonics, similar to voices.
    sigs = [
        sum(torch.sin(2 * torch.pi * f0 * k * time) / k for k in range(1, 20))
        * (0.5 + 0.5 * torch.sin(2 * torch.pi * 4 * time))
        for f0 in (110, 113, 260)
    ]
    low, near, high = (embed(sig * 0.1) for sig in sigs)
    assert low.shape == (256,) and low.norm() == pytest.approx(1, abs=1e-3)
    assert low @ near > low @ high
    assert embed(torch.zeros(0)) is None
    assert embed(torch.full((16000,), torch.nan)) is None
