"""Two vocabularies and what bridges them: tokens with the same bytes, and n-grams learned on the way."""
