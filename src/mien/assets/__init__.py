"""Pretrained files: the list, their sources, and the cache on this machine."""

from __future__ import annotations

from mien.assets.cache import AssetStatus, asset_path, cache_folder, fetch, needed, status
from mien.assets.manifest import ASSETS, Asset

__all__ = ["ASSETS", "Asset", "AssetStatus", "asset_path", "cache_folder", "fetch", "needed", "status"]
