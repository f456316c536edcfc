"""A GPU's rules, on a machine that needs none.

PyTorch's fake tensors know their shape, type and device, and hold no values.
On a fake GPU, as on a real one, a tensor left on the CPU is an error; so is
here whatever waits for the GPU and is not in WAITS. Where a GPU is available,
the same tests run on it, too.
"""

import importlib
import pkgutil
import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import speechbrain as sb
import torch
from causal_codecs import CODECS, make_codec
from test_training import CONFIG, make_brain
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import speechbrain_focalcodec
from speechbrain_focalcodec import FocalCodec, modules
from speechbrain_focalcodec.acceleration import accelerate
from speechbrain_focalcodec.data.manifest import write_manifest
from speechbrain_focalcodec.downstream.asr import ASRBrain
from speechbrain_focalcodec.downstream.classification import (
    ClassificationBrain,
)
from speechbrain_focalcodec.downstream.front_ends import make_front_end
from speechbrain_focalcodec.downstream.networks import (
    BiLSTM,
    Conformer,
    PooledBiLSTM,
)
from speechbrain_focalcodec.downstream.text import TextTokenizer
from speechbrain_focalcodec.downstream.token_scores import (
    CodeMixture,
    TokenSoftmax,
)
from speechbrain_focalcodec.modules.bsq import BinarySphericalQuantizer
from speechbrain_focalcodec.modules.mel import LogMel
from speechbrain_focalcodec.modules.token_embedding import TokenEmbedding
from speechbrain_focalcodec.streaming import (
    StreamingDecoder,
    StreamingEncoder,
    StreamingResynthesizer,
)
from speechbrain_focalcodec.streaming.pool import StreamPool
from speechbrain_focalcodec.training.averages import CodeCounts
from speechbrain_focalcodec.training.discriminators import CompactDiscriminator
from speechbrain_focalcodec.training.losses import (
    LogMelLoss,
    MultiResolutionSTFTLoss,
    masked_mse,
)
from speechbrain_focalcodec.training.segments import (
    random_starts,
    take_windows,
)

PACKAGE = Path(speechbrain_focalcodec.__file__).parent
PARITY = Path(__file__).parent / "parity"
OFFLINE, CAUSAL = PARITY / "offline_50hz", PARITY / "causal_50hz"
MINI = "focalcodec_mini_50hz"

# Where a GPU is waited for on purpose.
WAITS = {
    # NaN, and lengths and tokens that cannot be, are refused by name.
    "stages.py check_floats",
    "stages.py check_toks",
    "modules/masking.py check_lengths",
    "streaming/base.py check",
    "streaming/base.py check_token_range",
    # Once a batch: whether an utterance is shorter than a frame.
    "modules/extractor.py _extract",
    # Windows of long audio are planned on the CPU.
    "long_audio/engine.py _run",
    # A segment is drawn on the CPU, by utterance and epoch.
    "training/codec_brain.py compute_forward",
    # Once a batch: without padding, feature maps need no masks.
    "training/objectives/adversarial.py _judged",
    # Statistics are of valid frames alone.
    "downstream/front_ends.py forward",
    # Error rates of validation are counted on the CPU.
    "downstream/asr.py __call__",
}


class Watch(TorchDispatchMode):
    """Refuses to wait for a fake GPU elsewhere than in WAITS.

    Where it may be waited for, what is read is 1, and masks are all True.
    """

    def __init__(self):
        super().__init__()
        self.waits = Counter()

    def wait(self, reason):
        frame = sys._getframe()
        while PACKAGE not in Path(frame.f_code.co_filename).parents:
            frame = frame.f_back
            assert frame is not None, f"waits for the GPU: {reason}"
        path = Path(frame.f_code.co_filename).relative_to(PACKAGE)
        place = f"{path.as_posix()} {frame.f_code.co_name}"
        assert place in WAITS, f"{place} waits for the GPU: {reason}"
        self.waits[place] += 1

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        aten = torch.ops.aten
        if function is aten._local_scalar_dense.default and args[0].is_cuda:
            self.wait("a value is read")
            dtype = args[0].dtype
            return dtype is torch.bool or (
                1.0 if dtype.is_floating_point else 1
            )
        if function is aten._to_copy.default:
            device = torch.device(kwargs.get("device") or args[0].device)
            moves = device.type != args[0].device.type
            # What PyTorch moves from pageable memory is copied first.
            if moves and not (
                device.type == "cuda" and kwargs.get("non_blocking")
            ):
                self.wait(f"a tensor moves from {args[0].device} to {device}")
        if function in (aten.index.Tensor, aten.index_put_.default):
            indices = [self.selected(index) for index in args[1]]
            args = (args[0], sum(indices, []), *args[2:])
        return function(*args, **kwargs)

    def selected(self, index):
        """Places of all values, where a mask selects some."""
        if index is None or index.dtype is not torch.bool:
            return [index]
        self.wait("a mask selects values")
        count = index.numel()
        return [index.new_zeros(count, dtype=int) for _ in index.shape]


