"""Drivers that break real runs; ``tests/test_faults.py`` runs them in a short form."""
