"""The steps of the journey that change the books: each idempotent, one transaction, one watermark.

A job opens its transaction, asks ``model`` what follows from the rules and ``store`` to write it.
"""
