"""Averages of weights over training, and batch norm's statistics for them."""
