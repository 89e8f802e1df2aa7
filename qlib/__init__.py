"""Post-training quantization of speech recognizers and small language models, from scratch in PyTorch."""
