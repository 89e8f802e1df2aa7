"""What the target keeps of a draft: rules of acceptance, sampling, shared noise."""
