"""`mien schema`: the JSON Schema of what subscribers get."""

from __future__ import annotations

import json


def command() -> None:
    """Print the JSON Schema of prediction and status messages."""
    from mien.stream.bus.wire import json_schema

    print(json.dumps(json_schema(), indent=2))
