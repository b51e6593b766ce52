"""Monitoring: one look at the running service, and what it says to those who watch over it.

`watch` looks, `health` judges in words, `metrics` tells Prometheus, `server` answers both over
HTTP. Nothing here changes anything or knows Redis; what needs a longer look is the doctor's.
"""
