"""One file per algorithm family. Nothing is re-exported: `algorithms.adam` is the module."""
