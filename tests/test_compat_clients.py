"""Programs as users of the published package write them, on this one.

Each is a short program of a shape that is found in public; only the import
differs from what runs with the published package.
"""

import copy

import numpy as np
import pytest
import soundfile
import torch
from conftest import PARITY
from datasets import Dataset
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from torchaudio.functional import resample

import speechbrain_focalcodec.compat as focalcodec

OFFLINE = str(PARITY / "offline_50hz")
CAUSAL = str(PARITY / "causal_50hz")


def load(name):
    codec = focalcodec.FocalCodec.from_pretrained(name)
    codec.eval().requires_grad_(False)
    return codec


def close(got, want, atol=1e-4):
    torch.testing.assert_close(got, want, rtol=0, atol=atol)


# A corpus becomes tokens, file by file


def tokenize(codec, files, folder):
    for file in files:
        sig, rate = soundfile.read(file, dtype="float32", always_2d=True)
        sig = torch.from_numpy(sig).mean(dim=1)[None]
        sig = resample(sig, rate, codec.sample_rate)
        with torch.no_grad():
            toks = codec.sig_to_toks(sig)
        np.save(folder / f"{file.stem}.npy", toks[0].short().cpu().numpy())


def test_tokenizing_files(tmp_path):
    codec = load(OFFLINE)
    sigs = {"a": (16000, torch.randn(8000) / 10)}
    sigs["b"] = (24000, torch.randn(30000, 2) / 10)
    for name, (rate, sig) in sigs.items():
        soundfile.write(tmp_path / f"{name}.wav", sig.numpy(), rate, "FLOAT")
    tokenize(codec, sorted(tmp_path.glob("*.wav")), tmp_path)
    toks = torch.from_numpy(np.load(tmp_path / "a.npy")).long()
    want = codec.sig_to_toks(sigs["a"][1][None])
    assert torch.equal(toks[None], want)
    toks = torch.from_numpy(np.load(tmp_path / "b.npy")).long()
    assert len(toks) == 62
    rec_sig = codec.toks_to_sig(toks[None], output_length=20000)
    assert rec_sig.shape == (1, 20000)


# Speech separation: the network works on quantized features


class Separator(nn.Module):
    """Two masks for the features of a mixture."""

    def __init__(self, codec):
        super().__init__()
        self.codec = codec
        dim = codec.decoder.input_dim
        self.rnn = nn.GRU(dim, 2 * dim, batch_first=True)

    def forward(self, sig, length):
        with torch.no_grad():
            qfeats = self.codec.sig_to_qfeats(sig, length=length)
        masks = self.rnn(qfeats)[0].unflatten(-1, (2, -1)).sigmoid()
        return (masks * qfeats[:, :, None]).transpose(1, 2)  # [B, S, N, C]

    def separate(self, sig, length):
        feats = self(sig, length).flatten(0, 1)
        toks = self.codec.feats_to_toks(feats)
        return (
            toks,
            self.codec.toks_to_sig(toks),
            self.codec.feats_to_sig(feats),
        )


def test_separating_mixtures():
    codec = load(OFFLINE)
    model = Separator(codec)
    mixture, sources = torch.randn(2, 8000) / 10, torch.randn(4, 8000) / 10
    length = torch.tensor([1.0, 0.75])
    codes = codec.sig_to_codes(sources)
    # Estimates are compared after the quantizer's side of the codec, too.
    lats = codec.feats_to_lats(model(mixture, length).flatten(0, 1))
    loss = (codes - lats).square().mean()
    loss.backward()
    assert all(x.grad.abs().sum() > 0 for x in model.rnn.parameters())
    assert all(x.grad is None for x in codec.parameters())
    with torch.no_grad():
        toks, from_toks, from_feats = model.separate(mixture, length)
    assert toks.shape == (4, 24)
    assert from_toks.shape == from_feats.shape == (4, 7680)
    qfeats = codec.toks_to_qfeats(toks)
    close(codec.feats_to_sig(qfeats), from_toks)


# Live audio: an object holds the states


