"""Where checkpoints come from: names, downloads, foreign formats, and a folder that becomes a model."""
