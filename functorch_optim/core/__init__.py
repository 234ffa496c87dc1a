"""What every room stands on: the pair, trees, dtypes, exact arithmetic. It knows no algorithm."""