class FakeGPU:
    """In place of a GPU."""

    def __init__(self, monkeypatch):
        # Autocast, and cuDNN's LSTM, ask for a driver.
        monkeypatch.setattr(
            "torch.cuda.amp.common.amp_definitely_not_available", lambda: False
        )
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
        # PyTorch has no fake of it.
        monkeypatch.setattr(
            "torch.nn.functional.ctc_loss", lambda x, *args, **kwargs: x.mean()
        )
        self.waits = Counter()

    @contextmanager
    def holding(self, *modules):
        """Move modules to it, and work on it."""
        with ExitStack() as stack:
            enter = stack.enter_context
            enter(torch.backends.cudnn.flags(enabled=False))
            enter(FakeTensorMode(allow_non_fake_inputs=False))
            watch = enter(Watch())
            move(nn.ModuleList(modules))
            # They are there already, and would not come this way.
            patch = enter(pytest.MonkeyPatch.context())
            patch.setattr(nn.Module, "to", lambda self, device: self)
            yield
        self.waits += watch.waits


class RealGPU:
    """A GPU. Waiting is not watched there."""

    waits = Counter()

    @contextmanager
    def holding(self, *modules):
        """Move modules to it."""
        for module in modules:
            module.to("cuda")
        yield


def move(module):
    """Move a module to a fake GPU, which ``Module.to`` cannot."""

    def like(x):
        return torch.empty_strided(
            x.shape, x.stride(), dtype=x.dtype, device="cuda"
        )

    moved = {
        weight: nn.Parameter(like(weight), weight.requires_grad)
        for weight in module.parameters()
    }
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            setattr(part, name, moved[weight])
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, like(buffer))


@pytest.fixture(params=["fake", "real"][: 1 + torch.cuda.is_available()])
def gpu(request, monkeypatch):
    return FakeGPU(monkeypatch) if request.param == "fake" else RealGPU()


@pytest.fixture
def fake_gpu(monkeypatch):
    return FakeGPU(monkeypatch)


def batch(*shape):
    """A batch on the GPU, and its lengths."""
    x = 0.1 * torch.randn(2, *shape, device="cuda")
    return x, torch.full((2,), shape[0], device="cuda")


def autocast(enabled=True):
    return torch.autocast("cuda", torch.bfloat16, enabled=enabled)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (lambda x: x + torch.ones(3), "at least two devices"),
        (lambda x: x @ torch.ones(3, 2), "at least two devices"),
        (lambda x: x.sum().item(), "a value is read"),
        (lambda x: bool((x > 0).all()), "a value is read"),
        (lambda x: x.tolist(), "a value is read"),
        (lambda x: x[x > 0], "a mask selects values"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x.cpu(), "moves from cuda:0 to cpu"),
        (lambda x: torch.tensor([1.0], device="cuda"), "moves from cpu"),
    ],
)
def test_a_fake_gpu_finds_faults(fake_gpu, fault, error):
    with (
        pytest.raises(Exception, match=error),
        fake_gpu.holding(),
    ):
        fault(torch.ones(3, 3, device="cuda"))


def test_a_fake_gpu_has_autocast(fake_gpu):
    layer = nn.Linear(3, 3)
    with fake_gpu.holding(layer), autocast():
        x = torch.ones(2, 3, device="cuda")
        assert layer(x).dtype == torch.bfloat16
        assert layer(x).softmax(-1).dtype == torch.float32


