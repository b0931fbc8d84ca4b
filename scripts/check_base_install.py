"""Check an environment that has mien's base install and nothing else: what a subscriber needs, and nothing heavy."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "cv2", "mediapipe", "faster_whisper", "onnxruntime", "transformers", "librosa", "sounddevice")


def main() -> None:
    """Import mien, run its command, and look for what must not be there."""
    present = [name for name in HEAVY if importlib.util.find_spec(name)]
    if present:
        sys.exit(f"the base install brings {', '.join(present)}")
    import mien

    if Path(sys.prefix) not in Path(mien.__file__).parents:
        sys.exit(f"mien comes from {mien.__file__}, not from this environment")
    folder = Path(mien.__file__).parent
    if not (folder / "stream" / "protocol.md").is_file():
        sys.exit("the wheel lacks stream/protocol.md")
    if not list((folder / "models" / "weights").glob("*.safetensors")):
        sys.exit("the wheel lacks the default weights")
    for arguments in (["--help"], ["--version"], ["doctor"]):
        subprocess.run(["mien", *arguments], check=True, stdin=subprocess.DEVNULL, timeout=60)
    refused = subprocess.run(["mien", "run"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    if refused.returncode != 1 or 'pip install "mien[live]' not in refused.stderr or "Traceback" in refused.stderr:
        sys.exit(f"`mien run` does not say what it needs: {refused.stderr}")
    print(f"mien {mien.__version__}: base install is complete, and has none of {', '.join(HEAVY)}")


if __name__ == "__main__":
    main()
