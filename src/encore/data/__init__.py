"""Track lists, catalogues, decoding and duplicates.

The modules here read untrusted files. Each refuses what it can't verify with an `InputError` that names the file and
the line. Importing this package is cheap: import what you need from its modules.
"""
