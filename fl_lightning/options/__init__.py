"""What a user has asked for: parsed, checked, and said in plain words before anything is made of it.

It may import `machine` and what lies below; the federation and the command line import it. Read `parser.py` first: it turns a
parser's messages into one line that names field, value and remedy.
"""