class Live:
    """Waveform in, waveform out, a block of any size at a time."""

    def __init__(self, codec):
        self.codec = codec
        self.reset()

    def reset(self):
        self.buffer = torch.zeros(1, 0)
        self.encoding, self.decoding = [], []

    @torch.no_grad()
    def push(self, block):
        self.buffer = torch.cat([self.buffer, block], dim=1)
        out = [torch.zeros(1, 0)]
        while self.buffer.shape[1] >= self.codec.chunk_size:
            chunk = self.buffer[:, : self.codec.chunk_size]
            self.buffer = self.buffer[:, self.codec.chunk_size :]
            toks, *self.encoding = self.codec.sig_to_toks(
                chunk, *self.encoding, return_state=True
            )
            rec_sig, *self.decoding = self.codec.toks_to_sig(
                toks, *self.decoding, return_state=True
            )
            out.append(rec_sig)
        return torch.cat(out, dim=1)


def test_streaming_with_states():
    codec = load(CAUSAL)
    expected = load_file(PARITY / "causal_50hz" / "expected.safetensors")
    sig, live = expected["a.sig"], Live(codec)
    for _ in range(2):
        live.reset()
        blocks = sig.split(3000, dim=1)
        got = torch.cat([live.push(block) for block in blocks], dim=1)
        close(got, expected["stream.rec_sig"][:, : got.shape[1]])
        assert got.shape[1] >= expected["stream.rec_sig"].shape[1] - 1920
    # A state can be resumed in another call.
    other = Live(codec)
    other.buffer, other.encoding = live.buffer, copy.deepcopy(live.encoding)
    other.decoding = copy.deepcopy(live.decoding)
    block = torch.randn(1, 2560)
    assert torch.equal(live.push(block), other.push(block))


# A language model whose input are the features of the tokens so far


class LanguageModel(nn.Module):
    """Tokens to the next one; the codec's features are its embedding."""

    def __init__(self, codec):
        super().__init__()
        self.codec = codec
        self.rnn = nn.GRU(codec.decoder.input_dim, 32, batch_first=True)
        self.head = nn.Linear(32, codec.quantizer.codebook_size)

    def step(self, toks, memory=None, state=()):
        qfeats, *state = self.codec.toks_to_qfeats(
            toks, *state, return_state=True
        )
        hidden, memory = self.rnn(qfeats, memory)
        return self.head(hidden), memory, state

    @torch.no_grad()
    def generate(self, prompt, num, seed):
        generator = torch.Generator().manual_seed(seed)
        scores, memory, state = prompt
        toks = []
        for _ in range(num):
            scores = scores[:, -1].softmax(-1)
            toks.append(scores.multinomial(1, generator=generator))
            scores, memory, state = self.step(toks[-1], memory, state)
        return torch.cat(toks, dim=1)


def test_a_language_model_on_quantized_features():
    codec = load(str(PARITY / "causal_50hz_lookahead0"))
    model = LanguageModel(codec)
    toks = torch.randint(codec.quantizer.codebook_size, (2, 50))
    scores, *_ = model.step(toks)
    loss = nn.functional.cross_entropy(scores[:, :-1].mT, toks[:, 1:])
    loss.backward()
    assert model.rnn.weight_ih_l0.grad.abs().sum() > 0
    # Token by token equals a single call.
    memory, state, steps = None, (), []
    for tok in toks.split(1, dim=1):
        score, memory, state = model.step(tok, memory, state)
        steps.append(score)
    close(torch.cat(steps, 1), scores)
    # Two continuations of one prompt, and the first one again.
    prompt = model.step(toks)
    first, other, again = (model.generate(prompt, 40, i) for i in (0, 1, 0))
    assert torch.equal(first, again) and not torch.equal(first, other)


# Adapters within the compressor