# Codecs

NAMES = [*CODECS, OFFLINE.name, "offline_options", MINI]


def load(name):
    if name in CODECS:
        return make_codec(name)
    return FocalCodec.from_pretrained(name if name == MINI else PARITY / name)


@pytest.mark.parametrize("name", NAMES)
def test_stages(gpu, name):
    codec = load(name)
    with gpu.holding(codec):
        sig, lengths = batch(6000)
        with torch.no_grad():
            toks, tok_lengths = codec.sig_to_toks(sig, lengths)
            rec, rec_lengths = codec.toks_to_sig(toks, tok_lengths)
        assert toks.dtype == torch.int64 and rec.dtype == torch.float32
        for x in (toks, tok_lengths, rec, rec_lengths):
            assert x.is_cuda
        feats, frames = codec.train().sig_to_feats(sig, lengths)
        lats, tokens = codec.feats_to_lats(feats, frames)
        codes = codec.quantizer.straight_through(lats)
        qfeats = codec.decompressor(codes, tokens)
        assert codec.decoder(qfeats, frames).is_cuda


@pytest.mark.parametrize("name", ["wavenext", OFFLINE.name, MINI])
@pytest.mark.parametrize("kind", ["autocast", "half", "bf16"])
@torch.no_grad()
def test_stages_in_other_types(gpu, name, kind):
    codec = load(name)
    codec.freeze_fingerprint()
    if kind == "half":
        codec.half()
    with gpu.holding(codec):
        if kind == "bf16":
            accelerate(codec, "bf16")
        sig, lengths = batch(6000)
        with autocast(kind == "autocast"):
            toks, tok_lengths = codec.sig_to_toks(sig, lengths)
            rec, _ = codec.toks_to_sig(toks, tok_lengths)
    # Phases and windows are in float32.
    assert rec.dtype == torch.float32


@torch.no_grad()
def test_any_length(gpu):
    codec = load(OFFLINE.name)
    with gpu.holding(codec):
        sig, lengths = batch(6000)
        toks, tok_lengths = codec.encode(sig, lengths)
        assert codec.decode(toks, tok_lengths)[0].is_cuda
        assert codec.resynthesize(sig).is_cuda


@torch.no_grad()
def test_every_module_has_been_on_it(fake_gpu):
    """The tests above leave out none of modules/."""
    names = [info.name for info in pkgutil.iter_modules(modules.__path__)]
    wanted = {
        kind
        for name in names
        for kind in vars(
            importlib.import_module(f"{modules.__name__}.{name}")
        ).values()
        if isinstance(kind, type)
        and issubclass(kind, nn.Module)
        and kind.__module__ == f"{modules.__name__}.{name}"
        and "forward" in vars(kind)
    }
    seen = set()
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, args, output: seen.update(type(module).__mro__)
    )
    try:
        for name in ("all_options", "down_scaled", "offline_options", MINI):
            codec = load(name)
            with fake_gpu.holding(codec):
                codec.toks_to_sig(codec.sig_to_toks(batch(6000)[0]))
        embedding = TokenEmbedding(64, 8, tied_to_codes=True)
        with fake_gpu.holding(embedding):
            embedding(torch.zeros(2, 5, dtype=torch.int64, device="cuda"))
    finally:
        hook.remove()
    missing = {kind.__name__ for kind in wanted - seen}
    # These keep what is derived from weights, on the CPU alone.
    assert missing <= {"Derived", "DerivedFromAll"}


# Streams


@pytest.mark.parametrize("name", ["down_scaled", CAUSAL.name])
@torch.no_grad()
def test_sessions(gpu, name):
    codec = load(name)
    with gpu.holding(codec):
        sig = batch(2000)[0][0]
        encoder, decoder = StreamingEncoder(codec), StreamingDecoder(codec)
        toks = [*map(encoder.push, sig.split(1300)), encoder.flush()]
        parts = [*map(decoder.push, toks), decoder.flush()]
        assert all(x.is_cuda for x in (*toks, *parts))
        stream = StreamingResynthesizer(codec)
        stream.push(sig)
        assert stream.flush().is_cuda
        assert all(
            x.is_cuda
            for name, x in encoder.state_dict().items()
            if name.startswith("state.")
        )


