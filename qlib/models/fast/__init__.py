"""Networks laid out for inference: packed products, few operations, results that no other row changes."""
