"""Who may read what: tokens, browser sessions, and the part of the books that each may read.

reader        the part of the books that a request may read
secret_texts  tokens and session secrets: how they look, and their digests
log_ins       finds the reader of a token or a browser session; limits failed attempts
tokens        creates, lists and revokes tokens: for the command line, as the writer
"""
