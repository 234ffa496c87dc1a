"""Ways to and from other libraries, their files and their objects.

Each library is imported by its own module alone, and is an extra of this package: `interop.torch`
needs `pip install "functorch_optim[torch]"`, and so on.
"""
