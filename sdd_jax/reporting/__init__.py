"""Runs side by side on one page: from their folders to measures, figures and HTML."""

from sdd_jax.reporting.page import write_report

__all__ = ["write_report"]
