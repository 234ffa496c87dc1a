"""Small transforms to chain, one file per kind."""
