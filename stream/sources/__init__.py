"""Where pictures and sound come from: devices, network cameras and clips, on one code path."""
