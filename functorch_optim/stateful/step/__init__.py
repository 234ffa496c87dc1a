"""From `param_groups` to one compiled call."""
