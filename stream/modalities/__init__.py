"""One file a modality: what its rows are, and how they are made from sound or pictures."""
