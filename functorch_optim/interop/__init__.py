"""Ways to and from other libraries, their files and their objects.

Each library is imported by its own module alone, and is an extra of this package: `interop.torch`
needs `pip install "functorch_optim[torch]"`, and so on.

- `torch`: state_dicts, weights, single tensors and `.pt` files, there and back.
- `safetensors`: any state as a file that many libraries read.
- `orbax`: what its checkpoints need to fit a chain that has changed. It imports nothing of orbax.
- `optax`, `flax`, `equinox`: pairs and models of these libraries.

What the files have in common: `whole_files` writes them as a whole or not at all, `untrusted` keeps
a file of unknown origin from taking more than its share of memory.
"""
