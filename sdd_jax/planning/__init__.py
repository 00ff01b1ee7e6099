"""What a config will take on TPUs that are not here: compiled ahead of time, held against published numbers."""
