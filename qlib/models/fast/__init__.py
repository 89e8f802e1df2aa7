"""Networks laid out for inference: prepacked weights, and logits whose bits do not depend on the batch."""
