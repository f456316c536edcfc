"""How far the tokens of faster options equal those of float32."""

from pathlib import Path
from typing import Any

import torch
from speech import Difference, compare_tokens, read_clips
from systems import CodecSystem, Missing, System

from speechbrain_focalcodec.codec import FocalCodec


@torch.inference_mode()
def token_agreement(
    systems: list[System],
    data: Path,
    num_clips: int,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Compare the tokens that options give with those of float32.

    Arguments
    ---------
    systems : list of System
        Of these, the ones with options are compared.
    data : Path
        Folder of real speech.
    num_clips : int
        Files to take, each alone.
    device : torch.device
        Where to encode.

    Returns
    -------
    list of dict
        One for each option.
    """
    rows: list[dict[str, Any]] = []
    toks: dict[str, list[torch.Tensor]] = {}
    for system in systems:
        if not isinstance(system, CodecSystem) or not system.option:
            continue
        plain = CodecSystem(system.base, system.build)
        plain.load(device)
        codec = plain.codec
        rate, dim = codec.sample_rate_input, codec.quantizer.dim
        clips = list(read_clips(data, num_clips, rate).values())
        if system.base not in toks:
            toks[system.base] = _encode(codec, clips, device)
        plain.unload()
        row = {
            "system": system.name,
            "clips": len(clips),
            "seconds": sum(map(len, clips)) / rate,
            "skipped": None,
        }
        rows.append(row)
        try:
            system.load(device)
        except Missing as error:
            row["skipped"] = str(error)
            continue
        others = _encode(system.codec, clips, device)
        system.unload()
        pairs = zip(toks[system.base], others, strict=True)
        difference = sum(
            (compare_tokens(a, b, dim) for a, b in pairs), Difference()
        )
        row["tokens"] = difference.num_tokens
        row["equal_tokens"] = 1 - difference.token_share
        row["equal_bits"] = 1 - difference.bit_share
    return rows


def _encode(
    codec: FocalCodec, clips: list[torch.Tensor], device: torch.device
) -> list[torch.Tensor]:
    return [codec.encode(sig[None].to(device))[0].cpu() for sig in clips]