@pytest.mark.parametrize("kind", ["encode", "decode", "resynthesize"])
@torch.no_grad()
def test_pool(gpu, kind):
    codec = load("vocos")
    with gpu.holding(codec):
        pool = StreamPool(codec, 2, kind)
        first, second = pool.join(), pool.join()
        x = batch(2000)[0][0]
        if kind == "decode":
            x = torch.zeros(13, dtype=torch.int64, device="cuda")
        pool.push({first: x, second: x[: len(x) // 2]})
        assert pool.push({first: x})[first].is_cuda
        assert pool.leave(second).is_cuda


# Losses


def losses():
    quantizer = BinarySphericalQuantizer(64)
    return {
        "mel": (LogMelLoss(16000), 8000),
        "log_mel": (LogMelLoss(16000, spectrogram=LogMel(16000)), 8000),
        "stft": (MultiResolutionSTFTLoss(), 8000),
        "mse": (masked_mse, 50, 6),
        "entropy": (lambda x, y, n: quantizer.entropy_loss(x, n), 50, 6),
    }


@pytest.mark.parametrize("name", losses())
def test_losses(gpu, name):
    loss, *shape = losses()[name]
    parts = [loss] if isinstance(loss, nn.Module) else []
    with gpu.holding(*parts), autocast():
        (x, lengths), (y, _) = batch(*shape), batch(*shape)
        value = loss(x.bfloat16().requires_grad_(), y, lengths)
        assert value.dtype == torch.float32 and value.is_cuda
        assert value.requires_grad


def test_discriminators(gpu):
    discriminator = CompactDiscriminator()
    with gpu.holding(discriminator), autocast():
        scores, maps = discriminator(batch(8000)[0].bfloat16()[:, None])
        assert all(x.is_cuda for x in (*scores, *sum(maps, [])))


def test_windows_and_counts(gpu):
    with gpu.holding():
        x, lengths = batch(50, 6)
        starts = random_starts(lengths, 8)
        assert take_windows(x, starts, 8).shape == (2, 8, 6)
        CodeCounts(64, "cuda").add(x[..., 0].long(), lengths)


# Training

STAGES = {
    "decoder": {"adversarial": True, "segment_frames": 10},
    "quantizer": {},
    "end_to_end": {"adversarial": True, "judged_samples": 1600},
    "position": {},
    "encoder": {},
    "joint": {},
    "pretraining": {},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    soundfile.write(folder / "a.wav", np.zeros(8000), 16000)
    entry = {
        "wav": "{data_root}/a.wav",
        "num_samples": 8000,
        "sample_rate": 16000,
        "duration": 0.5,
    }
    write_manifest(folder / "train.json", {"a": entry})
    return folder


def options_of(stage, folder):
    """What a stage starts from."""
    if stage in ("position", "encoder", "joint"):
        return {
            "codec": load(CAUSAL.name),
            "encoder_source": OFFLINE,
            "start_from": [CAUSAL],
            "first_layer_weight": 0.5,
            "last_layer_weight": 1.0,
        }
    if stage == "pretraining":
        codec = load(OFFLINE.name)
        head = nn.Linear(codec.encoder.output_dim, 80)
        return {
            "codec": codec,
            "modules": {"head": head},
            "mel": LogMel(16000),
            "gap_samples": 800,
            "gap_share": 0.3,
        }
    if stage == "end_to_end":
        FocalCodec.from_config(CONFIG).save_pretrained(folder / "start")
        return {"start_from": [folder / "start"]}
    return {}


class Batch(SimpleNamespace):
    """What SpeechBrain's loaders give."""

    id = ("a", "b")

    def to(self, device):
        return self

    def __getitem__(self, name):
        return getattr(self, name)


def modules_within(*found):
    """Modules, in lists and dictionaries, too."""
    for x in found:
        if isinstance(x, nn.Module):
            yield x
        elif isinstance(x, dict):
            yield from modules_within(*x.values())
        elif isinstance(x, list):
            yield from modules_within(*x)


@contextmanager
def on_gpu(gpu, brain):
    """Bring all that a Brain uses to the GPU, and train on it."""
    parts = [brain.modules, *vars(brain).values()]
    for objective in getattr(brain, "objectives", []):
        parts += vars(objective).values()
    with gpu.holding(*modules_within(*parts)):
        brain.device = "cuda"
        if hasattr(brain, "_code_counts"):
            brain._code_counts = CodeCounts(brain.codec.codebook_size, "cuda")
        yield


# What a step of training reads, at most; of a pair, each half counts.
READS = Counter(
    {
        "stages.py check_floats": 1,
        "modules/masking.py check_lengths": 2,
        "modules/extractor.py _extract": 2,
        "training/codec_brain.py compute_forward": 2,
        "training/objectives/adversarial.py _judged": 1,
    }
)


@pytest.mark.parametrize("stage", [sb.Stage.TRAIN, sb.Stage.VALID])
@pytest.mark.parametrize("name", STAGES)
def test_stages_of_training(gpu, corpus, tmp_path, name, stage):
    options = {**STAGES[name], **options_of(name, tmp_path)}
    brain, *_ = make_brain(name, corpus, tmp_path / "run", **options)
    training = stage == sb.Stage.TRAIN
    brain.modules.train(training)
    with on_gpu(gpu, brain), torch.set_grad_enabled(training), autocast():
        sig, _ = batch(8000)
        made = Batch(sig=(sig, torch.ones(2, device="cuda")))
        outputs = brain.compute_forward(made, stage)
        if training and brain.opponent:
            loss = brain.opponent.opposing_loss(outputs)
            assert loss.dtype == torch.float32 and loss.requires_grad
        loss = brain.compute_objectives(outputs, made, stage)
        assert loss.dtype == torch.float32 and loss.is_cuda
        assert loss.requires_grad == training
    if training:
        assert gpu.waits <= READS


# Tasks on tokens


TASKS = {
    "tokens": (ASRBrain, lambda dim: BiLSTM(dim, 8, 1)),
    "features": (ClassificationBrain, lambda dim: PooledBiLSTM(dim, 8)),
    "log_mel": (ASRBrain, lambda dim: Conformer(dim, 16, 1, 2, 16)),
}


@pytest.mark.parametrize("stage", [sb.Stage.TRAIN, sb.Stage.VALID])
@pytest.mark.parametrize("kind", TASKS)
def test_tasks(gpu, tmp_path, kind, stage):
    codec, (make, make_network) = load(MINI), TASKS[kind]
    tokenizer = TextTokenizer.train(["GO ON"], "char")
    front_end = make_front_end(kind, codec)
    network = make_network(front_end.dim)
    output = nn.Linear(network.output_dim, tokenizer.size + 1)
    brain = make(
        {"front_end": front_end, "network": network, "output": output},
        hparams={
            "output_folder": str(tmp_path),
            "tokenizer": tokenizer,
            "beam_size": 1,
        },
    )
    training = stage == sb.Stage.TRAIN
    brain.modules.train(training)
    brain.words = brain.characters = sb.utils.metric_stats.ErrorRateStats()
    with (
        gpu.holding(codec, brain.modules),
        torch.set_grad_enabled(training),
        autocast(),
    ):
        brain.device = "cuda"
        ones = torch.ones(2, device="cuda")
        made = Batch(
            sig=(batch(8000)[0], ones),
            labels=(torch.zeros(2, 3, device="cuda").long(), ones),
            text=["GO", "ON"],
            **{"class": [0, 1]},
        )
        outputs = brain.compute_forward(made, stage)
        loss = brain.compute_objectives(outputs, made, stage)
        assert loss.dtype == torch.float32 and loss.is_cuda
        assert loss.requires_grad == training


@pytest.mark.parametrize(
    "head", [TokenSoftmax(8, 64), CodeMixture(8, 64, 3)], ids=["all", "bits"]
)
def test_scores_of_tokens(gpu, head):
    with gpu.holding(head), autocast():
        scores = head(torch.randn(5, 8, device="cuda"))
        targets = scores.likeliest()
        assert scores.log_prob(targets).dtype == torch.float32
        assert scores.log_probs().shape == (5, 65)
