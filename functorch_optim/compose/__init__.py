"""Pairs made of pairs: chains, partitions, masks."""
