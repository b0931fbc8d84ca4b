"""Parses source strings: a device of this computer, a network address, or a file."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from mien.models.data.corpora import MEDIA_SUFFIXES

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)  # two letters at least: C:// is a drive
_VIDEO_DEVICE = re.compile(r"(?:/dev/video)?(\d+)")


@dataclass(frozen=True)
class Device:
    """A local device: "auto", its index, or part of its name."""

    name: str

    @property
    def index(self) -> int | None:
        """Its index, if given as one: "2" or "/dev/video2"."""
        found = _VIDEO_DEVICE.fullmatch(self.name)
        return int(found.group(1)) if found else None


@dataclass(frozen=True)
class Url:
    """A network address."""

    url: str

    @property
    def name(self) -> str:
        """The address without user name and password, safe to show and log."""
        return re.sub(r"(?<=://)[^/@]*@", "", self.url)


@dataclass(frozen=True)
class File:
    """A file, whether or not it exists."""

    path: Path

    @property
    def name(self) -> str:
        """The file's name on one printable line."""
        return printable(self.path.name)

    @property
    def source(self) -> str:
        """A string that `address_of` parses as this file, and that JSON can carry."""
        text = str(self.path)
        try:
            text.encode()
        except UnicodeEncodeError:  # a name that is not UTF-8
            return self.path.absolute().as_uri()
        return text if address_of(text) == self else str(self.path.absolute())


Address: TypeAlias = "Device | Url | File"


def address_of(source: str) -> Address | None:
    """Parse a source; None for "none".

    An existing file is a file, even if its name could mean something else, except for "auto", "none" and plain numbers
    (write "./0"). Anything else is taken as a file if it is written as a path or has a media suffix, so that the error
    is about a file; a device's name may contain a dot ("USB Audio 2.0").
    """
    if source == "none":
        return None
    if source == "auto" or _VIDEO_DEVICE.fullmatch(source):
        return Device(source)
    path = Path(source).expanduser() if source.startswith("~") else Path(source)
    if is_file(path):
        return File(path)
    if source.lower().startswith("file://"):
        return File(Path(_path_of_uri(source)))
    if _SCHEME.match(source):
        return Url(source)
    if path.suffix.lower() in MEDIA_SUFFIXES or len(path.parts) > 1:
        return File(path)
    return Device(source)


def clip_source(name: str) -> str:
    """The source string for the file of that name, even if the name alone would mean something else ("0", "none").

    Folders and missing files count as files too, so that the error is about a file; addresses are left unchanged.
    """
    path, address = Path(name), address_of(name)
    named_alike = isinstance(address, Device) and address.index is None and name != "auto"
    return File(path).source if named_alike or os.path.lexists(path) else name


def is_file(path: Path) -> bool:
    """Whether it exists as a file; False for names that no system accepts."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def printable(name: str) -> str:
    """A name on one line, with line breaks, control characters and non-UTF-8 bytes escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def _path_of_uri(uri: str) -> str:
    path = urlsplit(uri).path
    return url2pathname(path) if os.name == "nt" else os.fsdecode(unquote_to_bytes(path))
