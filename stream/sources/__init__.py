"""Video and audio sources: devices, network cameras and clips, on one code path."""
