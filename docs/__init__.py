"""Generators of the pages here."""
