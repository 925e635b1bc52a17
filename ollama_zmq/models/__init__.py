"""Architectures: one file per name in ``general.architecture``, and what they have in common."""