class Adapter(nn.Module):
    """A layer of the compressor with another residual."""

    def __init__(self, layer, dim):
        super().__init__()
        self.layer = layer
        self.residual = nn.Linear(dim, dim)
        nn.init.zeros_(self.residual.weight)
        nn.init.zeros_(self.residual.bias)

    def forward(self, input, left_contexts=None):
        output, left_contexts = self.layer(input, left_contexts)
        return output + self.residual(output), left_contexts


class LoRA(nn.Module):
    """A linear layer with a product of two small matrices beside it."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, input):
        return self.base(input) + self.up(self.down(input))


@pytest.mark.parametrize("name", [OFFLINE, CAUSAL])
def test_surgery_on_the_compressor(name):
    plain, codec = load(name), load(name)
    layers = codec.compressor.layers
    dims = codec.compressor.hidden_dims
    layers[1] = Adapter(layers[1], dims[1])
    for part in list(codec.compressor.modules()):
        for child, module in list(part.named_children()):
            if isinstance(module, nn.Linear) and child == "in_proj":
                setattr(part, child, LoRA(module))
    trained = [x for x in codec.parameters() if x.requires_grad]
    assert len(trained) == 2 + 2 * 2 * len(layers)
    sig = torch.randn(2, 16000) / 10
    length = torch.tensor([1.0, 0.5])
    # Nothing has changed yet.
    toks = plain.sig_to_toks(sig, length=length)
    assert torch.equal(codec.sig_to_toks(sig, length=length), toks)
    # Only the inserted parameters are trained.
    optimizer = torch.optim.SGD(trained, lr=10.0)
    lats = codec.sig_to_lats(sig)
    (lats - torch.randn_like(lats)).square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        changed = codec.sig_to_lats(sig)
        assert (changed - lats).abs().max() > 1e-3
        if not codec.causal:
            return
        state, chunks = [], []
        for chunk in sig.split(codec.chunk_size, dim=1):
            part, *state = codec.sig_to_lats(chunk, *state, return_state=True)
            chunks.append(part)
    close(torch.cat(chunks, 1), changed)


def test_a_compressor_of_other_tokens():
    codec = load(OFFLINE)
    compressor = codec.compressor
    width = compressor.out_proj.in_features
    compressor.out_proj = nn.Linear(width, 8)
    codec.quantizer = focalcodec.bsq.BinarySphericalQuantizer(256)
    codec.decompressor.in_proj = nn.Linear(
        8, codec.decompressor.in_proj.out_features
    )
    toks = codec.sig_to_toks(torch.randn(1, 16000))
    assert toks.max() > 31
    assert codec.codebook.shape == (256, 8)
    assert codec.toks_to_sig(toks).shape == (1, 15680)


# A data set with a column of tokens, and batches of it


def test_a_data_loader_of_a_mapped_data_set():
    codec = load(OFFLINE)
    sigs = [torch.randn(size) / 10 for size in (8000, 16000, 12000)]
    data = Dataset.from_dict({"sig": [sig.tolist() for sig in sigs]})

    def add_toks(rows):
        rows = [torch.tensor(sig) for sig in rows["sig"]]
        longest = max(map(len, rows))
        length = torch.tensor([len(sig) / longest for sig in rows])
        with torch.no_grad():
            toks = codec.sig_to_toks(
                pad_sequence(rows, batch_first=True), length=length
            )
        nums = [1 + (len(sig) - 400) // 320 for sig in rows]
        return {
            "toks": [
                x[:num].tolist() for x, num in zip(toks, nums, strict=True)
            ]
        }

    def collate(rows):
        return pad_sequence([row["toks"] for row in rows], batch_first=True)

    data = data.map(add_toks, batched=True, remove_columns=["sig"])
    loader = DataLoader(
        data.with_format("torch"), batch_size=2, collate_fn=collate
    )
    batches = list(loader)
    assert [batch.shape for batch in batches] == [(2, 49), (1, 37)]
    for toks, sig in zip([*batches[0], *batches[1]], sigs, strict=True):
        alone = codec.sig_to_toks(sig[None])[0]
        assert torch.equal(toks[: len(alone)], alone)
    assert codec.toks_to_sig(batches[0]).shape == (2, 49 * 320)
