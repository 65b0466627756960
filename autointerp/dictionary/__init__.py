"""Sparse dictionaries: how they encode (`encode`), files that others wrote (`formats`), training one (`train`)."""

from autointerp.dictionary.encode import Dictionary, Triples, randomised, tau_of, units
from autointerp.dictionary.formats import load

__all__ = ["Dictionary", "Triples", "load", "randomised", "tau_of", "units"]
