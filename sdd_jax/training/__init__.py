"""The training loop and its parts; each module reads alone, and only ``build`` knows a config."""
