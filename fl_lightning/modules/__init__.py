"""A user's module seen from outside: of which package it is, which hooks and outputs it has, what it keeps in Python.

It imports `checked`, `errors` and `seeding` alone, so that data, attacks and training may all look at a module by the same
means. Read `kept_python.py` first: what is found there is put back after every client.
"""
