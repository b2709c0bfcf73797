"""Bytes of objects: the shared arena in memory (``arena``) and the files on disk (``spill``).

Who may use which bytes is decided in ``core``; this package only moves them.
"""
