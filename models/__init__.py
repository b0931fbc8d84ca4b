"""CM-MSF and the unimodal encoders: networks, data, training, metrics, default weights."""
