"""Sound that a detector of voice has something to say about: made here, the same on every machine.

A glottal buzz through three formants, in syllables and phrases, over faint noise (the source and filter of G. Fant,
Acoustic Theory of Speech Production, 1960). The detector reads 512 samples at 16 kHz with the last 64 before them, and
a state that it gave with its last answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime

RATE = 16_000
CHUNK, BEFORE = 512, 64
SECONDS = 4.0
FORMANTS = ((700.0, 110.0), (1220.0, 120.0), (2600.0, 160.0))  # centre and width in Hz, of an open vowel
HARMONICS = 30


class Heard(NamedTuple):
    """What a model is asked and what it says, chunk by chunk: input f32[N,576], state f32[N,2,1,128], sr int64[N];
    output f32[N,1], stateN as state."""

    input: np.ndarray
    state: np.ndarray
    sr: np.ndarray
    output: np.ndarray
    stateN: np.ndarray  # noqa: N815 - the output's own name


def sound() -> np.ndarray:
    """f32[samples] within ± 0.5."""
    t = np.arange(int(RATE * SECONDS)) / RATE
    pitch = 120 + 30 * np.sin(2 * np.pi * 2.1 * t) + 10 * np.sin(2 * np.pi * 0.3 * t)  # Hz
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    voice = np.zeros_like(t)
    for harmonic in range(1, HARMONICS):
        gain = sum(1 / (1 + ((harmonic * pitch - centre) / width) ** 2) for centre, width in FORMANTS)
        voice += gain * harmonic**-0.3 * np.sin(harmonic * phase)
    syllables = np.sqrt(np.clip(np.sin(2 * np.pi * 3.7 * t), 0, 1)) * (np.sin(2 * np.pi * 0.45 * t) > -0.2)
    noise = np.random.default_rng(3).normal(scale=0.003, size=t.size)
    return np.asarray(0.5 * voice / np.abs(voice).max() * syllables + noise, np.float32)


def chunks(audio: np.ndarray) -> Iterator[np.ndarray]:
    """Each with what came before it."""
    padded = np.concatenate([np.zeros(BEFORE, np.float32), audio])
    for start in range(0, len(audio) - CHUNK + 1, CHUNK):
        yield padded[start : start + BEFORE + CHUNK]


def heard(model: Path) -> Heard:
    """The model listens to the whole sound."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    state, rate = np.zeros((2, 1, 128), np.float32), np.array(RATE, np.int64)
    rows = []
    for chunk in chunks(sound()):
        output, after = session.run(["output", "stateN"], {"input": chunk[None], "state": state, "sr": rate})
        rows.append((chunk, state, rate, output[0], after))
        state = after
    return Heard(*(np.stack(column) for column in zip(*rows, strict=True)))
