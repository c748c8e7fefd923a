"""Associative memories: what they are made of, their definition token by token, and their parallel form.

A memory is a structure fitted to its context by an inner objective (Nested Learning, Definition 1). `Memory` holds the
choices, `scan` is the definition, `chunked` the parallel form of the same map. This package imports torch only.
"""
