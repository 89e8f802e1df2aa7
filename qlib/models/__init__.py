"""Model layer shared by both packages: load a checkpoint, run it, know its structure."""
