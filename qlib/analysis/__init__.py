"""What a quantized model costs, which layers hurt, and where bits pay."""
