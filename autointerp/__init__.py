"""autointerp: label the features of a sparse dictionary, and say how far each label can be trusted.

A corpus is encoded into activations; excerpts are kept; a model explains each feature from some of them; a
simulator predicts others from the explanation alone; arithmetic grades the prediction; the best label is chosen,
and graded on text that nobody has seen; readers show, search and export the grades.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("autointerp")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
