"""Tiny models of every architecture, compared with what their makers' own code computes.

    python -m tests.oracle.make [NAME ...]   runs transformers and writes goldens/NAME.npz (tox -e oracle)
    test_oracle.py                           needs neither: it draws the same weights, converts them, and compares

Weights are not kept: each tensor is drawn from a generator that is seeded by its name, here and there alike.
"""
