"""Prints the predictions of a running mien: `python examples/subscriber.py [endpoint] [count]`.

Needs `pip install mien` alone: no torch, no OpenCV. Start it before or after `mien run`; it reconnects automatically.
"""

import sys

import mien

endpoint = sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:5560"
left = int(sys.argv[2]) if len(sys.argv) > 2 else None  # predictions until it ends; for ever if not given

try:
    for prediction in mien.subscribe(endpoint):
        if prediction.abstains:
            line = f"no prediction: {prediction.abstains}"
        else:
            shares = " ".join(f"{name} {share:.0%}" for name, share in prediction.gates.items())
            line = f"{prediction.sentiment:+.2f} {prediction.top_emotion:<8} {prediction.confidence:4.0%}  ({shares})"
        print(f"#{prediction.seq} {line}  {prediction.transcript.committed}", flush=True)
        left = None if left is None else left - 1
        if left == 0:
            break
except KeyboardInterrupt:
    pass
