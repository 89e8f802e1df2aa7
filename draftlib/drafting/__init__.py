"""What the drafter proposes, and how many tokens of it."""
