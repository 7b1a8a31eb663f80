"""Track lists, catalogues, decoding, duplicates and the tensor cache.

The modules here read what strangers wrote, so each of them refuses what it can't vouch for with an `InputError` that
names the file and the line. Importing this package imports nothing heavy: take what you need from its modules.
"""
