"""Configs: a file per data set, ``get_config(argument)``; what they share is in ``common``."""
