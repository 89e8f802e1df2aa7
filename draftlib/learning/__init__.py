"""What is learned from finished rounds: the drafter, and how far to draft."""
