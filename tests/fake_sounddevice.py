"""What stands for sounddevice where there is no sound device."""

import threading
import time
import types

import numpy as np


class PortAudioError(Exception):
    """As sounddevice raises it."""


class CallbackStop(Exception):
    """Raised by a callback that has nothing more to play."""


class FakeSoundDevice(types.ModuleType):
    """A module with a microphone that hears `sig`, and a loudspeaker.

    The microphone hands over all of it as soon as it is started.
    """

    PortAudioError = PortAudioError
    CallbackStop = CallbackStop

    def __init__(self, sig=(), rates=(16000, 24000), device_rate=48000):
        super().__init__("sounddevice")
        self.sig = np.asarray(sig, dtype="float32")
        self.rates, self.device_rate = rates, device_rate
        self.kinds = ["input", "output"]
        self.refusal = None  # of an open stream
        self.overflows = 0  # blocks that come after a loss
        self.on_start = lambda: None
        self.plays = True  # by itself
        self.played = []
        self.streams = []

    def query_devices(self, kind):
        if kind not in self.kinds:
            raise PortAudioError("Error querying device -1")
        return {"default_samplerate": float(self.device_rate)}

    def _check(self, samplerate, **_):
        if samplerate not in self.rates:
            raise PortAudioError("Invalid sample rate")

    check_input_settings = check_output_settings = _check

    def InputStream(self, **options):
        return self._open(InputStream, options)

    def OutputStream(self, **options):
        return self._open(OutputStream, options)

    def _open(self, kind, options):
        if self.refusal:
            raise PortAudioError(self.refusal)
        assert options["channels"] == 1 and options["dtype"] == "float32"
        assert options["samplerate"] in (*self.rates, self.device_rate)
        self.streams.append(kind(self, options))
        return self.streams[-1]

    @property
    def is_closed(self):
        return all(stream.closed for stream in self.streams)


class InputStream:
    """The microphone."""

    latency = 0.02

    def __init__(self, device, options):
        self.device, self.options, self.closed = device, options, False

    def start(self):
        callback, size = self.options["callback"], self.options["blocksize"]
        for i, start in enumerate(range(0, len(self.device.sig), size)):
            status = types.SimpleNamespace(
                input_overflow=i < self.device.overflows
            )
            block = self.device.sig[start : start + size, None]
            callback(block, len(block), None, status)
        self.device.on_start()

    def stop(self):
        pass

    def close(self):
        self.closed = True


class OutputStream(InputStream):
    """The loudspeaker: it plays faster than one could listen."""

    latency = 0.03

    def start(self):
        if self.device.plays:
            threading.Thread(target=self._play, daemon=True).start()

    def _play(self):
        while not self.closed:
            try:
                self.pull(240)
            except CallbackStop:
                break
            time.sleep(0.001)
        self.options["finished_callback"]()

    def pull(self, frames):
        out = np.full((frames, 1), np.nan, dtype="float32")
        status = types.SimpleNamespace(output_underflow=False)
        try:
            self.options["callback"](out, frames, None, status)
        finally:
            self.device.played.append(out[:, 0])
