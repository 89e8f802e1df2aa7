"""Writing and reading the disk beside others: errors, locks, hashes, folders that are replaced at once."""
