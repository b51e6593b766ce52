"""Postgres: tables, statements and the two ways to run them. Knows no Redis and decides nothing.

Two registers of SQL: SQLAlchemy Core for keyed reads and row writes, one file under ``sql/`` for
each set-based statement. Functions take a connection; whoever calls opens the transaction.
"""
